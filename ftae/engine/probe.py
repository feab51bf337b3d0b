"""What a run takes on the machine it is on: a few real steps and one evaluated batch, measured."""

import math
import platform
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from ftae.engine.evaluation import evaluate_all
from ftae.engine.freed_memory import give_back_freed_memory
from ftae.engine.parallel import ALONE, Group
from ftae.engine.training import Training, out_of_memory_fails
from ftae.engine.warm import Warm
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.search import Asha, SearchSpec
from ftae.units import duration, size

TIMED_STEPS = 3
TIMED_SECONDS = 0.5  # no further step is begun after that
PROCESS = Path("/proc/self")  # what Linux knows of this process


@dataclass(frozen=True)
class Probe:
    """What a configuration took on one machine, measured over a few steps.

    ``eval_seconds`` is of all validation images, estimated from one batch of them. ``peak_bytes``: on a GPU
    the most of its memory that PyTorch had reserved, on the CPU the largest resident set of the process.
    ``memory_bytes``: the memory of the GPU; None on the CPU. ``device``: the name of the GPU, or ``cpu``.
    ``node``: the name of the machine.
    """

    step_seconds: float
    eval_seconds: float
    peak_bytes: int
    memory_bytes: int | None
    device: str
    node: str

    def __str__(self) -> str:
        return f"a step {duration(self.step_seconds)}, peak memory {size(self.peak_bytes)} ({self.device})"


def probe(spec: FinetuneSpec, group: Group = ALONE, warm: Warm | None = None) -> Probe:
    """Train one step to warm up and a few that are timed, then evaluate a batch; nothing is written.

    ``warm``: what the process keeps for the runs that follow.

    Raises:
        FtaeError: the spec cannot be run (see ``Training``).
        TrainingFailed: non-finite loss or gradient, or out of memory.
    """
    _forget_peak()
    spec = spec.model_copy(update={"discriminator": spec.discriminator.from_the_start()})
    with out_of_memory_fails(step=lambda: 0):
        training = Training(spec, group, warm)
    with out_of_memory_fails(step=lambda: training.step):
        step_seconds = _step_seconds(training)
        eval_seconds = _eval_seconds(training)
    device = training.device
    on_gpu = device.type == "cuda"
    return Probe(
        step_seconds=step_seconds,
        eval_seconds=eval_seconds,
        peak_bytes=torch.cuda.max_memory_reserved(device) if on_gpu else _peak_resident_bytes(),
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        node=platform.node(),
    )


def _step_seconds(training: Training) -> float:
    times: list[float] = []
    while training.step < min(1 + TIMED_STEPS, training.spec.max_steps) and sum(times[1:]) < TIMED_SECONDS:
        times.append(_timed(lambda: training.train_to(training.step + 1), training.device))
    return median(times[1:] or times)


def _eval_seconds(training: Training) -> float:
    few = [part.few(training.spec.batch_size) for part in training.judged]
    share = sum(map(len, few)) / sum(map(len, training.judged))

    def evaluate_batch() -> None:
        evaluate_all(few)

    with training.average.applied() if training.average is not None else nullcontext():
        times = [_timed(evaluate_batch, training.device) for _ in range(2)]
    return min(times) / share


def _timed(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Have the peaks begin at what is held now, as far as the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    give_back_freed_memory()
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def _peak_resident_bytes() -> int:
    if not PROCESS.exists():  # macOS, which counts bytes here
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = (line.split() for line in (PROCESS / "status").read_text().splitlines())
    return next(1024 * int(fields[1]) for fields in lines if fields[0] == "VmHWM:")


def trial_seconds(probe: Probe, spec: FinetuneSpec) -> float:
    """Seconds that a whole run of the probed configuration takes."""
    return spec.max_steps * probe.step_seconds + (1 + spec.num_evals) * probe.eval_seconds


def search_seconds(probe: Probe, spec: SearchSpec, at_a_time: int) -> float:
    """Seconds that a search takes if exactly one in ``reduction_factor`` trials goes on at each rung."""
    scheduler, budget = spec.search.scheduler, spec.finetune.max_steps
    factor = scheduler.reduction_factor if isinstance(scheduler, Asha) else 1.0
    steps = [0, *spec.rung_steps(), budget]
    mean_steps = sum((end - start) / factor**i for i, (start, end) in enumerate(pairwise(steps)))
    return trial_seconds(probe, spec.finetune) * mean_steps / budget * spec.search.num_trials / at_a_time


def expected_seconds(probe: Probe, spec: SearchSpec, from_step: int, to_step: int) -> float:
    """Seconds from a report at ``from_step`` to the next at ``to_step``, for the largest images and batches searched.

    An estimate: what else is searched (the model, what is frozen) may make it a few times as long.
    """
    seconds = (to_step - from_step) * probe.step_seconds * _growth(spec, "batch_size", "grad_accumulation")
    return (seconds + probe.eval_seconds) * _growth(spec, "data.resolution") ** 2


def _growth(spec: SearchSpec, *paths: str) -> float:
    """How many times its own value the largest value searched of each leaf is, multiplied."""
    searched = {path: own for path, own in spec.file_params().items() if path in paths}
    return float(math.prod(max(spec.search_space[path].corners()) / own for path, own in searched.items()))
