"""The searched ranges against where the good trials lie: which could be wider, and which narrower."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.search.distributions import Range
from ftae.specs.search.search import SearchSpec

GOOD_SHARE = 0.15  # of the trials that ran to their full budget
LEAST_GOOD = 3
LEAST_TRIALS = 8  # below which nothing is advised
AT_AN_END = 0.08  # of a range
NEAR_AN_END = 0.3
NARROW = 0.3


@dataclass(frozen=True)
class RangeUse:
    """How a search has used one range. Positions lie between 0, its low end, and 1, its high end.

    Attributes:
        path: the param.
        low, high: the ends of the range.
        all: the position of each trial that has a value, by number.
        good: the positions of the best trials among them.
        advice: what to change about the range; None if nothing.
    """

    path: str
    low: float
    high: float
    all: Mapping[int, float]
    good: Mapping[int, float]
    advice: str | None


def good_trials(record: SearchRecord) -> list[TrialRecord]:
    """The best trials that ran to their full budget and keep the constraints: ``GOOD_SHARE`` of them, at least 3."""
    ranked = [trial for trial in record.ranked() if record.is_feasible(trial)]
    return ranked[: max(LEAST_GOOD, math.ceil(GOOD_SHARE * len(ranked)))]


def range_uses(record: SearchRecord, spec: SearchSpec) -> list[RangeUse]:
    """How a search has used each of its ranges, in the order of the file."""
    good, enough = good_trials(record), len(record.ranked()) >= LEAST_TRIALS
    uses = []
    for path, given in spec.search_space.items():
        if isinstance(given, Range):
            of_all, of_good = _positions(given, path, record.tuned), _positions(given, path, good)
            advice = _advice(given, path, list(of_good.values())) if enough and len(of_good) >= LEAST_GOOD else None
            uses.append(RangeUse(path, given.low, given.high, of_all, of_good, advice))
    return uses


def position(given: Range, value: Any) -> float | None:
    """Where a value lies in a range: 0 is its low end and 1 its high end; None for a value that is none, or off."""
    if isinstance(value, bool) or not isinstance(value, int | float) or given.is_off(value):
        return None
    if not given.log:
        return (value - given.low) / (given.high - given.low)
    return math.log(value / given.low) / math.log(given.high / given.low) if value > 0.0 else None


def _positions(given: Range, path: str, trials: Sequence[TrialRecord]) -> dict[int, float]:
    found = {trial.number: position(given, trial.params.get(path)) for trial in trials}
    return {number: at for number, at in found.items() if at is not None}


def _advice(given: Range, path: str, good: Sequence[float]) -> str | None:
    """``good``: of the best trials, the best first."""
    ordered = sorted(good)
    middle = ordered[len(ordered) // 2]
    if good[0] >= 1.0 - AT_AN_END and middle >= 1.0 - NEAR_AN_END:
        return f"widen {path} upwards: the best lie at its high end, {given.high:g}"
    if good[0] <= AT_AN_END and middle <= NEAR_AN_END:
        can = given.low != 0
        return f"widen {path} downwards: the best lie at its low end, {given.low:g}" if can else None
    if ordered[-1] - ordered[0] <= NARROW and len(good) >= LEAST_GOOD + 1:
        first, last = (_value(given, at) for at in (ordered[0], ordered[-1]))
        return f"{path} could be narrower: the best lie between {first:.3g} and {last:.3g}"
    return None


def _value(given: Range, at: float) -> float:
    if given.log:
        return float(given.low * (given.high / given.low) ** at)
    return given.low + at * (given.high - given.low)
