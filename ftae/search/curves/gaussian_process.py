"""A Gaussian process of learning curves: where each trial will end, and where a new one would.

    value(x, s) = m(s) + f(x) + t h(x) + u_trial + t v_trial + noise,    t = ln(1/s) / ln(9)

``x``: params in the unit cube. ``s``: the share of the budget that was trained, so that t is 0 at the end and 1 at a
ninth. f is the end of a curve as a function of the params. h is how far a curve is off early on: a high learning rate
dips. u and v are what a trial has of its own. f and h have Matern kernels of degree 5/2 with a length for each
coordinate, as in Swersky, Snoek and Adams, Freeze-Thaw Bayesian Optimization (2014), which models curves differently.
Values are standardised. The inference is exact (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
chapters 2 and 5); the hyperparameters are the most probable ones.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

EARLIEST_SHARE = 1.0 / 9.0  # where t is 1
MEAN_VARIANCE = 4.0  # of the level and of the slope of m(s), where values have variance 1
BEND_VARIANCE, BEND_LENGTH = 1.0, 0.4  # of what else m(s) does, and over which range of t
JITTER = 1e-6

# The logarithms of the hyperparameters behind the lengths: their prior medians, prior deviations and bounds.
_OTHERS = {
    "factor": (0.0, 0.3, (-0.7, 0.7)),  # the lengths of h, as a multiple of those of f
    "end": (math.log(0.8), 0.5, (-2.0, 1.5)),  # the deviations of f, ...
    "early": (math.log(0.8), 0.5, (-7.0, 1.5)),  # h, ...
    "trial": (math.log(0.1), 1.0, (-5.0, 0.5)),  # u, ...
    "trial early": (math.log(0.2), 0.7, (-5.0, 0.5)),  # v, ...
    "noise": (math.log(0.05), 1.0, (-6.0, 0.0)),  # and of the noise
}
LENGTH, LENGTH_DEVIATION, LENGTH_BOUNDS = math.log(0.6), 1.0, (-3.0, 3.5)
NO_EARLY_TERM = (math.log(1e-3), 0.01)  # in place of the prior of h, for values that are no curves
FEWEST_TO_FIT = 4  # observations; the prior medians serve below
MAX_ITERATIONS = 25
DIGITS = 6  # of hyperparameters, behind the point: a journal holds the very numbers that are used


@dataclass(frozen=True)
class Observations:
    """Values of trials, one a row.

    Attributes:
        vectors: (N, D), the params of the trial in the unit cube.
        trials: (N,), the number of the trial.
        shares: (N,), the share of the budget, in (0, 1].
        values: (N,), higher is better.
    """

    vectors: Array
    trials: Array
    shares: Array
    values: Array

    def __len__(self) -> int:
        return len(self.values)

    def of_trials(self, numbers: set[int]) -> "Observations":
        """The rows of some of the trials."""
        rows = np.isin(self.trials, list(numbers))
        return Observations(self.vectors[rows], self.trials[rows], self.shares[rows], self.values[rows])

    def with_ends(self, vectors: Array, trials: list[int], values: Array) -> "Observations":
        """These and the ends of more trials."""
        return Observations(
            np.vstack([self.vectors, vectors]),
            np.append(self.trials, trials),
            np.append(self.shares, np.ones(len(trials))),
            np.append(self.values, values),
        )

    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the values."""
        return float(self.values.mean()), float(self.values.std()) + 1e-9


