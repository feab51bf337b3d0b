"""What a run takes: parameters and bytes by its configuration, seconds and memory by a few measured steps."""

import gc
import math
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.data.sources import num_images
from ftae.engine.frozen_cache.plan import FrozenCachePlan, plan_frozen_caches
from ftae.engine.models import staged_model
from ftae.engine.models.families import build_model, check_shapes
from ftae.engine.objectives.auxiliary import check_weights
from ftae.engine.process import give_back_freed_memory
from ftae.engine.tasks.discriminator import discriminator_of
from ftae.engine.tasks.task import build_optimizer
from ftae.engine.training.evaluator import EvalSet, EvaluationPass
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Trainer, configuration_fails
from ftae.errors import Reason, TrainingFailed
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import duration, size


@dataclass(frozen=True)
class StageSummary:
    """One stage. ``new`` and ``idle`` as in ``Stage``, but no stage is new where there is no pretrained model.

    ``num_trainable``: the parameters to train; ``num_came_frozen``: those that the module itself has frozen.
    """

    name: str
    group: staged_model.Group
    num_parameters: int
    num_trainable: int
    num_came_frozen: int
    trainable: bool
    new: bool
    idle: bool


@dataclass(frozen=True)
class ModelSummary:
    """What a configuration trains.

    ``discriminator``: its stages; empty where the run has none. ``checkpoint_bytes``: the size of one full-state
    checkpoint on disk. ``num_latents``: the numbers that one image
    is encoded into. ``codebooks``: the number of codes of each; ``gradient_codebooks``: whether they are trained by
    gradient, not as a moving average. ``frozen_cache``: what would be cached, for an approximate number of images.
    """

    stages: tuple[StageSummary, ...]
    discriminator: tuple[StageSummary, ...]
    checkpoint_bytes: int
    num_latents: int
    codebooks: tuple[int, ...]
    gradient_codebooks: bool
    frozen_cache: FrozenCachePlan

    @property
    def num_parameters(self) -> int:
        return sum(stage.num_parameters for stage in self.stages)

    @property
    def num_trainable(self) -> int:
        return sum(stage.num_trainable for stage in self.stages)

    @property
    def new_stages(self) -> list[str]:
        return [stage.name for stage in self.stages if stage.new]


def summarize(spec: FinetuneSpec, num_classes: int | None) -> ModelSummary:
    """Build the model of ``spec`` and summarize what would be trained. Raises as ``build_model``."""
    check_weights(spec)
    autoencoder = build_model(spec, num_classes)
    build_optimizer(autoencoder, spec.optimizer)  # a multiplier that matches nothing is an error here
    stages = _summaries(autoencoder, pretrained=spec.model.pretrained is not None)
    discriminator = discriminator_of(spec) if spec.losses.adversarial > 0.0 else None
    num_trainable = sum(stage.num_trainable for stage in stages)
    state = sum(t.numel() * t.element_size() for t in autoencoder.state_dict().values())
    copies = {"sgd": 1 if spec.optimizer.momentum else 0}.get(spec.optimizer.name, 2)
    copies += spec.ema_half_life_fraction is not None
    state += 0 if discriminator is None else _discriminator_bytes(spec, discriminator)
    if discriminator is not None:
        build_optimizer(discriminator, spec.discriminator.optimizer(), section="discriminator")
    encoding = check_shapes(autoencoder, spec, num_classes)
    return ModelSummary(
        stages,
        ()
        if discriminator is None
        else _summaries(discriminator, pretrained=spec.discriminator.pretrained is not None),
        checkpoint_bytes=state + 4 * num_trainable * copies,
        num_latents=encoding.latents.numel(),
        codebooks=tuple(codes.num_codes for codes in encoding.codes),
        gradient_codebooks=any(codes.codebook is not None for codes in encoding.codes),
        frozen_cache=plan_frozen_caches(autoencoder, spec, lambda: num_images(spec.data)),
    )


def _summaries(model: staged_model.StagedModel, *, pretrained: bool) -> tuple[StageSummary, ...]:
    trainable = model.trainable_stages()
    return tuple(
        StageSummary(
            stage.name,
            stage.group,
            num_parameters=_count(stage.parameters()),
            num_trainable=_count(p for p in stage.parameters() if p.requires_grad),
            num_came_frozen=_count(filter(model.came_frozen, stage.parameters())),
            trainable=stage in trainable,
            new=stage.new and pretrained,
            idle=stage.idle,
        )
        for stage in model.stages
    )


def _discriminator_bytes(spec: FinetuneSpec, discriminator: nn.Module) -> int:
    """Its bytes in a checkpoint: its weights, the two averages of its optimizer, its pools."""
    weights: list[Tensor] = list(discriminator.state_dict().values())
    pools = 2 * spec.discriminator.pool_size * math.prod(spec.data.shape) if spec.model.both_ways else 0
    return 3 * sum(t.numel() * t.element_size() for t in weights) + 4 * pools


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


