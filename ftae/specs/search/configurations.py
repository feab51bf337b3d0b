"""The configurations of a search space: which there are, and whether two are the same."""

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import count, islice
from typing import Any

from ftae.specs.search.conditions import conditions_of, has_effect
from ftae.specs.search.distributions import Choices, Distribution, Range
from ftae.specs.search.search import SearchSpec


def in_order(space: Mapping[str, Distribution]) -> list[str]:
    """The leaves of a space; a leaf that governs others comes before them."""
    return sorted(space, key=lambda path: sum(c.governor in space for c in conditions_of(path)))


def configurations(spec: SearchSpec) -> Iterator[dict[str, Any]]:
    """The params of every trial that the space allows, each once; endless where a range is continuous."""
    return _combined(spec, in_order(spec.search_space), {})


def count_up_to(limit: int, spec: SearchSpec) -> int:
    """The number of configurations, or ``limit`` if there are more."""
    return sum(1 for _ in islice(configurations(spec), limit))


def identity(spec: SearchSpec, params: Mapping[str, Any]) -> str:
    """The same text for params that train the same: inactive ones do not count, and steps of a range count as steps."""
    space = spec.search_space
    active = {path: _step(space[path], params[path]) for path in params if has_effect(spec.finetune, path, params)}
    return json.dumps(active, sort_keys=True)


def _combined(spec: SearchSpec, paths: Sequence[str], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
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
