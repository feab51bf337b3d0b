"""Which trials end early: ``SCHEDULERS``, from the name in the file to the class that decides.

A scheduler is a pure function of the reports in the journal, keyed by the search's own trial numbers: a resumed trial
is not counted twice, and a resumed search decides as if it had never stopped.
"""

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ftae.search.curves.decisions import Stop
from ftae.search.curves.forecast_scheduler import ForecastScheduler
from ftae.search.curves.forecaster import Forecaster
from ftae.specs.search.settings import Asha


class Scheduler(Protocol):
    """Decides after each report of a tuned trial, between the first step and the last, whether the trial continues.

    ``value`` is the first goal of the objective.
    """

    def stop(self, number: int, step: int, value: float) -> Stop | None:
        """Why trial ``number`` ends with this report; None if it continues. Changes nothing."""

    def record(self, number: int, step: int, value: float) -> None:
        """Take a report into account for the decisions that follow."""


class RunToTheEnd:
    """Stops no trial."""

    def __init__(self, forecaster: Forecaster) -> None:
        """Nothing of the search matters."""

    def stop(self, number: int, step: int, value: float) -> Stop | None:
        return None

    def record(self, number: int, step: int, value: float) -> None:
        """No decision depends on a report."""


@dataclass
class _Rung:
    """The objective of each trial that reached ``step``, higher is better. ``ordered``: the same values, sorted."""

    step: int
    recorded: dict[int, float] = field(default_factory=dict)
    ordered: list[float] = field(default_factory=list)

    def record(self, number: int, value: float) -> None:
        self.recorded[number] = value
        insort(self.ordered, value)

    def quantile(self, share: float) -> float:
        """The value below which a ``share`` of the trials lies, interpolated linearly; -inf where there are none."""
        if not self.ordered:
            return -math.inf
        place = round(share * (len(self.ordered) - 1), 9)  # two thirds of 3 is not 2.0000000000000004
        below = int(place)
        above = min(below + 1, len(self.ordered) - 1)
        return self.ordered[below] + (place - below) * (self.ordered[above] - self.ordered[below])


class SuccessiveHalving:
    """The stopping rule of Ray's ASHA scheduler: at a rung, a trial in the best ``1/reduction_factor`` continues.

    Ray's own scheduler forgets its rungs when a search is restored, and sorts a rung again for each report.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        spec = forecaster.spec
        scheduler = spec.search.scheduler
        assert isinstance(scheduler, Asha)
        self._sign = spec.objective.first.sign
        self._stopped = 1.0 - 1.0 / scheduler.reduction_factor
        self._rungs = [_Rung(step) for step in spec.rung_steps()]

    def stop(self, number: int, step: int, value: float) -> Stop | None:
        """Compare ``value`` with the values of the other trials at the highest rung that the trial has reached."""
        rung = self._reached(step)
        if rung is None or number in rung.recorded or self._sign * value >= (bar := rung.quantile(self._stopped)):
            return None
        share = f"{1.0 - self._stopped:.0%}"
        return Stop(
            f"{value:.4g} is not among the best {share} at step {rung.step}, which begin at {self._sign * bar:.4g}"
        )

    def record(self, number: int, step: int, value: float) -> None:
        """Keep the first value of each trial at each rung."""
        rung = self._reached(step)
        if rung is not None and number not in rung.recorded:
            rung.record(number, self._sign * value)

    def _reached(self, step: int) -> _Rung | None:
        reached = [rung for rung in self._rungs if rung.step <= step]
        return reached[-1] if reached else None


# By the name in the file.
SCHEDULERS: dict[str, Callable[[Forecaster], Scheduler]] = {
    "forecast": ForecastScheduler,
    "asha": SuccessiveHalving,
    "fifo": RunToTheEnd,
}
