"""Earlier searches as related tasks: what each of them lets expect of a configuration of this search.

An earlier search has a Gaussian process of its own, of its own curves. The mean of that process is a function of the
params, and this search takes the function for a feature: how much of it carries over is learned from its own trials.
So the values of earlier trials never stand among those of this search.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftae.errors import FtaeError
from ftae.search.curves.gaussian_process import Array, CurveProcess, Observations, num_parameters
from ftae.search.curves.unit_cube import UnitCube


class RelatedTasks:
    """The earlier searches of a search.

    Args:
        cube: the unit cube of this search.
        searches: what the journal holds of each earlier search: its name, its trials and the hyperparameters of its
            process.
        sign: 1 if more is better, -1 if less is.

    Attributes:
        spread: the standard deviation of their values, on average, in units of the objective.

    Raises:
        FtaeError: the hyperparameters do not fit the search space.
    """

    def __init__(self, cube: UnitCube, searches: Sequence[Mapping[str, Any]], sign: float) -> None:
        self._tasks = [_Task(cube, search, sign) for search in searches]
        self.spread = float(np.mean([task.process.spread for task in self._tasks]))

    def expected(self, vectors: Array) -> Array:
        """By how much configurations should end above the middle of each earlier search, (N, K), for vectors (N, D).

        More is better; in units of the objective.
        """
        return np.stack([task.process.mean_at_end(vectors) - task.middle for task in self._tasks], axis=1)

    def best(self, count: int) -> list[Array]:
        """The points of the best trials, so many of each earlier search."""
        return [point for task in self._tasks for point in task.points[:count]]


class _Task:
    """One earlier search: its process, the mean of its ends, and the points of its trials, the best first."""

    def __init__(self, cube: UnitCube, search: Mapping[str, Any], sign: float) -> None:
        expected = num_parameters(cube.num_columns)
        if len(search["model"]) != expected:
            raise FtaeError(
                f"the journal has a model of {search['search']} of {len(search['model'])} numbers, and this search "
                f"space needs {expected}: the journal is damaged, or by another version of ftae"
            )
        self.process = CurveProcess(observations_of(cube, search["trials"], sign), np.array(search["model"]))
        points = [cube.nearest(trial["params"])[0] for trial in search["trials"]]
        ends = self.process.mean_at_end(cube.vectors(np.array(points)))
        self.middle = float(ends.mean())
        self.points = [points[i] for i in np.argsort(-ends, kind="stable")]


def observations_of(cube: UnitCube, trials: Sequence[Mapping[str, Any]], sign: float) -> Observations:
    """The trials of an earlier search, numbered from 0, where they lie in the space of this one."""
    rows = [
        (cube.nearest(trial["params"])[1], number, share, sign * value)
        for number, trial in enumerate(trials)
        for share, value in zip(trial["shares"], trial["values"], strict=True)
    ]
    vectors, numbers, shares, values = zip(*rows, strict=True)
    return Observations(np.array(vectors), np.array(numbers), np.array(shares), np.array(values))
