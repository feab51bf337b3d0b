"""What the sampler may choose for one leaf; in a file ``{low, high, log, step, or_off}`` or ``{choices}``."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from ftae.specs.reading.base import Spec
from ftae.specs.reading.overrides import Leaf, apply_overrides, leaf, value_at
from ftae.specs.reading.problems import dotted, problems, quoted, refusal
from ftae.specs.reading.schema import Location
from ftae.specs.search.conditions import drop_inactive, has_effect


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


def coerced(spec: Spec, path: str, distribution: Distribution) -> Distribution:
    """``distribution`` with every bound and choice converted to the type of the leaf of ``spec`` at ``path``.

    Raises:
        FtaeError: there is no such leaf.
        pydantic.ValidationError: the leaf or the whole spec refuses a value, or the spec's own value (of the first
            configuration tried) lies outside.
    """
    result = typed(spec, path, distribution)
    found = []
    for value in result.corners():
        found += [f"with {quoted(value)}: {reason}" for reason in validation_errors(spec, {path: value})]
    own = value_at(spec, path)
    if has_effect(spec, path, {}) and not result.contains(own):
        found.append(f"must contain finetune's own value ({quoted(own)}), the first configuration tried")
    if found:
        raise refusal(((), rule) for rule in found)
    return result


def typed(spec: Spec, path: str, distribution: Distribution) -> Distribution:
    """``coerced`` without the check that the spec would be valid, for a distribution that was checked before."""
    target = leaf(spec, path)
    if isinstance(distribution, Choices):
        return _coerced_choices(target, distribution)
    return _coerced_range(target, distribution)


def validation_errors(spec: Spec, values: Mapping[str, Any]) -> list[str]:
    """Why ``spec`` would not be valid with these leaves replaced; an empty list where it would.

    As in a trial, values that have no effect beside the others are left out.
    """
    try:
        apply_overrides(spec, drop_inactive(spec, values))
    except ValidationError as error:
        return [f"{dotted(location)}: {rule}" for location, rule in problems(type(spec), error)]
    return []


def _coerced_choices(target: Leaf, distribution: Choices) -> Choices:
    values: dict[Location, Any] = {("choices", i): choice for i, choice in enumerate(distribution.choices)}
    return Choices(choices=tuple(_coerced_values(target, values)))


def _coerced_range(target: Leaf, given: Range) -> Range:
    number = target.number_type()
    if number is None:
        raise refusal([((), "low and high need a numeric leaf, list its values as {choices: [...]}")])
    low, high = _coerced_values(target, {("low",): given.low, ("high",): given.high})
    step = None if given.step is None else _coerced_values(Leaf(number), {("step",): given.step})[0]
    result = Range(low=low, high=high, log=given.log, step=step, or_off=given.or_off)
    return result.with_off(_off(target, result)) if result.or_off else result


def _off(target: Leaf, given: Range) -> Any:
    """The value that means off: 0, or None where the leaf takes no 0."""
    for off in (0, None):
        try:
            value = target.coerce(off)
        except ValidationError:
            continue
        if off is not None and given.low <= off <= given.high:
            raise refusal(
                [(("low",), f"must be above 0, which is the value of or_off for off, got {quoted(given.low)}")]
            )
        return value
    raise refusal([(("or_off",), "needs a leaf that may be 0 or null; this one may be neither")])


def _coerced_values(target: Leaf, values: Mapping[Location, Any]) -> list[Any]:
    result, found = [], []
    for location, value in values.items():
        try:
            result.append(target.coerce(value))
        except ValidationError as error:
            found += [((*location, *inner), rule) for inner, rule in problems(target.annotation, error)]
    if found:
        raise refusal(found)
    return result
