"""Forecasts for one search: the Gaussian process of its curves, fitted to what its journal holds.

A forecast is a function of the journal, the seed and a trial's number. The hyperparameters of the process are fitted
when a trial is proposed and travel in its ``suggest`` event. A search that is resumed, or replayed, reads them there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log_ndtr

from ftae.errors import FtaeError
from ftae.results.search_record import WARM_START, SearchRecord, TrialRecord
from ftae.search.curves.decisions import rounded
from ftae.search.curves.gaussian_process import Array, CurveProcess, Observations, fit, num_parameters
from ftae.search.curves.related_tasks import RelatedTasks
from ftae.search.curves.unit_cube import UnitCube
from ftae.specs.search.objective import Constraint
from ftae.specs.search.search import SearchSpec

# Of each curve the process sees the newest report, and the first reports at or behind these shares of the budget.
SEEN_SHARES = (1 / 9, 1 / 3, 2 / 3)
# The time of a forecast grows with the cube of the number of observations: of more trials, the process sees the best
# third and the newest, and its hyperparameters are fitted to fewer of them.
MAX_TRIALS, MAX_FITTED_TRIALS = 120, 40
# The chances to diverge and to keep a constraint are learned from the newest trials.
MAX_DIVERGED, MAX_ALIVE = 30, 60
INITIAL_TRIALS = 5  # the file's own, and points that fill the space
FEWEST_OBSERVATIONS = 3
# Each fit expects other lengths: few data allow many, and trials that are proposed together should not all believe the
# same.
LENGTH, LENGTH_VARIATION = 0.6, 0.5

Unwritten = Mapping[int, tuple[int, float]]  # by trial, the step and the value of a report that the journal lacks yet


@dataclass(frozen=True)
class CurveForecast:
    """What one state of the journal lets expect. Values are turned so that more is better.

    Attributes:
        process: of the curves.
        bar: the best end of a trial that ran to its end and kept the constraints, without its noise; None before any.
    """

    process: CurveProcess
    bar: float | None


class Forecaster:
    """Makes the forecasts of the search whose journal is folded in ``record``."""

    def __init__(self, spec: SearchSpec, record: SearchRecord) -> None:
        self.spec, self.record, self.cube = spec, record, UnitCube(spec)
        self.sign = spec.objective.first.sign
        self._vectors: dict[int, Array] = {}

    @cached_property
    def related(self) -> RelatedTasks | None:
        """The earlier searches that this one learns from, as its journal has them; None without any."""
        found = self.record.facts.get(WARM_START)
        return RelatedTasks(self.cube, found, self.sign) if found else None

    # ------------------------------------------------------------------------------------- trials

    @property
    def tuned(self) -> dict[int, TrialRecord]:
        """All trials but the baseline, by number."""
        return {trial.number: trial for trial in self.record.tuned}

    def vector(self, number: int) -> Array:
        """The params of a trial in the unit cube."""
        if number not in self._vectors:
            self._vectors[number] = self.cube.vector(self.record.trials[number].params)
        return self._vectors[number]

    def vectors(self, numbers: list[int]) -> Array:
        """The same of several trials, (N, D)."""
        return np.array([self.vector(number) for number in numbers]).reshape(len(numbers), self.cube.num_columns)

    def curve(self, trial: TrialRecord) -> dict[int, float]:
        """The values of a trial after its first step, by step; more is better."""
        return {report["step"]: self.sign * report["value"] for report in trial.reports if report["step"] > 0}

    def finished_feasible(self) -> list[TrialRecord]:
        """The trials that ran to their end and keep the constraints."""
        return [trial for trial in self.record.ranked() if self.record.is_feasible(trial)]

    def best(self, count: int) -> list[int]:
        """The numbers of the trials to look around: those that ended best, or that run best if none has ended.

        Trials that miss constraints come last.
        """
        curves = {number: curve for number, trial in self.tuned.items() if (curve := self.curve(trial))}
        ended = [number for number in curves if self.record.trials[number].status == "finished"]
        missing = {number for number in curves if not self.record.is_feasible(self.record.trials[number])}
        return sorted(ended or curves, key=lambda n: (n in missing, -curves[n][max(curves[n])]))[:count]

    # ------------------------------------------------------------------------------------- forecasts

    def observations(self, extra: Unwritten | None = None) -> Observations | None:
        """What the process sees; None before there is enough."""
        budget = self.spec.finetune.max_steps
        rows: list[tuple[int, int, float]] = []
        for number in self.selected(MAX_TRIALS, extra):
            trial = self.record.trials[number]
            if trial.status == "diverged":  # modelled apart, so that a cliff does not bend the curves
                continue
            curve = self.curve(trial)
            if extra is not None and number in extra:
                step, value = extra[number]
                curve[step] = self.sign * value
            if curve:
                steps = {max(curve)}
                for share in SEEN_SHARES:
                    steps |= {min((step for step in curve if step >= share * budget - 0.5), default=max(curve))}
                rows += [(number, step, curve[step]) for step in sorted(steps)]
        if len(rows) < FEWEST_OBSERVATIONS:
            return None
        trials, steps_seen, values = zip(*rows, strict=True)
        return Observations(
            self.vectors(list(trials)), np.array(trials), np.array(steps_seen) / budget, np.array(values, dtype=float)
        )

    def selected(self, most: int, extra: Unwritten | None = None) -> list[int]:
        """All trials; of more than ``most`` the best third, by how far they came and then by value, and the newest."""
        tuned = self.tuned
        if len(tuned) <= most:
            return list(tuned)
        reached = {n: (trial.step, trial.value or 0.0) for n, trial in tuned.items() if trial.step > 0} | dict(
            extra or {}
        )
        best = sorted(reached, key=lambda n: (-reached[n][0], -self.sign * reached[n][1], n))
        keep = {*best[: most // 3], *(extra or {})}
        for number in reversed(tuned):
            if len(keep) >= most:
                break
            keep.add(number)
        return [number for number in tuned if number in keep]

    def fitted(self, number: int) -> CurveForecast | None:
        """The forecast by which trial ``number`` is proposed, with its own hyperparameters; None for the first ones."""
        seen = self.observations() if number > INITIAL_TRIALS else None
        if seen is None:
            return None
        rng = np.random.default_rng([self.spec.search.seed, number, 3])
        lengths = LENGTH * np.exp(rng.normal(size=self.cube.num_columns) * LENGTH_VARIATION)
        return self._forecast(seen, self._fit(seen, lengths))

    def current(self, extra: Unwritten | None = None) -> CurveForecast | None:
        """The forecast with all data of now and the newest hyperparameters of the journal; None before any data.

        As long as the journal has none, they are fitted anew.
        """
        seen = self.observations(extra)
        if seen is None:
            return None
        model = self.record.model
        if model is None:
            return self._forecast(seen, self._fit(seen, np.full(self.cube.num_columns, LENGTH), extra))
        expected = num_parameters(self.cube.num_columns)
        if len(model) != expected:
            raise FtaeError(
                f"the journal of {self.spec.name} has a model of {len(model)} numbers, and this search space needs "
                f"{expected}: the journal is damaged, or by another version of ftae"
            )
        return self._forecast(seen, np.array(model))

    def _fit(self, seen: Observations, lengths: Array, extra: Unwritten | None = None) -> Array:
        return fit(seen.of_trials(set(self.selected(MAX_FITTED_TRIALS, extra))), lengths, scale=seen.scale())

    def _forecast(self, seen: Observations, parameters: Array) -> CurveForecast:
        process = CurveProcess(seen, parameters)
        observed = set(seen.trials.tolist())  # the best of many trials are among them
        done = [trial.number for trial in self.finished_feasible() if trial.number in observed]
        bar = float(process.at_end(self.vectors(done), done)[0].max()) if done else None
        return CurveForecast(process, bar)

    def best_expected(self, process: CurveProcess, numbers: Iterable[int]) -> float | None:
        """The best end expected of trials that may still keep the constraints; None if there are none.

        It is the bar as long as no trial has ended well.
        """
        seen = sorted({n for n in numbers if self.record.is_feasible(self.record.trials[n]) is not False})
        return float(process.at_end(self.vectors(seen), seen)[0].max()) if seen else None

    # ------------------------------------------------------------------------------------- chances

    def log_chances(self) -> Callable[[Array], Array]:
        """Of vectors (N, D): the logarithm (N,) of the probability not to diverge and to keep all constraints."""
        parts = [self._alive(), *map(self._kept, self.spec.objective.constraints)]

        def of(vectors: Array) -> Array:
            return sum((part(vectors) for part in parts if part is not None), np.zeros(len(vectors)))

        return of

    def _alive(self) -> Callable[[Array], Array] | None:
        """The same for divergence; None before any is known."""
        known = [(n, trial) for n, trial in self.tuned.items() if trial.status == "diverged" or trial.step > 0]
        diverged = [number for number, trial in known if trial.status == "diverged"][-MAX_DIVERGED:]
        alive = [number for number, trial in known if trial.status != "diverged"][-MAX_ALIVE:]
        if not diverged or not alive or len(diverged) + len(alive) <= FEWEST_OBSERVATIONS:
            return None
        process = self._ends([*diverged, *alive], np.append(np.zeros(len(diverged)), np.ones(len(alive))))

        def of(vectors: Array) -> Array:
            mean, deviation = process.at_end(vectors)
            return np.asarray(log_ndtr((mean - 0.5) / np.maximum(deviation, 0.05)))

        return of

    def _kept(self, constraint: Constraint) -> Callable[[Array], Array] | None:
        """The same for a constraint."""
        known = [n for n, trial in self.tuned.items() if trial.step > 0 and trial.status != "diverged"][-MAX_ALIVE:]
        if len(known) < FEWEST_OBSERVATIONS:
            return None
        values = np.array([self.record.trials[number].metrics[constraint.metric] for number in known])
        bound, sign = constraint.bound, 1.0 if constraint.sense == ">=" else -1.0
        if bound > 0.0 and (values > 0.0).all():  # metrics such as the KL span orders of magnitude
            values, bound = np.log(values), float(np.log(bound))
        process = self._ends(known, values)

        def of(vectors: Array) -> Array:
            mean, deviation = process.at_end(vectors)
            return np.asarray(log_ndtr(sign * (mean - bound) / deviation))

        return of

    def _ends(self, numbers: list[int], values: Array) -> CurveProcess:
        """A process of one value a trial."""
        seen = Observations(self.vectors(numbers), np.array(numbers), np.ones(len(numbers)), values)
        return CurveProcess(seen, fit(seen, np.full(self.cube.num_columns, LENGTH), curves=False))

    # ------------------------------------------------------------------------------------- journal

    def facts(self, forecast: CurveForecast | None, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the ``suggest`` event of a trial says about the forecast that it was proposed by."""
        if forecast is None:
            return {}
        mean, deviation = forecast.process.at_end(self.cube.vector(params)[None])
        return {
            "model": forecast.process.parameters.tolist(),
            "noise": rounded(forecast.process.noise),
            "forecast": {"mean": rounded(self.sign * float(mean[0])), "sd": rounded(float(deviation[0]))},
        }
