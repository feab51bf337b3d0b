"""What a run takes on the machine it is on: a few real steps and an evaluation of some images, measured."""

import platform
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import median

import torch

from ftae.engine.estimate import Probe
from ftae.engine.evaluation import Judged, Judging
from ftae.engine.freed_memory import give_back_freed_memory
from ftae.engine.parallel import ALONE, Group
from ftae.engine.training import Training, configuration_fails
from ftae.engine.warm import Warm
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.metrics import METRICS

TIMED_STEPS = 3
TIMED_SECONDS = 0.5  # no further step is begun after that
SHOWN_SECONDS = 2.0  # about so long are images evaluated
PROCESS = Path("/proc/self")  # what Linux knows of this process


def probe(spec: FinetuneSpec, group: Group = ALONE, warm: Warm | None = None) -> Probe:
    """Train one step to warm up and a few that are timed, then evaluate some images; nothing is written.

    ``warm``: what the process keeps for the runs that follow.

    Raises:
        FtaeError: the spec cannot be run (see ``Training``).
        TrainingFailed: non-finite loss or gradient, out of memory, or what the model raised.
    """
    _forget_peak()
    spec = spec.model_copy(update={"discriminator": spec.discriminator.from_the_start()})
    with configuration_fails(step=lambda: 0):
        training = Training(spec, group, warm)
    with configuration_fails(step=lambda: training.step):
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
    with training.average.applied() if training.average is not None else nullcontext():
        return sum(_seconds_of(part, training) for part in training.judged)


def _seconds_of(part: Judged, training: Training) -> float:
    """Of one evaluation, measured on as many images as are shown in ``SHOWN_SECONDS``, after a batch to warm up.

    In whole batches: those of the cached prefix are rounded as the run's own will be.
    """
    batch = training.spec.batch_size
    count = max(METRICS[metric].least_images for metric in part.subject.spec.metrics)
    count = -(-count // batch) * batch
    _, shown, _ = _seconds_of_parts(part.few(count), training.device)
    few = part.few(max(count, int(count * SHOWN_SECONDS / shown) // batch * batch))
    before, shown, after = _seconds_of_parts(few, training.device)
    return before + shown * len(part) / len(few) + after


def _seconds_of_parts(part: Judged, device: torch.device) -> tuple[float, float, float]:
    """What comes before the images are shown, showing them, and what comes after."""
    judging: list[Judging] = []
    before = _timed(lambda: judging.append(Judging(part.subject, part.images)), device)
    return before, _timed(judging[0].show, device), _timed(judging[0].results, device)


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
