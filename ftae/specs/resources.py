"""What a trial runs on."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.base import Positive, Spec
from ftae.specs.distributions import Choices, Distribution, Range
from ftae.specs.problems import refusal, shown


class Resources(Spec):
    """What one worker process gets, and how many of them train a trial, each on its share of every batch.

    A fraction of a GPU shares it (memory is not isolated). ``gpus_per_trial: N`` is short for
    ``{gpus: 1, workers: N}``.
    """

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    workers: Positive = 1
    gpus_per_trial: Annotated[Positive | None, Field(exclude=True)] = None

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, given: Any) -> Any:
        """``gpus_per_trial`` written out; a wrong value stays where it is, to be named there."""
        number = given.get("gpus_per_trial") if isinstance(given, dict) else None
        if type(number) is not int or number < 1:
            return given
        if beside := [key for key in ("gpus", "workers") if key in given]:
            rule = f"stands for gpus: 1 and workers: {number}, leave out {' and '.join(beside)}"
            raise refusal([(("gpus_per_trial",), rule)])
        return {**given, "gpus": 1, "workers": number, "gpus_per_trial": None}

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_number(cls, left: int | None) -> int | None:
        if left is not None:  # text or a boolean, which pydantic would take for a number
            raise ValueError("must be a whole number")
        return left

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
        """Why the workers cannot take equal shares of every batch; nothing where they can.

        ``searched``: what the sampler may choose for ``batch_size``, if it may.
        """
        workers = self.workers
        if isinstance(searched, Range):
            even = searched.low % workers == 0 and (searched.step or 1) % workers == 0
            span = f"{shown(searched.low)} .. {shown(searched.high)}, step {shown(searched.step or 1)}"
            rule = f"{workers} workers cannot share every batch_size of {span} evenly, use multiples of {workers}"
            return [] if even else [rule]
        sizes = searched.choices if isinstance(searched, Choices) else (batch_size,)
        return [f"{workers} workers cannot share batch_size {size} evenly" for size in sizes if size % workers]
