"""What a whole search takes: seconds, bytes of storage, and models that can all be built."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ftae.engine.models.families import build_model
from ftae.engine.run_folder import GRID_IMAGES, GRID_MIN_SIDE, KEPT
from ftae.engine.sizing.probe import Probe, trial_seconds
from ftae.engine.sizing.summary import ModelSummary, summarize
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import apply_overrides
from ftae.specs.search.search import SearchSpec
from ftae.specs.search.settings import Asha
from ftae.wording import size


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


GB = 1e9


@dataclass(frozen=True)
class Space:
    """Bytes: what stays of a search at its end, and what each trial takes besides while it runs."""

    lasting: int
    per_running_trial: int

    def total(self, at_a_time: int) -> int:
        """The most that is taken with so many trials at a time."""
        return self.lasting + at_a_time * self.per_running_trial


def space_needed(spec: SearchSpec, checkpoint_bytes: int) -> Space:
    """What the search of ``spec`` takes at most; ``checkpoint_bytes`` of one checkpoint."""
    settings, run = spec.search, spec.finetune
    checkpoints = settings.keep_checkpoints * checkpoint_bytes
    pictures = (settings.num_trials + 1) * (run.num_evals + 1) * _picture_bytes(run)
    if spec.tracking.uri is None:  # the embedded store lies in the storage, too, with copies
        checkpoints, pictures = checkpoints + checkpoint_bytes, 2 * pictures
    # A new checkpoint is complete before the oldest is removed.
    return Space(checkpoints + pictures, (KEPT + 1) * checkpoint_bytes)


def _picture_bytes(run: FinetuneSpec) -> int:
    """Of one picture of reconstructions, three cells an image, as if PNG compressed nothing but what it enlarges."""
    enlarged = 2 if run.data.resolution < GRID_MIN_SIDE else 1
    return 3 * GRID_IMAGES * run.data.channels * run.data.resolution**2 * enlarged


def check_quota(spec: SearchSpec, needed: int) -> None:
    """Hold the bytes that a search takes against ``search.max_storage_gb``.

    Raises:
        FtaeError: they are more.
    """
    quota = spec.search.max_storage_gb
    if quota is not None and needed > quota * GB:
        raise FtaeError(
            f"search.max_storage_gb: {quota:g} GB are allowed, the search takes about {size(needed)}. "
            f"Allow more, or {LOWER}"
        )


LOWER = "lower search.keep_checkpoints, search.max_concurrent, search.num_trials or finetune.num_evals"


def check_search(search: SearchSpec, num_classes: int | None) -> ModelSummary:
    """Build the base configuration, and the ends of every range that shapes or freezes the model.

    Returns the summary of the base configuration, with a discriminator if any trial may have one.

    Raises:
        FtaeError: one of them cannot be built; the message names the leaf and the value.
    """
    most = search.search_space.get("losses.adversarial")
    with_all = {} if most is None else {"losses.adversarial": max(most.corners())}
    summary = summarize(apply_overrides(search.finetune, with_all), num_classes)
    for path, distribution in search.search_space.items():
        if path.split(".")[0] not in ("model", "freeze", "freeze_depth"):
            continue
        for value in distribution.corners():
            try:
                build_model(search.trial_spec({path: value}), num_classes)
            except FtaeError as error:
                raise FtaeError(f"search_space.{path}: with {value!r}: {error}") from error
    return summary
