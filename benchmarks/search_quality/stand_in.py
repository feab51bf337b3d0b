"""A stand-in for training: whole curves of configurations that were not recorded, by regression.

Curves are warped, so that small differences between good ones count as much as large ones between poor ones, and taken
apart into principal components; a Gaussian process predicts each component. How many components, cross-validation
decides: the number whose predictions are best among the best quarter of the curves.
"""

import math
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky
from scipy.optimize import minimize

from benchmarks.search_quality.unit_space import Vector

COMPONENTS = (2, 3, 5)
FOLDS = 5
HEADROOM = 0.3  # how far above the best recorded value a curve can be predicted to come; in dB, like the others
WARP_UNIT = 1.0
EXPECTED_LENGTH, SPREAD_OF_LENGTHS = math.log(0.7), 1.2  # of the logarithms of the lengths, beforehand
JITTER = 1e-6


class GaussianProcess:
    """A Matern 5/2 kernel with a length for each coordinate, and noise; both are those of the largest posterior."""

    def __init__(self, inputs: Vector, values: Vector) -> None:
        self._inputs, self._mean, self._scale = inputs, values.mean(), values.std() + 1e-9
        targets = (values - self._mean) / self._scale
        lengths, noise = _fitted(inputs, targets)
        self._lengths = lengths
        kernel = _matern(inputs, inputs, lengths) + (noise + JITTER) * np.eye(len(inputs))
        self._weights = cho_solve(cho_factor(kernel, lower=True), targets)

    def predict(self, inputs: Vector) -> Vector:
        """The mean of the posterior."""
        mean: Vector = self._mean + self._scale * (_matern(inputs, self._inputs, self._lengths) @ self._weights)
        return mean


def _matern(left: Vector, right: Vector, lengths: Vector) -> Vector:
    squares = (((left[:, None] - right[None]) / lengths) ** 2).sum(-1)
    distance = np.sqrt(5.0 * np.maximum(squares, 1e-18))
    kernel: Vector = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel


def _fitted(inputs: Vector, targets: Vector) -> tuple[Vector, float]:
    """The lengths and the variance of the noise."""
    count, dimensions = inputs.shape
    squares = (inputs[:, None] - inputs[None]) ** 2
    identity = np.eye(count)

    def loss(theta: Vector) -> tuple[float, Vector]:
        """The negative logarithm of the posterior, and its gradient."""
        inverse_squares, noise = np.exp(-2 * theta[:-1]), math.exp(2 * theta[-1])
        distance = np.sqrt(5.0 * np.maximum(squares @ inverse_squares, 1e-18))
        decay = np.exp(-distance)
        kernel = (1 + distance + distance**2 / 3) * decay
        try:
            factor = cholesky(kernel + (noise + JITTER) * identity, lower=True)
        except LinAlgError:
            return 1e9, np.zeros_like(theta)
        inverse = cho_solve((factor, True), identity)
        weights = inverse @ targets
        outer = inverse - np.outer(weights, weights)
        by_length = np.einsum("ij,ijk->k", outer * (5 / 3) * (1 + distance) * decay, squares) * inverse_squares / 2
        off = (theta[:-1] - EXPECTED_LENGTH) / SPREAD_OF_LENGTHS
        value = targets @ weights / 2 + np.log(np.diag(factor)).sum() + (off**2).sum() / 2
        return float(value), np.append(by_length + off / SPREAD_OF_LENGTHS, noise * np.trace(outer))

    start = np.append(np.full(dimensions, EXPECTED_LENGTH), math.log(0.3))
    bounds = [(-3.0, 3.0)] * dimensions + [(-5.0, 0.0)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    return np.exp(found.x[:-1]), math.exp(2 * found.x[-1])


class CurveModel:
    """Predicts curves; higher values are better. ``curves`` has a row for each configuration in ``inputs``."""

    def __init__(self, inputs: Vector, curves: Vector, components: int) -> None:
        self.components = components
        self._top = curves.max() + HEADROOM
        warped = self._warped(curves)
        self._mean, self._scale = warped.mean(0), warped.std(0) + 1e-9
        scaled = (warped - self._mean) / self._scale
        self._basis = np.linalg.svd(scaled, full_matrices=False)[2][:components]
        self._processes = [GaussianProcess(inputs, scaled @ vector) for vector in self._basis]

    def predict(self, inputs: Vector, components: int | None = None) -> Vector:
        """A curve for each row of ``inputs``, by fewer components if wished."""
        used = self._processes[:components]
        scores = np.stack([process.predict(inputs) for process in used], axis=1)
        warped = scores @ self._basis[: len(used)] * self._scale + self._mean
        curves: Vector = self._top - (np.exp(-warped) - 1) * WARP_UNIT
        return curves

    def _warped(self, curves: Vector) -> Vector:
        warped: Vector = -np.log(1 + np.maximum(self._top - curves, 0) / WARP_UNIT)
        return warped


def fit_curves(inputs: Vector, curves: Vector) -> tuple[CurveModel, dict[str, float]]:
    """The stand-in of recorded curves, and how well it predicts the ends of curves that it has not seen."""
    order = np.random.default_rng(0).permutation(len(inputs))
    ends = {count: np.empty(len(curves)) for count in COMPONENTS}
    for fold in range(FOLDS):
        held_out = order[fold::FOLDS]
        rest = np.setdiff1d(order, held_out)
        model = CurveModel(inputs[rest], curves[rest], max(COMPONENTS))
        for count, predicted in ends.items():
            predicted[held_out] = model.predict(inputs[held_out], count)[:, -1]
    found = {count: _fit_of(curves[:, -1], predicted) for count, predicted in ends.items()}
    components = min(COMPONENTS, key=lambda count: found[count]["error in the best quarter"])
    return CurveModel(inputs, curves, components), {"components": components, **found[components]}


def _fit_of(true: Vector, predicted: Vector) -> dict[str, Any]:
    low = np.quantile(true, 0.1)  # how poor the poorest are does not matter
    clipped, guessed = np.maximum(true, low), np.maximum(predicted, low)
    best = true >= np.quantile(true, 0.75)
    explained = 1 - ((clipped - guessed) ** 2).sum() / ((clipped - clipped.mean()) ** 2).sum()
    error = np.sqrt(((true - predicted)[best] ** 2).mean())
    return {"R2": float(explained), "error in the best quarter": float(error)}
