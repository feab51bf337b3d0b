"""Params as points of the unit cube, and back.

There are two forms. A *point* has two coordinates a leaf, from which every configuration can be drawn uniformly: its
value, and whether it is on. A *vector* is what the model of the curves sees: numbers in [0, 1], by the logarithm where
the range is, a column for each category, and for a leaf that may be off a column that says so. A leaf that is off, or
without effect beside the others, stands in the middle.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from ftae.search.curves.gaussian_process import Array
from ftae.specs.search.distributions import Choices, Range, conditions_of, has_effect, in_order
from ftae.specs.search.search import SearchSpec

MIDDLE = 0.5
STEP_DEVIATION, STEP_VARIATION = 0.12, 0.7  # of a small change of a value, and of the logarithm of its size
NEW_CATEGORY, SWITCHED = 0.3, 0.15  # the chances that a small change draws a category anew, or turns a leaf on or off


class _Leaf(Protocol):
    """One searched leaf. ``places``: (N,) coordinates of points, in [0, 1)."""

    @property
    def num_columns(self) -> int:
        """The number of columns of a vector."""

    def value(self, place: float) -> Any:
        """The value at a place."""

    def place(self, value: Any) -> float:
        """A place where the value lies."""

    def columns(self, places: Array) -> list[Array]:
        """The columns of vectors, (N,) each."""

    def moved(self, places: Array, steps: Array, rng: np.random.Generator) -> Array:
        """The places after a small change; ``steps`` are standard normal numbers times a width."""


@dataclass(frozen=True)
class _Category:
    """Choices, each as the text that it is in a journal, which has lists for tuples."""

    encoded: tuple[str, ...]

    @property
    def num_columns(self) -> int:
        return len(self.encoded)

    @classmethod
    def of(cls, given: Choices) -> "_Category":
        return cls(tuple(map(json.dumps, given.choices)))

    def _index(self, places: Array) -> Array:
        return np.minimum(np.floor(places * len(self.encoded)), len(self.encoded) - 1)

    def value(self, place: float) -> Any:
        return json.loads(self.encoded[int(self._index(np.array([place]))[0])])

    def place(self, value: Any) -> float:
        return (self.encoded.index(json.dumps(value)) + 0.5) / len(self.encoded)

    def columns(self, places: Array) -> list[Array]:
        index = self._index(places)
        return [(index == i).astype(float) for i in range(len(self.encoded))]

    def moved(self, places: Array, steps: Array, rng: np.random.Generator) -> Array:
        drawn, changed = rng.random(len(places)), rng.random(len(places)) < NEW_CATEGORY
        return np.where(changed, drawn, places)


@dataclass(frozen=True)
class _Number:
    """A range. ``count``: of its values, if they are whole numbers or have steps; None if it is continuous."""

    low: float
    high: float
    log: bool
    whole: bool
    step: float | None
    count: int | None

    @property
    def num_columns(self) -> int:
        return 1

    @classmethod
    def of(cls, given: Range) -> "_Number":
        whole = isinstance(given.low, int) and isinstance(given.high, int)
        step = given.step or (1 if whole and not given.log else None)
        count = None if step is None else int((given.high - given.low) / step + 1e-9) + 1
        return cls(given.low, given.high, given.log, whole, step, count)

    def value(self, place: float) -> Any:
        if self.count is not None:
            index = min(int(place * self.count), self.count - 1)
            # In decimals, as the configurations of the space are counted: 0.1 + 2 * 0.1 is above 0.3.
            exact = Decimal(str(self.low)) + index * Decimal(str(self.step))
            return int(exact) if self.whole else float(exact)
        found = min(max(self._continuous(place), self.low), self.high)
        return round(found) if self.whole else found

    def _continuous(self, place: float) -> float:
        if self.log:
            return math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        return self.low + place * (self.high - self.low)

    def place(self, value: Any) -> float:
        if self.count is not None and self.step is not None:
            return float(round((value - self.low) / self.step) + 0.5) / self.count
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float(value - self.low) / (self.high - self.low)

    def columns(self, places: Array) -> list[Array]:
        if self.whole and self.log:
            return [np.array([self.place(self.value(float(place))) for place in places])]
        if self.count is None:
            return [places]
        return [np.minimum(np.floor(places * self.count), self.count - 1) / max(self.count - 1, 1)]

    def moved(self, places: Array, steps: Array, rng: np.random.Generator) -> Array:
        if self.count is not None:  # at least to the next value
            least = 0.7 / self.count
            steps = np.where(np.abs(steps) < least, np.sign(steps) * least, steps)
        return np.clip(places + steps, 0.0, 1.0 - 1e-9)


class UnitCube:
    """The unit cube of a search space. A point has coordinate ``2 i`` for the value of leaf i, and ``2 i + 1`` for
    whether it is on.

    Attributes:
        num_coordinates: of a point.
        num_columns: of a vector.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._run, self._space = spec.finetune, spec.search_space
        self._paths = list(self._space)
        self._place = {path: 2 * i for i, path in enumerate(self._paths)}
        self._leaves: dict[str, _Leaf] = {
            path: _Category.of(given) if isinstance(given, Choices) else _Number.of(given)
            for path, given in self._space.items()
        }
        self._switched = {path for path, d in self._space.items() if isinstance(d, Range) and d.or_off}
        # Leaves that have an effect with some values of other searched leaves only.
        self._governed = [p for p in self._paths if any(c.governor in self._space for c in conditions_of(p))]
        self._has_switch = self._switched | set(self._governed)
        self.num_coordinates = 2 * len(self._paths)
        self.num_columns = sum(self._leaves[p].num_columns + (p in self._has_switch) for p in self._paths)

    def params(self, point: Array) -> dict[str, Any]:
        """The params at a point; leaves without effect are left out."""
        chosen: dict[str, Any] = {}
        for path in in_order(self._space):
            if has_effect(self._run, path, chosen):
                chosen[path] = self._value(path, point)
        return {path: chosen[path] for path in self._paths if path in chosen}

    def _value(self, path: str, point: Array) -> Any:
        place, on = point[self._place[path]], point[self._place[path] + 1]
        distribution = self._space[path]
        if isinstance(distribution, Range) and distribution.or_off and on < MIDDLE:
            return distribution.off
        return self._leaves[path].value(float(place))

    def point(self, params: Mapping[str, Any]) -> Array:
        """A point with these params."""
        point = np.tile([MIDDLE, 0.75], len(self._paths))
        for path, value in params.items():
            at, distribution = self._place[path], self._space[path]
            if isinstance(distribution, Range) and distribution.is_off(value):
                point[at + 1] = 0.25
            else:
                point[at] = min(self._leaves[path].place(value), 1.0 - 1e-9)
        return point

    def vectors(self, points: Array) -> Array:
        """The vectors of points, (N, num_columns)."""
        is_on = {path: points[:, self._place[path] + 1] >= MIDDLE for path in self._switched}
        if self._governed:
            active = [self.params(point) for point in points]
            for path in self._governed:
                has_it = np.array([path in params for params in active])
                is_on[path] = is_on.get(path, True) & has_it
        columns: list[Array] = []
        for path in self._paths:
            found = self._leaves[path].columns(points[:, self._place[path]])
            if path in self._has_switch:
                columns.append(is_on[path].astype(float))
                found = [np.where(is_on[path], column, MIDDLE) for column in found]
            columns += found
        return np.stack(columns, axis=1)

    def vector(self, params: Mapping[str, Any]) -> Array:
        """The vector of params, (num_columns,). Leaves that ``params`` lack have no effect."""
        return np.asarray(self.vectors(self.point(params)[None])[0])

    def nearest(self, values: Mapping[str, Any]) -> tuple[Array, Array]:
        """The point nearest to values of another search, and its vector. Values outside a range count as its end; a
        category that this space lacks stands in the middle of all. Leaves that ``values`` lack have no effect."""
        known = {path: near for path, value in values.items() for near in self._near(path, value)}
        point = self.point(known)
        vector, at = self.vectors(point[None])[0], 0
        for path in self._paths:
            width = self._leaves[path].num_columns
            at += path in self._has_switch
            if path in values and path not in known:
                vector[at : at + width] = MIDDLE
            at += width
        return point, vector

    def _near(self, path: str, value: Any) -> list[Any]:
        """The value of a leaf that is nearest to another; empty if none is near."""
        distribution = self._space[path]
        if isinstance(distribution, Choices):
            return [choice for choice in distribution.choices if json.dumps(choice) == json.dumps(value)]
        if distribution.is_off(value):
            return [value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return []
        return [min(max(value, distribution.low), distribution.high)]

    def near(self, points: Array, rng: np.random.Generator, width: float = 1.0) -> Array:
        """Each of the points, changed a little in some of its coordinates."""
        count, leaves = len(points), len(self._paths)
        changed = points.copy()
        # Between a fifth of the leaves and all of them, so that single ones are tried, too.
        some = rng.random((count, leaves)) < rng.random((count, 1)) * 0.8 + 0.2
        deviation = width * STEP_DEVIATION * np.exp(rng.normal(size=(count, leaves)) * STEP_VARIATION)
        steps = rng.normal(size=(count, leaves)) * deviation
        for i, path in enumerate(self._paths):
            moved = self._leaves[path].moved(points[:, 2 * i], steps[:, i], rng)
            changed[:, 2 * i] = np.where(some[:, i], moved, points[:, 2 * i])
            if path in self._switched:
                flipped = some[:, i] & (rng.random(count) < SWITCHED)
                changed[:, 2 * i + 1] = np.where(flipped, 1.0 - points[:, 2 * i + 1], points[:, 2 * i + 1])
        return changed