class CurveProcess:
    """The process, given observations.

    Args:
        observations: at least one.
        parameters: (D + 6,), the logarithms of the hyperparameters: lengths, then those of ``_OTHERS``.
        scale: mean and standard deviation by which values are standardised; by default their own.
    """

    def __init__(self, observations: Observations, parameters: Array, scale: tuple[float, float] | None = None) -> None:
        self.observations, self.parameters = observations, parameters
        self.shift, self.spread = scale or observations.scale()
        self._covariances = _Covariances(observations)
        with _one_thread():
            covariance = self._covariances.at(parameters)
            factor, failed = lapack.dpotrf(covariance, lower=1)
            if failed:  # two trials with the same params and hardly any noise
                factor, _ = lapack.dpotrf(covariance + 1e-3 * np.eye(len(covariance)), lower=1)
            self._factor = np.tril(factor)
            standardised = (observations.values - self.shift) / self.spread
            self._weights = lapack.dpotrs(self._factor, standardised, lower=1)[0].ravel()

    def at_end(self, vectors: Array, trials: list[int] | None = None) -> tuple[Array, Array]:
        """Predict the end of the budget.

        Args:
            vectors: (M, D), params in the unit cube.
            trials: (M,), the numbers of the trials where they are among the observed ones; None for new trials.

        Returns:
            Means and standard deviations, (M,) each, of the end without its noise.
        """
        lengths, other = _split(self.parameters)
        seen = self._covariances
        squares = (((vectors[:, None, :] - seen.distinct[None]) / lengths) ** 2).sum(-1)
        covariance = other["end"] ** 2 * _matern(squares)[0][:, seen.row_of] + _mean_kernel(np.zeros(1), seen.times)
        if trials is not None:
            covariance += other["trial"] ** 2 * (np.asarray(trials)[:, None] == self.observations.trials[None])
        with _one_thread():
            mean = covariance @ self._weights
            explained = (lapack.dtrtrs(self._factor, covariance.T, lower=1)[0] ** 2).sum(0)
        variance = other["end"] ** 2 + MEAN_VARIANCE + BEND_VARIANCE + other["trial"] ** 2 - explained
        return self.shift + self.spread * mean, self.spread * np.sqrt(np.maximum(variance, 1e-8))

    @property
    def noise(self) -> float:
        """The standard deviation of what two trials with the same params differ by from their mean, at the end."""
        other = _split(self.parameters)[1]
        return self.spread * math.hypot(other["trial"], other["noise"])


def num_parameters(num_columns: int) -> int:
    """The number of hyperparameters of a process over vectors of so many columns."""
    return num_columns + len(_OTHERS)


def fit(
    observations: Observations,
    lengths: Array,
    *,
    scale: tuple[float, float] | None = None,
    curves: bool = True,
) -> Array:
    """The most probable hyperparameters, (D + 6,), as ``CurveProcess`` takes them.

    Args:
        observations: the values to explain.
        lengths: (D,), the prior medians of the lengths.
        scale: as of ``CurveProcess``.
        curves: whether the values are curves; else they are taken to be ends.
    """
    medians = {name: prior[0] for name, prior in _OTHERS.items()}
    deviations = {name: prior[1] for name, prior in _OTHERS.items()}
    if not curves:
        medians["early"], deviations["early"] = NO_EARLY_TERM
    start = np.append(np.log(lengths), list(medians.values()))
    width = np.append(np.full(len(lengths), LENGTH_DEVIATION), list(deviations.values()))
    if len(observations) >= FEWEST_TO_FIT:
        bounds = [LENGTH_BOUNDS] * len(lengths) + [prior[2] for prior in _OTHERS.values()]
        shift, spread = scale or observations.scale()
        loss = _Covariances(observations).loss((observations.values - shift) / spread, start, width)
        with _one_thread():
            found: Any = minimize(
                loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MAX_ITERATIONS}
            )
        start = found.x
    return np.round(start, DIGITS)


