"""Training: what every process of a run does."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import NoReturn

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import Batch, replay_run, training_batch
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.frozen_cache.plan import build_frozen_caches, precision
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.eval_batch import EvalContext
from ftae.engine.objectives.losses import LossInputs, loss_terms, weighted_sum, weights_at
from ftae.engine.process import device_of, set_deterministic_kernels, set_memory_format
from ftae.engine.rng import rng_state, set_rng_state
from ftae.engine.tasks.adversarial import TERM, Adversary
from ftae.engine.tasks.optim import WeightAverage, build_optimizer, set_lr
from ftae.engine.training.distributed import ALONE, Buffers, Group, check_rows_apart
from ftae.engine.training.evaluator import EvalSet, check_images
from ftae.engine.training.model_reuse import ModelReuse, NoReuse
from ftae.errors import FtaeError, ModelRaised, Reason, TrainingFailed, raised
from ftae.specs.finetune.run import FinetuneSpec

BROKEN = ("gloo", "Gloo", "NCCL", "CUDA error")  # plain RuntimeErrors of what joins processes, and of older drivers

logger = logging.getLogger(__name__)


class Training:
    """The state of a run between two steps: model, optimizer, average, and what was measured since.

    Every process of ``group`` has one; the average is rank 0's alone. ``warm``: what earlier runs of this
    process have left, for one that trains alone.
    """

    def __init__(self, spec: FinetuneSpec, group: Group = ALONE, warm: ModelReuse | None = None) -> None:
        self.spec, self.group = spec, group
        self.device = device_of(spec)
        set_deterministic_kernels(spec, self.device)
        self.data = load_dataset(spec.data)
        check_images(spec, self.data)
        self._warm = warm if warm is not None and group.size == 1 else NoReuse()
        self.autoencoder = self._warm.model(spec, self.data.num_classes, self.device)
        self.auxiliary = self._warm.auxiliary(spec, self.data.num_classes, self.device)
        self.adversary: Adversary | None = None
        if spec.losses.adversarial > 0.0:
            assert group.size == 1, "the specs refuse it"
            self.adversary = Adversary(spec, self.autoencoder, self.device)
            self.auxiliary = replace(self.auxiliary, adversary=self.adversary.loss)
        set_memory_format(self.autoencoder, spec, self.device)
        if group.size > 1:
            check_rows_apart(self.autoencoder.train())
        self.optimizer = build_optimizer(self.autoencoder, spec.optimizer)
        half_life = None if group.rank else spec.ema_half_life_fraction
        self.average = None if half_life is None else WeightAverage(self.autoencoder, half_life * spec.max_steps)
        self.parameters = [p for param_group in self.optimizer.param_groups for p in param_group["params"]]
        train_frozen_cache, self._eval_frozen_cache = build_frozen_caches(self.autoencoder, spec, self.data, group.size)
        self.eval_sets = [EvalSet("val", self._subject(spec, self.data), self.data.val)]
        if self.data.replay is not None and spec.source_metrics():
            subject = self._subject(replay_run(spec), self.data.replay)
            self.eval_sets.append(EvalSet("val_source", subject, self.data.replay.val))
        self.step = 0
        self._terms: nn.Module = _Terms(self.autoencoder, self.auxiliary, spec, group, train_frozen_cache)
        self._joined = False
        self.start_window()

    def _subject(self, spec: FinetuneSpec, data: Dataset) -> EvalContext:
        of_all = (self.autoencoder, spec, self.auxiliary)
        return EvalContext(*of_all, data.train, self.device, data.anomalies, self._eval_frozen_cache)

    def start_window(self) -> None:
        """Measure from here on."""
        self._sums: dict[str, tuple[float, float]] = {}  # and over how many steps
        self.window_start, self.window_steps = time.monotonic(), 0

    def measured(self) -> dict[str, float]:
        """The mean of every ``train/*`` metric over those steps of the window in which it was there."""
        return {f"train/{name}": total / steps for name, (total, steps) in self._sums.items()}

    def train_to(self, step: int) -> None:
        """Take steps until ``step``, on rank 0; the others take them too.

        Raises:
            FtaeError: no loss term depends on anything that is trained, or the model cannot be trained by
                several processes.
            TrainingFailed: the loss or the gradient is not finite, or that of the discriminator.
        """
        if not self._joined:
            self._join()
        self.group.broadcast({"step": step, "rng": rng_state()})
        self._train_to(step)

    def follow(self) -> NoReturn:
        """Do as rank 0 does, for as long as there is one. Raises as ``train_to``."""
        self._join()
        while True:
            word = self.group.broadcast()
            set_rng_state(word["rng"])
            self._train_to(word["step"])

    def _join(self) -> None:
        self.group.join(self.device)
        start = self.group.broadcast({"step": self.step, "optimizer": self.optimizer.state_dict()})
        if self.group.rank > 0:
            self.step = start["step"]
            self.optimizer.load_state_dict(start["optimizer"])
        self._terms = self.group.wrapped(self._terms)
        self._joined = True

    def _train_to(self, step: int) -> None:
        buffers = Buffers(self.autoencoder) if self.group.size > 1 else None
        while self.step < step:
            self.train_step()
        if buffers is not None:
            buffers.check()

    def train_step(self) -> None:
        """One optimizer step over ``grad_accumulation`` batches. Raises as ``train_to``."""
        spec = self.spec
        if not self.autoencoder.training:  # to say so to every module each time would take as long as a small layer
            self.autoencoder.train()
        weights = weights_at(spec.losses, self.step / spec.max_steps)
        if self.adversary is not None:
            weights = self.adversary.ramped(weights, self.step / spec.max_steps)
        lr = set_lr(self.optimizer, spec, self.step)
        for parameter in self.parameters:
            parameter.grad = None
        parts = []
        for micro in range(spec.grad_accumulation):
            is_last = micro == spec.grad_accumulation - 1
            with nullcontext() if is_last else self.group.accumulating(self._terms):
                parts.append(self._backward(self.step * spec.grad_accumulation + micro, weights))
        if self.step == 0 and self.group.rank == 0:
            self._note_unreached()
        norm = self._check(["loss", *weights], parts)
        if spec.max_grad_norm is not None:
            self._clip(norm, spec.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        if self.adversary is not None:
            self._measure(self.adversary.step(self.step))
        self._measure({"grad_norm": norm, "lr": lr})
        self.step += 1
        self.window_steps += 1

    def _backward(self, number: int, weights: dict[str, float]) -> list[Tensor]:
        """Add the gradient of training batch ``number``; returns the loss and every term of it, not yet read."""
        spec = self.spec
        batch = training_batch(
            self.data,
            spec.data,
            batch_size=spec.batch_size,
            batch=number,
            seed=spec.seed,
            device=self.device,
            rows=self.group.rows(spec.batch_size),
        )
        terms, reconstruction = self._terms(batch, list(weights), self.step / spec.max_steps)
        if self.adversary is not None:
            self.adversary.show(self.autoencoder.to_range(batch.images), reconstruction)
            weights = self._balanced(self.adversary, terms, weights)
        loss = weighted_sum(terms, weights)
        if not loss.requires_grad:
            raise FtaeError(f"freeze leaves nothing to train that losses ({', '.join(weights)}) depend on")
        # By a factor, not as ``grad_tensors``: to compare shapes, torch imports sympy for a third of a second.
        torch.autograd.backward(loss if spec.grad_accumulation == 1 else loss / spec.grad_accumulation)
        return [part.detach() for part in (loss, *terms.values())]

    def _note_unreached(self) -> None:
        """Say which stages are called trained, and no gradient has reached."""
        stages = [(stage.name, list(stage.parameters())) for stage in self.autoencoder.trainable_stages()]
        still = [name for name, parameters in stages if parameters and all(p.grad is None for p in parameters)]
        if still:
            logger.warning("no gradient reaches %s: the losses of the first step do not depend on it", ", ".join(still))

    def _check(self, names: list[str], parts: list[list[Tensor]]) -> float:
        """Take note of the parts of each batch's loss; returns the norm of the gradient.

        All are read at once: a GPU is waited for once a step.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        *values, norm_value = torch.stack([*chain(*parts), norm]).tolist()
        means = iter(self.group.mean(values))
        for _ in parts:
            measured = {name: next(means) for name in names}
            if not math.isfinite(measured["loss"]):
                raise TrainingFailed(Reason.NON_FINITE_LOSS, self.step)
            self._measure(measured, share=1.0 / len(parts))
        if not math.isfinite(norm_value):
            raise TrainingFailed(Reason.NON_FINITE_GRADIENT, self.step)
        return float(norm_value)

    def _clip(self, norm: float, max_norm: float) -> None:
        if norm + 1e-6 > 0.999 * max_norm:  # else PyTorch would multiply by 1
            torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, torch.tensor(norm))

    def _balanced(self, adversary: Adversary, terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, float]:
        if TERM not in terms:
            return weights
        factor = adversary.balance(terms, weights)
        self._measure({"adaptive_weight": factor}, share=1.0 / self.spec.grad_accumulation)
        return {**weights, TERM: weights[TERM] * factor}

    def _measure(self, values: dict[str, float], share: float = 1.0) -> None:
        """Take note of what was measured in ``share`` of a step."""
        for name, value in values.items():
            total, steps = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + share * value, steps + share


class _Terms(nn.Module):
    """Forward pass (in bf16 where asked for), then every loss term in fp32: a module, so that it can be wrapped."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        auxiliary: AuxiliaryNetworks,
        spec: FinetuneSpec,
        group: Group,
        cache: FrozenFeatureCache,
    ) -> None:
        super().__init__()
        self.autoencoder, self.spec, self.group, self._frozen_cache = autoencoder, spec, group, cache
        self._auxiliary = auxiliary  # a plain object: their parameters are not this module's

    def forward(self, batch: Batch, names: list[str], progress: float) -> tuple[dict[str, Tensor], Tensor]:
        """The named terms, and the reconstructions without their gradient, fp32 in the model's range."""
        ae, spec = self.autoencoder, self.spec
        target = ae.to_range(batch.images)
        given = target if batch.inputs is batch.images else ae.to_range(batch.inputs)
        with precision(spec, batch.images.device):
            noise = self.group.randn_like if spec.sample_posterior else None
            encoding, reconstruction = self._frozen_cache.run(given, batch, noise)
            logits = ae.head(encoding.latents) if ae.head is not None else None
        reconstruction = reconstruction.float()
        inputs = LossInputs(
            target=target,
            reconstruction=reconstruction,
            target_unit=batch.images,
            reconstruction_unit=ae.to_unit(reconstruction),
            encoding=encoding,
            logits=None if logits is None else logits.float(),
            labels=batch.labels,
            autoencoder=ae,
            auxiliary=self._auxiliary,
            settings=spec.losses,
            progress=progress,
        )
        return loss_terms(inputs, names), reconstruction.detach()


@contextmanager
def configuration_fails(step: Callable[[], int]) -> Iterator[None]:
    """What is raised inside is the configuration's own fault, unless it is the machine's, or the user's to fix.

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
        if _is_of_machine(cause):
            raise cause from cause.__cause__
        raise TrainingFailed(f"raised {raised(cause)}", step()) from cause


def _is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the processor, where torch has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _is_of_machine(error: BaseException) -> bool:
    """Whether it may go well elsewhere or later: files, a GPU that fails, another process that is gone."""
    if isinstance(error, OSError | torch.AcceleratorError | torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)
