"""Estimates for a whole search: seconds and bytes of storage; and whether all its models can be built."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ftae.engine.models.families import build_model
from ftae.engine.run_folder import CELLS, CELLS_OF_PAIRS, GRID_IMAGES, GRID_MIN_SIDE, GRID_SAMPLES, KEPT
from ftae.engine.sizing import ModelSummary, Probe, summarize, trial_seconds
from ftae.engine.tasks.discriminator import discriminator_of
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import size_of
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import apply_overrides
from ftae.specs.search.search import SearchSpec
from ftae.wording import size


def search_seconds(probe: Probe, spec: SearchSpec, at_a_time: int) -> float:
    """Seconds that a search takes if its scheduler stops as many trials as it is expected to."""
    full_trials = spec.expected_budget() + spec.search.confirm.num_runs
    return trial_seconds(probe, spec.finetune) * full_trials / at_a_time


def search_hours(probe: Probe, spec: SearchSpec) -> str:
    """What a search takes of the resources that it reserves: ``3.2 GPU hours``; CPU hours where it reserves no GPU."""
    resources = spec.search.resources
    full_trials = spec.expected_budget() + spec.search.confirm.num_runs
    hours = trial_seconds(probe, spec.finetune) * full_trials * resources.workers / 3600.0
    hours *= resources.gpus or resources.cpus
    number = f"{hours:,.0f}" if hours >= 9.95 else f"{hours:.2g}"
    return f"{number} {'GPU' if resources.gpus else 'CPU'} hours"


def longest_report_seconds(probe: Probe, spec: SearchSpec) -> float:
    """The most seconds from one report of a trial to the next, for the largest images and batches of the space.

    An estimate: other searched leaves (the model, the frozen stages) may make it a few times as long.
    """
    steps = max(end - start for start, end in pairwise([0, *spec.finetune.eval_steps()]))
    seconds = steps * probe.step_seconds * _growth(spec, "batch_size", "grad_accumulation")
    return (seconds + probe.eval_seconds) * _pixel_growth(spec)


def _growth(spec: SearchSpec, *paths: str) -> float:
    """Product over ``paths`` of (largest searched value / the file's own value)."""
    searched = {path: own for path, own in spec.file_params().items() if path in paths}
    return float(math.prod(max(spec.search_space[path].corners()) / own for path, own in searched.items()))


def _pixel_growth(spec: SearchSpec) -> float:
    """The pixels of the largest images that are searched, over those of the file's own."""
    searched = spec.search_space.get("data.resolution")
    sizes = [] if searched is None else [size_of(resolution) for resolution in searched.corners()]
    return max([1.0, *(math.prod(size) / math.prod(spec.finetune.data.size) for size in sizes)])


GB = 1e9


@dataclass(frozen=True)
class Space:
    """Bytes of storage that a search takes to its end, and that each trial takes in addition while it runs."""

    lasting: int
    per_running_trial: int

    def total(self, at_a_time: int) -> int:
        """The most bytes at any time, with ``at_a_time`` trials running."""
        return self.lasting + at_a_time * self.per_running_trial


def space_needed(spec: SearchSpec, checkpoint_bytes: int) -> Space:
    """An upper bound; ``checkpoint_bytes``: size of one checkpoint."""
    settings, run = spec.search, spec.finetune
    checkpoints = settings.keep_checkpoints * checkpoint_bytes
    pictures = (_most_pictures(spec) + settings.confirm.num_runs * (run.num_evals + 1)) * _picture_bytes(run)
    if spec.tracking.uri is None:  # MLflow's embedded store is in the storage, too, and copies them
        checkpoints, pictures = checkpoints + checkpoint_bytes, 2 * pictures
    # A new checkpoint is complete before the oldest is removed.
    return Space(checkpoints + pictures, (KEPT + 1) * checkpoint_bytes)


def _most_pictures(spec: SearchSpec) -> int:
    """One for each trial before its first step, and one for each evaluation; the baseline counts as a trial."""
    num_trials, budget = spec.search.num_trials, spec.search.budget
    full_trainings = num_trials if budget is None else min(num_trials, budget)
    return num_trials + 1 + math.ceil((full_trainings + 1) * spec.finetune.num_evals)


def _picture_bytes(run: FinetuneSpec) -> int:
    """Size of one picture of reconstructions as if PNG did not compress.

    Enlarged pixels compress along one side.
    """
    enlarged = 2 if min(run.data.size) < GRID_MIN_SIDE else 1
    cells = GRID_IMAGES * (CELLS_OF_PAIRS if run.data.paired or run.data.unpaired else CELLS)
    cells = GRID_SAMPLES if run.model.takes_noise else cells
    return cells * math.prod(run.data.shape) * enlarged


def check_quota(spec: SearchSpec, needed: int) -> None:
    """Compare the bytes that a search takes with ``search.max_storage_gb``.

    Raises:
        FtaeError: the search takes more.
    """
    quota = spec.search.max_storage_gb
    if quota is not None and needed > quota * GB:
        raise FtaeError(
            f"search.max_storage_gb: {quota:g} GB are allowed, the search takes about {size(needed)}. "
            f"Allow more, or {LOWER}"
        )


LOWER = "lower search.keep_checkpoints, search.max_concurrent, search.num_trials or finetune.num_evals"


def check_search(search: SearchSpec, num_classes: int | None) -> ModelSummary:
    """Build the file's own model, and one for each end of every range that shapes or freezes it.

    Returns the summary of the file's own model, with a discriminator if any trial may have one.

    Raises:
        FtaeError: a model cannot be built; the message names the leaf and the value.
    """
    weights = search.search_space.get("losses.adversarial")
    changes = {} if weights is None else {"losses.adversarial": max(weights.corners())}
    summary = summarize(apply_overrides(search.finetune, changes), num_classes)
    for path, distribution in search.search_space.items():
        section = path.split(".")[0]
        if section not in ("model", "freeze", "freeze_depth", "discriminator"):
            continue
        for value in distribution.corners():
            try:
                trial = search.trial_spec({path: value})
                if section != "discriminator":
                    build_model(trial, num_classes)
                elif trial.losses.adversarial > 0.0:
                    discriminator_of(trial)
            except FtaeError as error:
                raise FtaeError(f"search_space.{path}: with {value!r}: {error}") from error
    return summary