@dataclass(frozen=True)
class Probe:
    """The time and memory that a configuration took on one machine, measured over a few steps.

    ``eval_seconds``: for all validation images, extrapolated from some of them. ``peak_bytes``: on a GPU the peak of
    the memory that PyTorch reserved, on the CPU the largest resident set of the process. ``memory_bytes``: the memory
    of the GPU; None on the CPU. ``device``: the name of the GPU, or ``cpu``. ``node``: the name of the machine.
    ``checkpoint_stages``: whether activations were computed again.
    """

    step_seconds: float
    eval_seconds: float
    peak_bytes: int
    memory_bytes: int | None
    device: str
    node: str
    checkpoint_stages: bool = False

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Probe | None":
        """The probe in a journal; None where another version of ftae measured other things."""
        try:
            return cls(**stored)
        except TypeError:
            return None

    def __str__(self) -> str:
        how = ", activations computed again: checkpoint_stages" if self.checkpoint_stages else ""
        return f"a step {duration(self.step_seconds)}, peak memory {size(self.peak_bytes)} ({self.device}{how})"


def trial_seconds(probe: Probe, spec: FinetuneSpec) -> float:
    """The estimated seconds of a whole run of the probed configuration."""
    return spec.max_steps * probe.step_seconds + (1 + spec.num_evals) * probe.eval_seconds


TIMED_STEPS = 3
TIMED_SECONDS = 0.5  # no further step begins after that
MEASURED_SECONDS = 2.0  # about the time for which images are evaluated
PROCESS = Path("/proc/self")  # what Linux knows about this process


def probe(spec: FinetuneSpec, reuse: ModelReuse | None = None) -> Probe:
    """Train one step to warm up and a few timed ones, then evaluate some images; nothing is written.

    With ``checkpoint_stages: auto``, a run that is out of memory is tried again with activations computed again.

    ``reuse``: networks that the process keeps for later runs.

    Raises:
        FtaeError: the spec cannot be run (see ``Trainer``).
        TrainingFailed: non-finite loss or gradient, out of memory, or what the model raised.
    """
    try:
        return _probe(spec, reuse)
    except TrainingFailed as failure:
        if not (failure.reason == Reason.OUT_OF_MEMORY and spec.checkpoint_stages == "auto"):
            raise
    return _probe(spec.model_copy(update={"checkpoint_stages": True}), reuse)


def _probe(spec: FinetuneSpec, reuse: ModelReuse | None) -> Probe:
    _forget_peak()
    spec = spec.model_copy(update={"discriminator": spec.discriminator.from_the_start()})
    with configuration_fails(step=lambda: 0):
        trainer = Trainer(spec, reuse=reuse)
    with configuration_fails(step=lambda: trainer.step):
        step_seconds = _step_seconds(trainer)
        eval_seconds = _eval_seconds(trainer)
    device = trainer.device
    on_gpu = device.type == "cuda"
    return Probe(
        step_seconds=step_seconds,
        eval_seconds=eval_seconds,
        peak_bytes=torch.cuda.max_memory_reserved(device) if on_gpu else _peak_resident_bytes(),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        node=platform.node(),
        checkpoint_stages=spec.checkpoint_stages is True,
    )


def _step_seconds(trainer: Trainer) -> float:
    times: list[float] = []
    last = min(1 + TIMED_STEPS, trainer.spec.max_steps)
    with closing(trainer.batches_until(last)) as batches:
        while trainer.step < last and sum(times[1:]) < TIMED_SECONDS:
            times.append(_timed(lambda: trainer.train_step(batches), trainer.device))
    return median(times[1:] or times)


def _eval_seconds(trainer: Trainer) -> float:
    with trainer.averaged():
        return sum(_seconds_of(eval_set, trainer) for eval_set in trainer.eval_sets)


def _seconds_of(eval_set: EvalSet, trainer: Trainer) -> float:
    """The seconds of one evaluation, extrapolated from as many images as ``MEASURED_SECONDS`` allow.

    Images come in whole batches, so that cached frozen features have the digits that the run itself will compute.
    """
    batch = trainer.spec.batch_size
    least = max(METRICS[metric].least_images for metric in eval_set.context.spec.metrics)
    number = -(-least // batch) * batch
    _, warm_up, _ = _seconds_by_phase(eval_set.first(number), trainer.device)
    few = eval_set.first(max(number, int(number * MEASURED_SECONDS / warm_up) // batch * batch))
    preparation, images, results = _seconds_by_phase(few, trainer.device)
    return preparation + images * len(eval_set) / len(few) + results


def _seconds_by_phase(eval_set: EvalSet, device: torch.device) -> tuple[float, float, float]:
    """The seconds of the preparation, of the pass over the images, and of the results."""
    passes: list[EvaluationPass] = []
    preparation = _timed(lambda: passes.append(EvaluationPass(eval_set.context, eval_set.images)), device)
    return preparation, _timed(passes[0].run, device), _timed(passes[0].results, device)


def _timed(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Reset the memory peaks to the current use, as far as the system can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    give_back_freed_memory()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def _peak_resident_bytes() -> int:
    if not PROCESS.exists():  # macOS, which counts bytes here
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = (line.split() for line in (PROCESS / "status").read_text().splitlines())
    return next(1024 * int(fields[1]) for fields in lines if fields[0] == "VmHWM:")
