"""What a trial gets of the cluster."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import quoted, refusal
from ftae.specs.search.distributions import Choices, Distribution, Range


class Resources(Spec):
    """What one worker process gets, and how many workers train a trial."""

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    """CPU cores of a worker."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """The GPU of a worker; a fraction shares it with other trials, without isolation of memory."""
    workers: Positive = 1
    """Workers that train a trial, each on its share of every batch."""
    gpus_per_trial: Annotated[Positive | None, Field(exclude=True)] = None
    """Short for ``gpus: 1`` and so many ``workers``."""

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, given: Any) -> Any:
        """Replace ``gpus_per_trial``; an invalid value stays where it is, and is reported there."""
        number = given.get("gpus_per_trial") if isinstance(given, dict) else None
        if type(number) is not int or number < 1:
            return given
        if beside := [key for key in ("gpus", "workers") if key in given]:
            rule = f"stands for gpus: 1 and workers: {number}, leave out {' and '.join(beside)}"
            raise refusal([(("gpus_per_trial",), rule)])
        return {**given, "gpus": 1, "workers": number, "gpus_per_trial": None}

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_number(cls, value: int | None) -> int | None:
        if value is not None:  # it was text or a boolean, which pydantic takes for a number
            raise ValueError("must be a whole number")
        return value

    @field_validator("gpus")
    @classmethod
    def _at_most_one(cls, gpus: float) -> float:
        if gpus > 1:
            raise ValueError(
                f"must be at most 1, the share of one process, got {gpus:g}; "
                "gpus_per_trial (or workers) trains a trial on several"
            )
        return gpus

    @field_validator("workers")
    @classmethod
    def _share_no_gpu(cls, workers: int, info: ValidationInfo) -> int:
        gpus = info.data.get("gpus", 0.0)
        if workers > 1 and 0.0 < gpus < 1.0:
            raise ValueError(f"must be 1 where a trial gets a fraction of a GPU (gpus: {gpus:g}), got {workers}")
        return workers

    def unshareable(self, batch_size: int, searched: Distribution | None) -> list[str]:
        """Why the workers cannot take equal shares of every batch; an empty list where they can.

        ``searched`` is the distribution of ``batch_size`` in the search space, if it has one.
        """
        workers = self.workers
        if isinstance(searched, Range):
            even = searched.low % workers == 0 and (searched.step or 1) % workers == 0
            span = f"{quoted(searched.low)} .. {quoted(searched.high)}, step {quoted(searched.step or 1)}"
            rule = f"{workers} workers cannot share every batch_size of {span} evenly, use multiples of {workers}"
            return [] if even else [rule]
        sizes = searched.choices if isinstance(searched, Choices) else (batch_size,)
        return [f"{workers} workers cannot share batch_size {size} evenly" for size in sizes if size % workers]
