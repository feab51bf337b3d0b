"""What a search takes of its storage."""

from dataclasses import dataclass

from ftae.engine.artifacts import GRID_IMAGES, GRID_MIN_SIDE, KEPT
from ftae.errors import FtaeError
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.search import SearchSpec
from ftae.units import size

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
