"""What the sampler may choose for one leaf. In a file: ``{low, high, log, step}`` or ``{choices}``."""

from typing import Any

from pydantic import Field, model_validator

from ftae.specs.base import Spec


class Range(Spec):
    """A numeric range, both ends included; a float or an int range by the leaf it is for.

    ``log``: sample uniformly in the logarithm. ``step``: only ``low + k * step``.
    """

    low: float | int
    high: float | int
    log: bool = False
    step: float | int | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low must be less than high, got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0, got {self.low:g}")
        if self.step is not None and self.log:
            raise ValueError("step has no meaning on a log range; drop one of the two")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step must be above 0 and fit between low and high, got {self.step:g}")
        return self

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is a number this range can give."""
        if value is None or isinstance(value, (bool, str)) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        k = (value - self.low) / self.step
        return bool(abs(k - round(k)) < 1e-9)


class Choices(Spec):
    """One of a list of values."""

    choices: tuple[Any, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _distinct(self) -> "Choices":
        for i, choice in enumerate(self.choices):
            if choice in self.choices[:i]:
                raise ValueError(f"choices must differ, got {choice!r} twice")
        return self

    def contains(self, value: Any) -> bool:
        return value in self.choices


Distribution = Range | Choices
