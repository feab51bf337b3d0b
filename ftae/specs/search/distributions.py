"""What may be chosen for each searched leaf: ranges and choices, when a leaf has an effect, and all configurations."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, count, islice
from typing import Any, Protocol

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.problems import quoted, refusal
from ftae.specs.reading.schema import Governed, roles_below


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
Space = Mapping[str, Distribution]


class Search(Protocol):
    """The parts of a ``SearchSpec`` that its configurations depend on."""

    @property
    def finetune(self) -> FinetuneSpec: ...

    @property
    def search_space(self) -> Space: ...


# The governed settings by path, each a leaf of finetune or a section.
CONDITIONS: dict[str, Governed] = roles_below(FinetuneSpec, Governed)


def covers(setting: str, path: str) -> bool:
    """Whether ``path`` is ``setting`` or lies below it."""
    return path == setting or path.startswith(f"{setting}.")


def conditions_of(path: str) -> list[Governed]:
    """Everything that must hold for the leaf at ``path`` to have an effect, conditions of its governors included."""
    direct = [condition for setting, condition in CONDITIONS.items() if covers(setting, path)]
    return direct + [further for condition in direct for further in conditions_of(condition.governor)]


def has_effect(run: Spec, path: str, values: Mapping[str, Any]) -> bool:
    """Whether the leaf at ``path`` has an effect in ``run`` with the leaves of ``values`` replaced."""
    conditions = conditions_of(path)
    return all(c.holds(values[c.governor] if c.governor in values else c.governing(run)) for c in conditions)


def drop_inactive(run: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those that have no effect beside the others.

    Settings that ``values`` leave without effect go back to their defaults, which every value of a governor accepts.
    """
    result = {path: value for path, value in values.items() if has_effect(run, path, values)}
    for setting in CONDITIONS:
        touched = any(c.governor in values for c in conditions_of(setting))
        if touched and not has_effect(run, setting, values):
            result[setting] = default_of(run, setting)
    return result


def default_of(run: Spec, setting: str) -> Any:
    """The value of a setting that a file leaves out; a section as a dict."""
    *sections, name = setting.split(".")
    holder: Any = run
    for section in sections:
        holder = getattr(holder, section)
    default = type(holder).model_fields[name].default
    return default.model_dump() if isinstance(default, Spec) else default


def in_order(space: Space) -> list[str]:
    """The leaves of a space; a leaf that governs others comes before them."""
    return sorted(space, key=lambda path: sum(c.governor in space for c in conditions_of(path)))


def configurations(spec: Search) -> Iterator[dict[str, Any]]:
    """The params of every trial that the space allows, each once; endless where a range is continuous."""
    return _combined(spec, in_order(spec.search_space), {})


def count_up_to(limit: int, spec: Search) -> int:
    """The number of configurations, or ``limit`` if there are more."""
    return sum(1 for _ in islice(configurations(spec), limit))


def identity(spec: Search, params: Mapping[str, Any]) -> str:
    """The same text for params that train the same: inactive ones do not count, and steps of a range count as steps."""
    space = spec.search_space
    active = {path: _step(space[path], params[path]) for path in params if has_effect(spec.finetune, path, params)}
    return json.dumps(active, sort_keys=True)


class Tried:
    """The configurations that a search has tried or is trying. Trials are deterministic: none is trained twice."""

    def __init__(self, spec: Search, most: int) -> None:
        """``most``: the number of trials of the search, which cannot exhaust a larger space."""
        self._spec = spec
        self._identities: dict[int, str] = {}  # by trial
        size = count_up_to(most + 1, spec)
        self._size = size if size <= most else None

    @property
    def is_exhausted(self) -> bool:
        """Whether every configuration of the space was tried, or is being tried."""
        return self._size is not None and len(set(self._identities.values())) >= self._size

    def add(self, number: int, params: Mapping[str, Any]) -> None:
        """Trial ``number`` has begun."""
        self._identities[number] = identity(self._spec, params)

    def remove(self, number: int) -> None:
        """A machine failed trial ``number``: another trial may try the same."""
        del self._identities[number]

    def first_new(self, candidates: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The first of ``candidates`` that was not tried, else the first such configuration; None if there is none."""
        tried = set(self._identities.values())
        if self.is_exhausted:
            return None
        return next(
            (c for c in chain(candidates, configurations(self._spec)) if identity(self._spec, c) not in tried), None
        )


def _combined(spec: Search, paths: Sequence[str], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not paths:
        yield chosen
        return
    path, rest = paths[0], paths[1:]
    if not has_effect(spec.finetune, path, chosen):
        yield from _combined(spec, rest, chosen)
        return
    for value in _values(spec.search_space[path]):
        yield from _combined(spec, rest, {**chosen, path: value})


def _values(distribution: Distribution) -> Iterator[Any]:
    if isinstance(distribution, Choices):
        yield from distribution.choices
        return
    if distribution.or_off:
        yield distribution.off
    low, high = distribution.low, distribution.high
    step = distribution.step or (1 if isinstance(low, int) else None)
    if step is None:
        yield from (low + (high - low) / part for part in count(1))
    elif isinstance(low, int):
        yield from range(low, int(high) + 1, int(step))
    else:  # in decimals, as Optuna calculates: 0.1 + 2 * 0.1 is above 0.3
        first, wide = Decimal(str(low)), Decimal(str(step))
        yield from (float(first + k * wide) for k in range(int((high - low) / step + 1e-9) + 1))


def _step(distribution: Distribution, value: Any) -> Any:
    """The number of a value's step in a range with steps, since 0.1 * 3 and 0.3 differ in the last digit."""
    if isinstance(distribution, Range) and distribution.step and not distribution.is_off(value):
        return round((value - distribution.low) / distribution.step)
    return value
