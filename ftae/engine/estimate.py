"""What a few measured steps say of whole runs and searches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ftae.specs.finetune import FinetuneSpec
from ftae.specs.search import Asha, SearchSpec
from ftae.units import duration, size


@dataclass(frozen=True)
class Probe:
    """What a configuration took on one machine, measured over a few steps.

    ``eval_seconds`` is of all validation images, estimated from some of them. ``peak_bytes``: on a GPU
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

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Probe | None":
        """What a journal holds of one; None where another version of ftae measured other things."""
        try:
            return cls(**stored)
        except TypeError:
            return None

    def __str__(self) -> str:
        return f"a step {duration(self.step_seconds)}, peak memory {size(self.peak_bytes)} ({self.device})"


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
