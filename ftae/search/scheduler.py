"""When a trial may go on: the rule of Ray's ASHA scheduler, keyed by the search's own trial numbers.

Keyed so, a trial that was resumed is not counted twice, and the rungs can be rebuilt from the journal:
Ray forgets them on restore. Values are kept sorted, since Ray looks at all of a rung anew for each report.
"""

import math
from bisect import insort
from dataclasses import dataclass, field

from ftae.specs.search.search import SearchSpec
from ftae.specs.search.settings import Asha


@dataclass
class _Rung:
    """The objective of each trial that came to ``step``; ``ordered``: the same values, poorest first."""

    step: int
    recorded: dict[int, float] = field(default_factory=dict)
    ordered: list[float] = field(default_factory=list)

    def record(self, number: int, value: float) -> None:
        self.recorded[number] = value
        insort(self.ordered, value)

    def quantile(self, share: float) -> float:
        """The value that a share of the trials lies below, interpolated linearly; -inf where there are none."""
        if not self.ordered:
            return -math.inf
        place = round(share * (len(self.ordered) - 1), 9)  # two thirds of 3 is not 2.0000000000000004
        below = int(place)
        above = min(below + 1, len(self.ordered) - 1)
        return self.ordered[below] + (place - below) * (self.ordered[above] - self.ordered[below])


class Rungs:
    """Decides after every report whether a trial goes on, by the first goal alone; FIFO never stops one."""

    def __init__(self, spec: SearchSpec) -> None:
        self._sign = spec.objective.first.sign
        scheduler = spec.search.scheduler
        self._stopped = 1.0 - 1.0 / scheduler.reduction_factor if isinstance(scheduler, Asha) else 0.0
        self._rungs = [_Rung(step) for step in spec.rung_steps()]

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Compare the value with those that the highest rung reached holds of other trials; changes nothing."""
        rung = self._reached(step)
        if rung is None or number in rung.recorded:
            return True
        return self._sign * value >= rung.quantile(self._stopped)

    def record(self, number: int, step: int, value: float) -> None:
        """Let later trials be compared with the value, once for each rung."""
        rung = self._reached(step)
        if rung is not None and number not in rung.recorded:
            rung.record(number, self._sign * value)

    def _reached(self, step: int) -> _Rung | None:
        reached = [rung for rung in self._rungs if rung.step <= step]
        return reached[-1] if reached else None

    def recorded(self) -> dict[int, dict[int, float]]:
        """The objective of every trial at every rung: ``{step: {trial: value}}``."""
        return {rung.step: {n: self._sign * v for n, v in rung.recorded.items()} for rung in self._rungs}
