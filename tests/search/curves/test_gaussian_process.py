"""The Gaussian process of the curves: its covariance, its predictions, and the fit of its hyperparameters."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from ftae.search.curves.gaussian_process import (
    _OTHERS,
    BEND_LENGTH,
    BEND_VARIANCE,
    MEAN_VARIANCE,
    Array,
    CurveProcess,
    Observations,
    _Covariances,
    fit,
)

SHARES = (1 / 9, 1 / 3, 2 / 3, 1.0)


def observed(num_trials: int = 8, num_columns: int = 3, noise: float = 0.05) -> Observations:
    """Curves of trials at random params that rise to an end; the last two trials have the same params."""
    rng = np.random.default_rng(0)
    vectors = rng.random((num_trials, num_columns))
    vectors[-1] = vectors[-2]
    ends = 20.0 - 4.0 * ((vectors - 0.4) ** 2).sum(1)
    values = [end + 2.0 * math.log(share) + rng.normal() * noise for end in ends for share in SHARES]
    trials = np.repeat(np.arange(num_trials), len(SHARES))
    return Observations(vectors[trials], trials, np.tile(SHARES, num_trials), np.array(values))


def parameters(num_columns: int, **others: float) -> Array:
    """Hyperparameters: all lengths 0.6, and the prior medians but for ``others``."""
    named = {name: math.exp(prior[0]) for name, prior in _OTHERS.items()} | others
    return np.log([*[0.6] * num_columns, *named.values()])


# ---------------------------------------------------------------------------------------- covariance


def matern(distance: float) -> float:
    r = math.sqrt(5.0) * distance
    return (1.0 + r + r * r / 3.0) * math.exp(-r)


def mean_kernel(a: float, b: float) -> float:
    return MEAN_VARIANCE * (1.0 + a * b) + BEND_VARIANCE * math.exp(-0.5 * ((a - b) / BEND_LENGTH) ** 2)


def by_hand(x: float, y: float, s: float, t: float, *, same_trial: bool) -> float:
    """The covariance, without noise, of two values at params ``x`` and ``y`` and times ``s`` and ``t``."""
    end, early, trial, trial_early, factor = 0.8, 0.7, 0.3, 0.2, 1.5
    distance = abs(x - y) / 0.6
    shared = trial**2 + trial_early**2 * s * t if same_trial else 0.0
    return mean_kernel(s, t) + end**2 * matern(distance) + early**2 * s * t * matern(distance / factor) + shared


def test_the_covariance_and_the_prediction_are_those_of_the_formula() -> None:
    """One trial at a ninth and at a third of its budget, and the end of another."""
    x, shares, trials = [0.2, 0.2, 0.7], [1 / 9, 1 / 3, 1.0], [4, 4, 5]
    values = np.array([1.0, 2.0, 4.0])
    given = parameters(1, **{"end": 0.8, "early": 0.7, "trial": 0.3, "trial early": 0.2, "factor": 1.5, "noise": 0.1})
    seen = Observations(np.array(x)[:, None], np.array(trials), np.array(shares), values)
    times = [1.0, 0.5, 0.0]
    expected = np.array(
        [
            [by_hand(x[i], x[j], times[i], times[j], same_trial=trials[i] == trials[j]) for j in range(3)]
            for i in range(3)
        ]
    )
    expected += (0.1**2 + 1e-6) * np.eye(3)
    assert _Covariances(seen).at(given) == pytest.approx(expected, rel=1e-12)

    process = CurveProcess(seen, given, scale=(0.0, 1.0))
    for place, number in ((0.2, 4), (0.4, None)):
        cross = np.array([by_hand(place, x[j], 0.0, times[j], same_trial=trials[j] == number) for j in range(3)])
        prior = by_hand(place, place, 0.0, 0.0, same_trial=True)
        mean, deviation = process.at_end(np.array([[place]]), None if number is None else [number])
        assert mean[0] == pytest.approx(cross @ np.linalg.solve(expected, values), rel=1e-9)
        assert deviation[0] ** 2 == pytest.approx(prior - cross @ np.linalg.solve(expected, cross), rel=1e-6)


def test_a_process_without_noise_goes_through_its_values() -> None:
    seen = observed(num_trials=6, noise=0.0).of_trials({0, 1, 2, 3})
    process = CurveProcess(seen, parameters(3, noise=math.exp(-6.0), trial=math.exp(-5.0)))
    ends = seen.shares == 1.0
    mean, deviation = process.at_end(seen.vectors[ends], seen.trials[ends].tolist())
    assert mean == pytest.approx(seen.values[ends], abs=0.02)
    between, unsure = process.at_end(np.array([[0.9, 0.05, 0.95]]))
    assert unsure[0] > 5.0 * deviation.max(), "where no trial was"
    assert seen.values.min() < between[0] < seen.values.max() + 3.0


def test_the_beginning_of_a_curve_tells_its_end() -> None:
    """Of a trial that was stopped at a third: above what its params say, if its beginning was."""
    seen = observed()
    new = np.array([[0.4, 0.4, 0.4]])
    given = fit(seen, np.full(3, 0.6))

    def predicted(offset: float) -> tuple[float, float]:
        curve = [20.0 + 2.0 * math.log(share) + offset for share in SHARES[:2]]
        more = Observations(
            np.vstack([seen.vectors, new, new]),
            np.append(seen.trials, [99, 99]),
            np.append(seen.shares, SHARES[:2]),
            np.append(seen.values, curve),
        )
        mean, deviation = CurveProcess(more, given).at_end(new, [99])
        return float(mean[0]), float(deviation[0])

    without = CurveProcess(seen, given).at_end(new)
    low, middle, high = (predicted(offset) for offset in (-1.0, 0.0, 1.0))
    assert low[0] < middle[0] < high[0]
    assert middle[0] == pytest.approx(20.0, abs=0.3)
    assert middle[1] < without[1][0], "what was seen of a trial makes its end surer"


def test_an_observation_more_of_an_end_is_taken_as_given() -> None:
    seen = observed()
    more = seen.with_ends(np.array([[0.9, 0.9, 0.9]]), [50], np.array([17.0]))
    assert len(more) == len(seen) + 1
    mean, _ = CurveProcess(more, parameters(3, noise=0.01, trial=0.01)).at_end(np.array([[0.9, 0.9, 0.9]]), [50])
    assert mean[0] == pytest.approx(17.0, abs=0.2)


def test_two_trials_with_the_same_params_and_no_noise_are_no_fault() -> None:
    seen = Observations(np.full((4, 2), 0.5), np.arange(4), np.ones(4), np.array([1.0, 1.0, 1.0, 1.0]))
    process = CurveProcess(seen, parameters(2, noise=math.exp(-6.0), trial=math.exp(-5.0)))
    mean, deviation = process.at_end(np.full((1, 2), 0.5))
    assert mean[0] == pytest.approx(1.0)
    assert np.isfinite(deviation).all()


# --------------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_the_loss(seed: int) -> None:
    seen, rng = observed(), np.random.default_rng(seed)
    values = (seen.values - seen.values.mean()) / seen.values.std()
    medians, deviations = parameters(3), np.linspace(0.3, 1.0, 3 + len(_OTHERS))
    loss = _Covariances(seen).loss(values, medians, deviations)
    at = medians + rng.normal(size=len(medians)) * 0.5
    _, gradient = loss(at)
    steps = 1e-5 * np.eye(len(at))
    numeric = [(loss(at + step)[0] - loss(at - step)[0]) / 2e-5 for step in steps]
    assert gradient == pytest.approx(np.array(numeric), rel=1e-4, abs=1e-5)
    assert np.abs(gradient).min() > 1e-4, "each hyperparameter matters"


def test_the_fit_is_more_probable_than_its_start() -> None:
    seen = observed()
    found = fit(seen, np.full(3, 0.6))
    values = (seen.values - seen.scale()[0]) / seen.scale()[1]
    deviations = np.append(np.ones(3), [prior[1] for prior in _OTHERS.values()])
    loss = _Covariances(seen).loss(values, parameters(3), deviations)
    assert loss(found)[0] < loss(parameters(3))[0] - 1.0
    assert found == pytest.approx(np.round(found, 6), abs=0.0), "the journal holds the very numbers"


def test_few_observations_are_not_fitted() -> None:
    few = observed().of_trials({0})
    assert len(few) == 4
    three = Observations(few.vectors[:3], few.trials[:3], few.shares[:3], few.values[:3])
    assert fit(three, np.full(3, 0.6)) == pytest.approx(parameters(3), abs=1e-6)


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_the_noise_is_found_from_repeats(noise: float) -> None:
    """What trials with the same params differ by."""
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.random((10, 1)), 4, axis=0)
    values = 30.0 + 2.0 * np.sin(3.0 * vectors[:, 0]) + rng.normal(size=len(vectors)) * noise
    seen = Observations(vectors, np.arange(len(vectors)), np.ones(len(vectors)), values)
    process = CurveProcess(seen, fit(seen, np.full(1, 0.6), curves=False))
    assert noise / 1.35 < process.noise < noise * 1.35


def test_a_coordinate_without_influence_gets_a_greater_length() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.random((30, 2))
    values = np.sin(6.0 * vectors[:, 0])
    found = fit(Observations(vectors, np.arange(30), np.ones(30), values), np.full(2, 0.6), curves=False)
    assert found[1] > found[0] + 1.0


DIGITS = """
import numpy as np
from ftae.search.curves.gaussian_process import CurveProcess, Observations, fit

rng = np.random.default_rng(0)
vectors, trials = rng.random((100, 4))[np.repeat(np.arange(100), 3)], np.repeat(np.arange(100), 3)
values = np.sin(vectors.sum(1)) + rng.normal(size=300) * 0.1
process = CurveProcess(seen := Observations(vectors, trials, np.tile([1 / 9, 1 / 3, 1.0], 100), values),
                       fit(seen, np.full(4, 0.6)))
mean, deviation = process.at_end(rng.random((200, 4)))
print([float(number).hex() for number in (*process.parameters, *mean, *deviation)])
"""


def test_the_digits_depend_on_no_number_of_threads() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = set()
    for threads in ("1", "2"):
        env = os.environ | dict.fromkeys(names, threads)
        done = subprocess.run([sys.executable, "-c", DIGITS], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    [digits] = found
    assert digits.count("0x") == 10 + 200 + 200
