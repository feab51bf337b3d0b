"""Trainer: what every process of a run does."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import NoReturn

import torch
from torch import Tensor

from ftae.engine.data.batches import Batch, replay_run, training_batch, training_noise
from ftae.engine.data.dataset import Dataset
from ftae.engine.frozen_cache.plan import build_frozen_caches
from ftae.engine.models.recomputation import recomputed_stages
from ftae.engine.objectives.eval_batch import EvalContext
from ftae.engine.process import device_of, rng_state, set_deterministic_kernels, set_memory_format, set_rng_state
from ftae.engine.tasks import build_task, check_workers
from ftae.engine.tasks.task import NetworkInTraining
from ftae.engine.training.distributed import ALONE, Group, UnchangedBuffers, check_batch_independence
from ftae.engine.training.evaluator import EvalSet, check_images
from ftae.engine.training.images_on_gpu import dataset_on
from ftae.engine.training.model_reuse import ModelReuse, NoReuse
from ftae.engine.training.prefetch import made_ahead
from ftae.errors import FtaeError, ModelRaised, Reason, TrainingFailed, raised
from ftae.specs.finetune.run import FinetuneSpec

# In plain RuntimeErrors: the libraries that connect processes, and older GPU drivers.
MACHINE_FAULTS = ("gloo", "Gloo", "NCCL", "CUDA error")

BATCH_THREADS = 4  # at the most, that make batches beside the steps; by default one for each thread of a step

logger = logging.getLogger(__name__)


class Trainer:
    """The state of a run between two steps: the task with its networks, and the measurements of the current window.

    Every process of ``group`` has a trainer; only rank 0 keeps moving averages. ``reuse``: models and results that
    this process keeps from earlier runs; a process that is one of several does not use it.

    Raises:
        FtaeError: the spec cannot be run (see ``build_model`` and ``load_dataset``), or not by so many processes.
    """

    def __init__(self, spec: FinetuneSpec, group: Group = ALONE, reuse: ModelReuse | None = None) -> None:
        check_workers(spec, group.size)
        self.spec, self.group = spec, group
        self.device = device_of(spec)
        set_deterministic_kernels(spec, self.device)
        self.data = dataset_on(self.device, spec.data)
        check_images(spec, self.data)
        self._reuse = reuse if reuse is not None and group.size == 1 else NoReuse()
        self.autoencoder = self._reuse.model(spec, self.data.num_classes, self.device)
        self.auxiliary = self._reuse.auxiliary(spec, self.data.num_classes, self.device)
        set_memory_format(self.autoencoder, spec, self.device)
        if group.size > 1:
            check_batch_independence(self.autoencoder.train())
        train_cache, self._eval_cache = build_frozen_caches(self.autoencoder, spec, self.data, group.size)
        self.task = build_task(
            spec,
            self.autoencoder,
            self.auxiliary,
            train_cache,
            noise=group.randn_like,
            averaged=group.rank == 0,
        )
        self.eval_sets = [EvalSet("val", self._eval_context(spec, self.data), self.data.val)]
        if self.data.replay is not None and spec.source_metrics():
            context = self._eval_context(replay_run(spec), self.data.replay)
            self.eval_sets.append(EvalSet("val_source", context, self.data.replay.val))
        self.step = 0
        self._joined = False
        self.start_window()

    def _eval_context(self, spec: FinetuneSpec, data: Dataset) -> EvalContext:
        shared = (self.autoencoder, spec, self.auxiliary)
        return EvalContext(*shared, data.train, self.device, data.anomalies, self._eval_cache, self.task.judge)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the networks carry their averaged weights, where they have any."""
        with ExitStack() as stack:
            for network in self.task.networks:
                stack.enter_context(network.averaged())
            yield

    # ------------------------------------------------------------------------------------- measurements

    def start_window(self) -> None:
        """Forget what was measured so far."""
        self._sums: dict[str, tuple[float, float]] = {}  # sum and number of steps
        self.window_start, self.window_steps = time.monotonic(), 0

    def measured(self) -> dict[str, float]:
        """Every ``train/*`` metric: its mean over the steps of the window that measured it."""
        return {f"train/{name}": total / steps for name, (total, steps) in self._sums.items()}

    def _measure(self, values: dict[str, float], share: float = 1.0) -> None:
        """Add values that were measured on ``share`` of a step."""
        for name, value in values.items():
            total, steps = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + share * value, steps + share

    # -------------------------------------------------------------------------------- several processes

    def train_to(self, step: int) -> None:
        """Train until ``step``; called on rank 0, which makes the other ranks do the same.

        Raises:
            FtaeError: no loss term depends on anything that is trained, or several processes cannot train the model.
            TrainingFailed: the loss or the gradient of a network is not finite.
        """
        if not self._joined:
            self._join()
        self.group.broadcast({"step": step, "rng": rng_state()})
        self._train_to(step)

    def follower_loop(self) -> NoReturn:
        """On a rank above 0: obey the commands of rank 0 until this process is ended. Raises as ``train_to``."""
        self._join()
        while True:
            command = self.group.broadcast()
            set_rng_state(command["rng"])
            self._train_to(command["step"])

    def _join(self) -> None:
        self.group.join(self.device)
        optimizers = {network.name: network.optimizer for network in self.task.networks}
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        start = self.group.broadcast({"step": self.step, "optimizers": states})
        if self.group.rank > 0:
            self.step = start["step"]
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(start["optimizers"][name])
        self.task.wrap(self.group.wrapped)
        self._joined = True

    def _train_to(self, step: int) -> None:
        buffers = UnchangedBuffers(self.autoencoder) if self.group.size > 1 else None
        with closing(self.batches_until(step)) as batches:
            while self.step < step:
                self.train_step(batches)
        if buffers is not None:
            buffers.check()

    # ------------------------------------------------------------------------------------------ one step

    def train_step(self, following: Iterator[Batch] | None = None) -> None:
        """Every network takes one optimizer step over the next ``grad_accumulation`` batches. Raises as ``train_to``.

        ``following``: gives these batches; by default they are made now.
        """
        following = following or map(self._batch, self._numbers(self.step + 1))
        batches: Iterable[Batch] = islice(following, self.spec.grad_accumulation)
        if len(self.task.networks) > 1:
            batches = list(batches)  # all networks see the same ones
        for network in self.task.networks:
            if self.task.is_due(network, self.step):
                self._train(network, batches)
        self.step += 1
        self.window_steps += 1

    def batches_until(self, step: int) -> Generator[Batch]:
        """The batches of all steps before ``step``: made beside the steps, unless they cost less than that would."""
        numbers, data = self._numbers(step), self.spec.data
        is_degraded = any(images is not None and images.degrade is not None for images in (data, data.replay))
        if not is_degraded and self.device.type == "cpu":
            return (self._batch(number) for number in numbers)
        return made_ahead(self._batch, numbers, threads=min(BATCH_THREADS, torch.get_num_threads()))

    def _numbers(self, step: int) -> range:
        """The numbers of the batches of the steps from now until ``step``."""
        count = self.spec.grad_accumulation
        return range(self.step * count, step * count)

    def _batch(self, number: int) -> Batch:
        """Batch ``number`` of the run, a function of it alone. Called from several threads at once."""
        spec, length = self.spec, self.autoencoder.noise_dim
        size, rows = spec.batch_size, self.group.rows(spec.batch_size)
        made = training_batch(
            self.data, spec.data, batch_size=size, batch=number, seed=spec.seed, device=self.device, rows=rows
        )
        if length is None:
            return made
        noise = training_noise(rows, length, batch_size=size, batch=number, seed=spec.seed)
        return replace(made, inputs=noise.to(self.device), ids=())

    def _train(self, network: NetworkInTraining, batches: Iterable[Batch]) -> None:
        """The turn of one network: gradients of all batches, then an optimizer step."""
        network.begin_step()
        count, terms = self.spec.grad_accumulation, []
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == count else self.group.accumulating():
                terms.append(self._backward(network, batch))
        if self.step == 0 and self.group.rank == 0:
            self._warn_of_unreached_stages(network)
        parts, norm = self._read(network, terms)
        network.take_step(self.step, norm)
        of_step = self.task.stepped(network, parts, norm)
        for part in parts:
            self._measure({name: value for name, value in part.items() if name not in of_step}, share=1.0 / count)
        self._measure(of_step)

    def _backward(self, network: NetworkInTraining, batch: Batch) -> dict[str, Tensor]:
        """Add the gradient of the loss on one batch; returns its terms, which are not yet read from the device."""
        count, networks = self.spec.grad_accumulation, self.task.networks
        is_on = self.spec.checkpoint_stages is True
        with recomputed_stages(each.model for each in networks) if is_on else nullcontext():
            loss = self.task.loss(network, batch, self.step)
        # By a factor, not as ``grad_tensors``: to compare shapes, torch imports sympy for a third of a second.
        torch.autograd.backward(loss.total if count == 1 else loss.total / count)
        self._measure(loss.numbers, share=1.0 / count)
        return {name: term.detach() for name, term in loss.terms.items()}

    def _read(self, network: NetworkInTraining, terms: list[dict[str, Tensor]]) -> tuple[list[dict[str, float]], float]:
        """The terms of each batch, as means over all ranks, and the norm of the gradient.

        All are read at once, so that a GPU is waited for once per network and step.

        Raises:
            TrainingFailed: one is not finite.
        """
        norm = network.grad_norm()
        *values, norm_value = torch.stack([*chain.from_iterable(part.values() for part in terms), norm]).tolist()
        means = iter(self.group.mean(values))
        parts = [{name: next(means) for name in part} for part in terms]
        if not all(math.isfinite(value) for part in parts for value in part.values()):
            raise TrainingFailed(network.loss_failure, self.step)
        if not math.isfinite(norm_value):
            raise TrainingFailed(network.gradient_failure, self.step)
        return parts, float(norm_value)

    def _warn_of_unreached_stages(self, network: NetworkInTraining) -> None:
        """Name the stages that should be trained but get no gradient."""
        stages = [(stage.name, list(stage.parameters())) for stage in network.model.trainable_stages()]
        unreached = [name for name, parameters in stages if parameters and all(p.grad is None for p in parameters)]
        if unreached:
            logger.warning(
                "no gradient reaches %s: the losses of the first step do not depend on it", ", ".join(unreached)
            )


@contextmanager
def configuration_fails(step: Callable[[], int]) -> Iterator[None]:
    """Errors inside the block become failures of the configuration, unless the machine or the user is at fault.

    ``step``: gives the optimizer step for the message.

    Raises:
        TrainingFailed: out of memory, or what the model raised.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, FtaeError) and error.__cause__ is not None else error
        if _is_out_of_memory(cause):
            raise TrainingFailed(Reason.OUT_OF_MEMORY, step()) from cause
        if isinstance(error, FtaeError) and not isinstance(error, ModelRaised):
            raise
        if _is_machine_fault(cause):
            raise cause from cause.__cause__
        raise TrainingFailed(f"raised {raised(cause)}", step()) from cause


def _is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU, for which torch has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _is_machine_fault(error: BaseException) -> bool:
    """Whether a retry may succeed elsewhere or later: files, a failing GPU, another process that is gone."""
    if isinstance(error, OSError | torch.AcceleratorError | torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MACHINE_FAULTS)
