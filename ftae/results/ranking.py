"""Orders trials by one metric or by several."""

import math
from collections.abc import Mapping, Sequence

from ftae.errors import FtaeError
from ftae.specs.reading.problems import one_of, quoted
from ftae.specs.search.objective import AnyObjective, Metrics

Point = Sequence[float]  # values; more is better


def ordered(points: Mapping[int, Point]) -> list[int]:
    """Return the keys of ``points``, best first; ties go to the smaller key.

    Points of one value are sorted by that value. Points of several are sorted by the number of points that dominate
    them (Fonseca & Fleming, ICGA 1993), so the Pareto front comes first. Points with the same number are sorted by
    their distance to their neighbours, the farthest first (crowding distance: Deb et al., NSGA-II, 2002), and then by
    the first value: the first K of a front are spread over it.
    """
    if all(len(point) == 1 for point in points.values()):
        return sorted(points, key=lambda key: (-points[key][0], key))
    above = {key: sum(dominates(other, point) for other in points.values()) for key, point in points.items()}
    crowding: dict[int, float] = {}
    for number in set(above.values()):
        crowding |= _crowding({key: points[key] for key in points if above[key] == number})
    return sorted(points, key=lambda key: (above[key], -crowding[key], -points[key][0], key))


def pareto_front(points: Mapping[int, Point]) -> list[int]:
    """Return the keys of the points that no other point dominates, in the order of ``ordered``."""
    return [key for key in ordered(points) if not any(dominates(other, points[key]) for other in points.values())]


def dominates(point: Point, other: Point) -> bool:
    """Whether ``point`` is at least as good in every value and better in one."""
    return all(a >= b for a, b in zip(point, other, strict=True)) and tuple(point) != tuple(other)


def check_weights(objective: AnyObjective, weights: Mapping[str, float]) -> None:
    """Check weights for ``scores``.

    Raises:
        FtaeError: a weight is negative or names no metric of the objective, all are 0, or there is only one metric.
    """
    metrics = [goal.metric for goal in objective.goals]
    if len(metrics) == 1:
        raise FtaeError(f"weights choose among several metrics, this search optimises {metrics[0]} alone")
    for metric, weight in weights.items():
        if metric not in metrics:
            raise FtaeError(f"weights: {one_of(metrics, metric)}")
        if not 0.0 <= weight < math.inf:
            raise FtaeError(f"weights: that of {metric} must be 0 or more, got {quoted(weight)}")
    if not any(weights.values()):
        raise FtaeError("weights: at least one must be above 0")


def scores(objective: AnyObjective, found: Mapping[int, Metrics], weights: Mapping[str, float]) -> dict[int, float]:
    """Score each of ``found``, usually a front, between 0 and 1; more is better.

    The score is the weighted mean of the metrics, each scaled to its best (1) and worst (0) value among ``found``:
    ``sum(w_m * (v_m - worst_m) / (best_m - worst_m)) / sum(w_m)``. A metric without a weight weighs 0. A metric with
    the same value everywhere counts as 1.
    """
    points = {key: objective.point(metrics) for key, metrics in found.items()}
    total = sum(weights.values())
    result = dict.fromkeys(points, 0.0)
    for i, goal in enumerate(objective.goals):
        low, high = (extreme(point[i] for point in points.values()) for extreme in (min, max))
        for key, point in points.items():
            share = (point[i] - low) / (high - low) if high > low else 1.0
            result[key] += weights.get(goal.metric, 0.0) / total * share
    return result


def _crowding(points: Mapping[int, Point]) -> dict[int, float]:
    """Return the distance between each point's neighbours, summed over the values; infinite for the best and worst."""
    result = dict.fromkeys(points, 0.0)
    for i in range(len(next(iter(points.values())))):
        along = sorted(points, key=lambda key: (points[key][i], key))
        extent = points[along[-1]][i] - points[along[0]][i]
        result[along[0]] = result[along[-1]] = math.inf
        for before, key, after in zip(along, along[1:], along[2:], strict=False):
            result[key] += (points[after][i] - points[before][i]) / extent if extent else 0.0
    return result