class _Covariances:
    """The covariances of observations, and the loss of hyperparameters. Trials with equal params share a row."""

    def __init__(self, observations: Observations) -> None:
        self.times = np.log(1.0 / observations.shares) / math.log(1.0 / EARLIEST_SHARE)
        self.distinct, row_of = np.unique(observations.vectors, axis=0, return_inverse=True)
        self.row_of = row_of.ravel()
        self._same_trial = (observations.trials[:, None] == observations.trials[None]).astype(float)
        self._early = self.times[:, None] * self.times[None]
        self._mean = _mean_kernel(self.times, self.times)

    @cached_property
    def _squares(self) -> Array:
        """(rows, rows, D), squared differences of each coordinate."""
        return np.asarray((self.distinct[:, None, :] - self.distinct[None]) ** 2)

    def at(self, parameters: Array) -> Array:
        """The covariance of the observations, (N, N)."""
        return self._parts(parameters)[0]

    def _parts(self, parameters: Array) -> tuple[Array, dict[str, Array]]:
        lengths, other = _split(parameters)
        squares = self._squares @ lengths**-2
        end, end_slope = _matern(squares)
        early, early_slope = _matern(squares / other["factor"] ** 2)
        rows = np.ix_(self.row_of, self.row_of)
        parts = {
            "end": other["end"] ** 2 * end[rows],
            "early": other["early"] ** 2 * self._early * early[rows],
            "trial": other["trial"] ** 2 * self._same_trial,
            "trial early": other["trial early"] ** 2 * self._same_trial * self._early,
        }
        covariance = sum(parts.values()) + self._mean
        covariance[np.diag_indices(len(covariance))] += other["noise"] ** 2 + JITTER
        slopes = {"squares": squares, "end slope": end_slope, "early slope": early_slope / other["factor"] ** 2}
        return covariance, parts | slopes

    def loss(self, values: Array, medians: Array, deviations: Array) -> Callable[[Array], tuple[float, Array]]:
        """The negative logarithm of the posterior of hyperparameters, up to a constant, with its gradient."""
        one_hot = np.zeros((len(values), len(self.distinct)))
        one_hot[np.arange(len(values)), self.row_of] = 1.0

        def of(parameters: Array) -> tuple[float, Array]:
            covariance, parts = self._parts(parameters)
            factor, failed = lapack.dpotrf(covariance, lower=1)
            if failed:
                return 1e10, np.zeros_like(parameters)
            inverse, _ = lapack.dpotri(factor, lower=1)
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            weights = inverse @ values
            # The derivative by a hyperparameter is the sum of this, times that of the covariance, over two.
            pull = inverse - np.outer(weights, weights)
            lengths, other = _split(parameters)
            end = one_hot.T @ (pull * other["end"] ** 2) @ one_hot * parts["end slope"]
            early = one_hot.T @ (pull * other["early"] ** 2 * self._early) @ one_hot * parts["early slope"]
            by_length = 0.5 * np.einsum("ij,ijd->d", end + early, self._squares) * lengths**-2
            by_factor = 0.5 * (early * parts["squares"]).sum()
            by_deviation = [(pull * parts[name]).sum() for name in ("end", "early", "trial", "trial early")]
            by_noise = np.trace(pull) * other["noise"] ** 2
            z = (parameters - medians) / deviations
            loss = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * (z**2).sum()
            return float(loss), np.concatenate([by_length, [by_factor, *by_deviation, by_noise]]) + z / deviations

        return of


_CONTROLLER = ThreadpoolController()  # of the libraries that numpy and scipy have loaded
_LIMIT = threading.Lock()  # it is one for the whole process, and two searches may run in threads


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, linear algebra runs in one thread: the digits do not depend on the number of cores."""
    with _LIMIT, _CONTROLLER.limit(limits=1, user_api="blas"):
        yield


def _split(parameters: Array) -> tuple[Array, dict[str, float]]:
    """The lengths, and the other hyperparameters by name."""
    count = len(parameters) - len(_OTHERS)
    return np.exp(parameters[:count]), dict(zip(_OTHERS, np.exp(parameters[count:]).tolist(), strict=True))


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern 5/2 of squared distances, and its derivative by the squared distance, times -2."""
    r = math.sqrt(5.0) * np.sqrt(np.maximum(squares, 1e-16))
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, 5.0 / 3.0 * (1.0 + r) * decay


def _mean_kernel(a: Array, b: Array) -> Array:
    """The covariance of m(s) between two sets of times."""
    bend = BEND_VARIANCE * np.exp(-0.5 * ((a[:, None] - b[None]) / BEND_LENGTH) ** 2)
    return MEAN_VARIANCE + MEAN_VARIANCE * a[:, None] * b[None] + bend
