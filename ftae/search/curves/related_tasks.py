"""Earlier searches as related tasks: which configurations of this search they would try next to their best.

An earlier search has a Gaussian process of its own, of its own curves. What that process expects of the configurations
of this search says where to look first. The values of earlier trials never stand among those of this search: a
misleading one costs some of the first trials, and bends no forecast.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftae.errors import FtaeError
from ftae.search.curves.gaussian_process import Array, CurveProcess, Observations, num_parameters
from ftae.search.curves.unit_cube import UnitCube


class RelatedTasks:
    """The earlier searches that a search learns from.

    Args:
        cube: the unit cube of this search.
        searches: what the journal holds of each: its name, its trials, and the hyperparameters of its process.
        sign: 1 if more is better, -1 if less is.

    Raises:
        FtaeError: the hyperparameters do not fit the search space.
    """

    def __init__(self, cube: UnitCube, searches: Sequence[Mapping[str, Any]], sign: float) -> None:
        self._tasks = [_Task(cube, search, sign) for search in searches]

    def expected(self, vectors: Array) -> Array:
        """How good configurations are by all earlier searches, (N,), for vectors (N, D): more is better.

        Each search counts as much, since it is in units of its own standard deviation.
        """
        return np.asarray(np.mean([task.expected(vectors) for task in self._tasks], axis=0))

    def best(self, count: int) -> list[Array]:
        """The points of the best trials, so many of each earlier search."""
        return [point for task in self._tasks for point in task.points[:count]]


class _Task:
    """One earlier search. ``points``: those of its trials, the best first."""

    def __init__(self, cube: UnitCube, search: Mapping[str, Any], sign: float) -> None:
        needed = num_parameters(cube.num_columns)
        if len(search["model"]) != needed:
            raise FtaeError(
                f"the journal has a model of {len(search['model'])} numbers of {search['search']}, and this search "
                f"space needs {needed}: the journal is damaged, or by another version of ftae"
            )
        self._process = CurveProcess(observations_of(cube, search["trials"], sign), np.array(search["model"]))
        points = [cube.nearest(trial["params"])[0] for trial in search["trials"]]
        order = np.argsort(-self.expected(cube.vectors(np.array(points))), kind="stable")
        self.points = [points[i] for i in order]

    def expected(self, vectors: Array) -> Array:
        """The expected ends, standardised, (N,)."""
        process = self._process
        return (process.at_end(vectors)[0] - process.shift) / process.spread


def observations_of(cube: UnitCube, trials: Sequence[Mapping[str, Any]], sign: float) -> Observations:
    """The trials of an earlier search, numbered from 0, where they lie in the space of this one."""
    vectors = [cube.nearest(trial["params"])[1] for trial in trials]
    rows = [
        (vectors[number], number, share, sign * value)
        for number, trial in enumerate(trials)
        for share, value in zip(trial["shares"], trial["values"], strict=True)
    ]
    seen, numbers, shares, values = zip(*rows, strict=True)
    return Observations(np.array(seen), np.array(numbers), np.array(shares), np.array(values, dtype=float))
