"""When a trial may go on: Ray's ASHA brackets, keyed by the search's own trial numbers.

Keyed so, a trial that was resumed is not counted twice, and the rungs can be rebuilt from the
journal: Ray forgets them on restore.
"""

from types import SimpleNamespace

from ray.tune.schedulers.async_hyperband import _Bracket  # private: ray is pinned, tests/search/test_rungs.py holds it

from ftae.specs.search import Asha, SearchSpec


class Rungs:
    """Decides after every report whether a trial goes on; FIFO never stops one."""

    def __init__(self, spec: SearchSpec) -> None:
        self._sign = 1.0 if spec.objective.direction == "maximize" else -1.0
        scheduler, steps = spec.search.scheduler, spec.rung_steps()
        self._bracket = None
        if isinstance(scheduler, Asha) and steps:
            self._bracket = _Bracket(
                steps[0], spec.finetune.max_steps, scheduler.reduction_factor, 0, stop_last_trials=False
            )

    def goes_on(self, number: int, step: int, value: float) -> bool:
        """Record the value at the highest rung reached, and compare it with the trials there before."""
        if self._bracket is None:
            return True
        return bool(self._bracket.on_result(SimpleNamespace(trial_id=number), step, self._sign * value) == "CONTINUE")

    def recorded(self) -> dict[int, dict[int, float]]:
        """The objective of every trial at every rung: ``{step: {trial: value}}``."""
        rungs = self._bracket._rungs if self._bracket is not None else []
        return {round(step): {n: self._sign * v for n, v in values.items()} for step, values in reversed(rungs)}
