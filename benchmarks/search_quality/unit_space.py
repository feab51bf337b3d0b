"""The configurations of a search space as numbers: drawn from uniform ones, and as inputs of a regression."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftae.specs import SearchSpec
from ftae.specs.search.distributions import Choices, Range, conditions_of, has_effect, in_order

Params = dict[str, Any]
Vector = np.ndarray[Any, np.dtype[np.float64]]


class UnitSpace:
    """Translates params from ``num_draws`` uniform numbers, and to a vector in the unit cube.

    A leaf takes two draws: its value, and whether it is on. In the vector a choice has a coordinate for each of its
    values, and a leaf with ``or_off`` one more for being on. The value of a leaf that is off is in the middle.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._run, self._space = spec.finetune, spec.search_space
        self._order = in_order(self._space)
        self._conditional = {path for path in self._space if conditions_of(path)}
        self.num_draws = 2 * len(self._space)

    def params(self, draws: Vector) -> Params:
        """The configuration of ``num_draws`` uniform numbers; without leaves that have no effect."""
        at = {path: 2 * i for i, path in enumerate(self._space)}
        chosen: Params = {}
        for path in self._order:
            if path not in self._conditional or has_effect(self._run, path, chosen):
                chosen[path] = _value(self._space[path], *draws[at[path] : at[path] + 2].tolist())
        return {path: chosen[path] for path in self._space if path in chosen}

    def random(self, rng: np.random.Generator, count: int) -> list[Params]:
        """Independent uniform configurations."""
        return [self.params(draws) for draws in rng.random((count, self.num_draws))]

    def vector(self, params: Mapping[str, Any]) -> Vector:
        coordinates: list[float] = []
        for path, distribution in self._space.items():
            if isinstance(distribution, Choices):
                coordinates += [float(params.get(path) == choice) for choice in distribution.choices]
                continue
            is_on = path in params and not distribution.is_off(params[path])
            if distribution.or_off:
                coordinates.append(float(is_on))
            coordinates.append(_place(distribution, params[path]) if is_on else 0.5)
        return np.array(coordinates)

    def vectors(self, many: list[Params]) -> Vector:
        """One row for each configuration."""
        return np.stack([self.vector(params) for params in many])


def _value(distribution: Range | Choices, share: float, switch: float) -> Any:
    if isinstance(distribution, Choices):
        choices = distribution.choices
        return choices[min(int(share * len(choices)), len(choices) - 1)]
    if distribution.or_off and switch < 0.5:
        return distribution.off
    low, high, step = distribution.low, distribution.high, distribution.step
    is_int = isinstance(low, int) and isinstance(high, int)
    if distribution.log:
        value = math.exp(math.log(low) + share * math.log(high / low))
        return round(value) if is_int else value
    if step is None and not is_int:
        return low + share * (high - low)
    step = step or 1
    count = int((high - low) / step + 1e-9) + 1
    return low + step * min(int(share * count), count - 1)


def _place(distribution: Range, value: float) -> float:
    low, high = distribution.low, distribution.high
    return math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low)
