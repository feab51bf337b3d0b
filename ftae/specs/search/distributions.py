"""What the sampler may choose for one leaf; in a file ``{low, high, log, step, or_off}`` or ``{choices}``."""

from typing import Any

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from ftae.specs.reading.base import Spec
from ftae.specs.reading.problems import quoted, refusal


class Range(Spec):
    """A numeric range, both ends included; its values are floats or ints as the leaf is."""

    low: float | int
    """The smallest value."""
    high: float | int
    """The largest value."""
    log: bool = False
    """Sample uniformly in the logarithm."""
    step: float | int | None = None
    """Sample ``low + k * step`` only."""
    or_off: bool = False
    """The sampler first chooses whether the leaf is on. Off is 0, or null where the leaf takes no 0."""
    _off: float | int | None = PrivateAttr(default=None)

    @field_validator("high")
    @classmethod
    def _above_low(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get("low")
        if low is not None and high <= low:
            raise ValueError(f"must be greater than low ({quoted(low)}), got {quoted(high)}")
        return high

    @field_validator("log")
    @classmethod
    def _log_of_positive(cls, log: bool, info: ValidationInfo) -> bool:
        low = info.data.get("low")
        if log and low is not None and low <= 0:
            raise ValueError(f"a log range needs low > 0, got {quoted(low)}")
        return log

    @field_validator("step")
    @classmethod
    def _step_fits(cls, step: float | None, info: ValidationInfo) -> float | None:
        low, high = info.data.get("low"), info.data.get("high")
        if step is not None and info.data.get("log"):
            raise ValueError("has no meaning on a log range, drop one of the two")
        if step is not None and low is not None and high is not None and not 0 < step <= high - low:
            raise ValueError(f"must be greater than 0 and fit between low and high, got {quoted(step)}")
        return step

    def contains(self, value: Any) -> bool:
        """Whether the sampler may choose ``value``."""
        if self.is_off(value):
            return True
        if value is None or isinstance(value, (bool, str)) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        k = (value - self.low) / self.step
        return bool(abs(k - round(k)) < 1e-9)

    def corners(self) -> tuple[Any, ...]:
        """The values to try where not all can be tried."""
        return (self._off, self.low, self.high) if self.or_off else (self.low, self.high)

    @property
    def off(self) -> float | int | None:
        """The value of the leaf where it is off; known once the range was ``coerced`` to its leaf."""
        return self._off

    def is_off(self, value: Any) -> bool:
        """Whether ``value`` means that the leaf is off."""
        return self.or_off and value == self._off

    def with_off(self, off: float | int | None) -> "Range":
        """The same range with the value that means off."""
        result = self.model_copy()
        result._off = off
        return result


class Choices(Spec):
    """One of a list of values."""

    choices: tuple[Any, ...] = Field(min_length=2)
    """The values, all different."""

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [i for i, choice in enumerate(choices) if choice in choices[:i]]
        if twice:
            raise refusal(((i,), f"choices must differ, got {quoted(choices[i])} twice") for i in twice)
        return choices

    def contains(self, value: Any) -> bool:
        """Whether the sampler may choose ``value``."""
        return value in self.choices

    def corners(self) -> tuple[Any, ...]:
        """All values, since each of them can be tried."""
        return self.choices


Distribution = Range | Choices
