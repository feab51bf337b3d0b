"""``sampler: curve``: proposes the params with the largest expected improvement over the best end so far."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtr
from scipy.stats import qmc

from ftae.search.curves.decisions import Proposal
from ftae.search.curves.forecaster import CurveForecast, Forecaster
from ftae.search.curves.gaussian_process import Array, CurveProcess
from ftae.specs.search.distributions import Tried
from ftae.specs.search.objective import Metrics

MAX_POINTS = 64  # of the sequence that fills the space; then it begins again
FROM_RELATED = 2  # every so many-th of the first trials follows earlier searches, if the search has any
APART = 0.2  # the distance of such a trial to the others, at least
RANDOM_CANDIDATES = 400
BEST_TRIALS, NEAR_BEST = 4, 50  # so many candidates near each of the best trials
BEST_CANDIDATES, NEAR_CANDIDATE, REFINED_WIDTHS = 5, 20, (1.0, 0.5)  # then so many near each of the best candidates

FAR_BELOW = -6.0  # in deviations: where the expected improvement is taken from its series


class CurveSampler:
    """Bayesian optimisation with the Gaussian process of the curves.

    The acquisition is the expected improvement at the end of the budget (Jones, Schonlau and Welch 1998), times the
    probabilities not to diverge and to keep the constraints (Gardner et al. 2014). Running trials are taken to end
    where the process expects it (the kriging believer of Ginsbourger, Le Riche and Carraro 2010), so that trials that
    run at a time differ.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        self._forecaster, self._spec = forecaster, forecaster.spec
        self._tried = Tried(self._spec, self._spec.search.num_trials)

    @property
    def is_exhausted(self) -> bool:
        """Whether every configuration of the space was tried, or is being tried."""
        return self._tried.is_exhausted

    def propose(self, number: int) -> Proposal | None:
        """New params for trial ``number``; None if the space is exhausted. Changes nothing."""
        if self.is_exhausted:
            return None  # before anything is fitted
        forecast = self._forecaster.fitted(number)
        points = self._initial(number) if forecast is None else self._candidates(forecast, number)
        params = self._tried.first_new(self._forecaster.cube.params(point) for point in points)
        assert params is not None
        return Proposal(params, self._forecaster.facts(forecast, params))

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        """A trial with these params has begun."""
        self._tried.add(number, params)

    def report(self, number: int, step: int, value: float) -> None:
        """Nothing to do: the forecaster reads the journal."""

    def end(self, number: int, status: str, metrics: Metrics) -> None:
        """Take the end of a trial; one that a machine failed may be tried again."""
        if status == "failed":
            self._tried.remove(number)

    def _initial(self, number: int) -> Array:
        """Points for one of the first trials: where earlier searches would look, or else where nothing is known."""
        related = self._forecaster.related
        if related is None or number % FROM_RELATED:
            return self._filling(number)
        cube, rng = self._forecaster.cube, np.random.default_rng([self._spec.search.seed, number])
        points = self._around(related.best(BEST_TRIALS), rng)
        vectors = cube.vectors(points)
        tried = self._forecaster.vectors(list(self._forecaster.tuned))
        is_near = ((vectors[:, None] - tried[None]) ** 2).sum(-1).min(1) < APART**2
        return np.asarray(points[np.lexsort([-related.expected(vectors), is_near])])

    def _around(self, known: list[Array], rng: np.random.Generator) -> Array:
        """Points at random, and some near each of the known ones."""
        cube = self._forecaster.cube
        near = [cube.near(np.repeat(point[None], NEAR_BEST, axis=0), rng) for point in known]
        return np.vstack([rng.random((RANDOM_CANDIDATES, cube.num_coordinates)), *near])

    def _filling(self, number: int) -> Array:
        """Points to fill the space from, the one for trial ``number`` first: a scrambled Sobol sequence."""
        sequence = qmc.Sobol(self._forecaster.cube.num_coordinates, scramble=True, rng=self._spec.search.seed)
        return np.roll(np.asarray(sequence.random(MAX_POINTS)), -(number - 1) % MAX_POINTS, axis=0)

    def _candidates(self, forecast: CurveForecast, number: int) -> Array:
        """Points, the most promising one first."""
        rng = np.random.default_rng([self._spec.search.seed, number])
        cube, best = self._forecaster.cube, self._forecaster.best(BEST_TRIALS)
        log_gain = self._log_gain(forecast)
        known = [cube.point(self._forecaster.record.trials[n].params) for n in best]
        points = self._around(known, rng)
        gains = log_gain(points)
        for width in REFINED_WIDTHS:
            top = points[np.argsort(-gains, kind="stable")[:BEST_CANDIDATES]]
            finer = cube.near(np.repeat(top, NEAR_CANDIDATE, axis=0), rng, width)
            points, gains = np.vstack([points, finer]), np.append(gains, log_gain(finer))
        return np.asarray(points[np.argsort(-gains, kind="stable")])

    def _with_running(self, forecast: CurveForecast) -> tuple[CurveProcess, float | None]:
        """The process with the running trials at their expected ends, and the value to improve on, if there is one."""
        forecaster, process = self._forecaster, forecast.process
        running = [trial.number for trial in forecaster.record.tuned_running]
        bar = forecast.bar
        if bar is None:
            bar = forecaster.best_expected(process, running or process.observations.trials.astype(int).tolist())
        if running:
            vectors = forecaster.vectors(running)
            ends = process.at_end(vectors, running)[0]
            process = CurveProcess(process.observations.with_ends(vectors, running, ends), process.parameters)
        return process, bar

    def _log_gain(self, forecast: CurveForecast) -> Callable[[Array], Array]:
        """The acquisition: of points, the logarithm of the expected improvement, times the chances.

        As long as all trials miss constraints, there is nothing to improve on, and the chances alone count.
        """
        process, bar = self._with_running(forecast)
        log_chances = self._forecaster.log_chances()

        def of(points: Array) -> Array:
            vectors = self._forecaster.cube.vectors(points)
            chances = log_chances(vectors)
            return chances if bar is None else chances + log_expected_improvement(*process.at_end(vectors), bar)

        return of


def log_expected_improvement(mean: Array, deviation: Array, bar: float) -> Array:
    """The logarithm of the expectation of ``max(0, value - bar)`` of normal values, (N,).

    Far below ``bar`` its asymptotic series is used (Ament et al. 2023), whose logarithm does not vanish.
    """
    z = (mean - bar) / deviation
    near, far = np.maximum(z, FAR_BELOW), np.minimum(z, FAR_BELOW)
    expected = np.exp(-0.5 * near * near) / math.sqrt(2.0 * math.pi) + near * ndtr(near)
    w = far**-2
    series = np.log(w) + np.log1p(w * (-3.0 + w * (15.0 - 105.0 * w)))
    log_far = -0.5 * far * far - 0.5 * math.log(2.0 * math.pi) + series
    return np.asarray(np.where(z > FAR_BELOW, np.log(expected), log_far) + np.log(deviation))
