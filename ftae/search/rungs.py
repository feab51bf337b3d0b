"""When a trial may go on: Ray's ASHA brackets, keyed by the search's own trial numbers.

Keyed so, a trial that was resumed is not counted twice, and the rungs can be rebuilt from the
journal: Ray forgets them on restore.
"""

from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers.async_hyperband import _Bracket  # private: ray is pinned, tests/search/test_rungs.py holds it

from ftae.specs.search import Asha, SearchSpec


class Rungs:
    """Decides after every report whether a trial goes on; FIFO never stops one."""

    def __init__(self, spec: SearchSpec) -> None:
        self._sign = 1.0 if spec.objective.direction == "maximize" else -1.0
        scheduler, steps = spec.search.scheduler, spec.rung_steps()
        self._bracket = None
        if isinstance(scheduler, Asha) and steps:
            self._bracket = _Bracket(steps[0], steps[-1], scheduler.reduction_factor, 0, stop_last_trials=False)
            # The steps that the plan shows; Ray's own are not rounded, and it puts one at the end of the budget.
            self._bracket._rungs = [(step, {}) for step in reversed(steps)]

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Record the value at the highest rung reached, and compare it with the trials there before."""
        if self._bracket is None:
            return True
        trial = cast(Any, SimpleNamespace(trial_id=number))  # all that a bracket reads of a trial
        return self._bracket.on_result(trial, step, self._sign * value) == "CONTINUE"

    def recorded(self) -> dict[int, dict[int, float]]:
        """The objective of every trial at every rung: ``{step: {trial: value}}``."""
        rungs = self._bracket._rungs if self._bracket is not None else []
        return {step: {n: self._sign * v for n, v in values.items()} for step, values in reversed(rungs)}
