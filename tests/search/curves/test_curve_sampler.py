"""What the sampler of the curves learns: where the optimum lies, what diverges, what breaks a constraint."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from simulated import CONSTRAINED, ONE, SPACE, Trials, measured, sampler_spec

from ftae.search.curves.curve_sampler import FAR_BELOW, log_expected_improvement
from ftae.search.curves.forecaster import INITIAL_TRIALS

RATES: dict[str, Any] = {path: SPACE[path] for path in ("optimizer.lr", "optimizer.weight_decay", "grad_accumulation")}
RATE: dict[str, Any] = {"optimizer.lr": SPACE["optimizer.lr"]}


def loss(params: dict[str, Any]) -> float:
    """How far params are from a made-up optimum, in decibels; 0 there."""
    off_rate = math.log10(params["optimizer.lr"] / 0.02)
    off_decay = (params["optimizer.weight_decay"] - 0.1) / 0.25
    off_batches = math.log2(params["grad_accumulation"] / 4) / 3
    return off_rate**2 + off_decay**2 + off_batches**2


def best_of(name: str, direction: str, seed: int, num_trials: int = 16) -> float:
    """The smallest loss of a search."""
    trials = Trials(sampler_spec(RATES, ONE[direction], sampler=name, num_trials=num_trials, seed=seed))
    sign = -1.0 if direction == "maximize" else 1.0
    return min(
        loss(trials.run(number, lambda params: 20.0 + sign * loss(params), "file" if number == 1 else "sampled"))
        for number in range(1, num_trials + 1)
    )


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_optimum_is_found_where_random_trials_come_near(direction: str) -> None:
    ours, random = ([best_of(name, direction, seed) for seed in range(3)] for name in ("curve", "random"))
    assert max(ours) < 0.1
    assert np.mean(ours) < np.mean(random) / 4


def test_the_first_trials_fill_the_space_and_the_seed_decides_how() -> None:
    trials = Trials(sampler_spec(RATES, sampler="curve", seed=1))
    trials.begin_file()
    places = [trials.forecaster.cube.vector(trials.run(n, lambda params: 1.0)) for n in range(2, INITIAL_TRIALS + 1)]
    assert len({tuple(place) for place in places}) == len(places)
    others = Trials(sampler_spec(RATES, sampler="curve", seed=2))
    assert others.proposed(2) != trials.record.trials[2].params


def test_many_trials_that_begin_at_once_differ() -> None:
    """Before there are any data: 70 workers start at once."""
    trials = Trials(sampler_spec(RATES, sampler="curve", num_trials=200))
    found = [trials.begin(number) for number in range(2, 72)]
    assert len({str(params) for params in found}) == 70
    vectors = np.array([trials.forecaster.cube.vector(params) for params in found[:60]])
    for column in vectors.T:  # a quarter of them in each quarter of each range
        assert np.histogram(column, 4, (0.0, 1.0))[0] == pytest.approx(np.full(4, 15), abs=5)


def test_trials_that_run_at_a_time_are_not_of_one_mind() -> None:
    trials = Trials(sampler_spec(RATES, sampler="curve", num_trials=40))
    for number in range(1, 11):
        trials.run(number, lambda params: 20.0 - loss(params), "file" if number == 1 else "sampled")
    at_once = [trials.forecaster.cube.vector(trials.begin(number)) for number in range(11, 15)]
    for i, one in enumerate(at_once):
        for other in at_once[:i]:
            assert np.abs(one - other).max() > 0.02


def test_trials_that_have_not_ended_are_learned_from() -> None:
    """Reports at a third of the budget are enough to leave a bad region."""
    run = {"max_steps": 90, "num_evals": 9}
    trials = Trials(sampler_spec(RATE, run=run, sampler="curve", num_trials=40))
    found = []
    for number in range(2, 20):
        lr = trials.begin(number)["optimizer.lr"]
        found.append(abs(math.log10(lr / 0.01)))
        for step in (10, 20, 30):
            trials.report(number, step, 20.0 + step / 30 - 2.0 * found[-1])
    assert np.median(found[:4]) > 0.5
    assert np.median(found[8:]) < 0.5


# ------------------------------------------------------------------------- divergence, constraints


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_region_that_diverges_is_left_though_it_begins_near_the_best(direction: str) -> None:
    """Rates above 0.02 diverge, the best is at 0.01."""
    trials = Trials(sampler_spec(RATES, ONE[direction], sampler="curve", num_trials=40))
    found = []
    for number in range(2, 28):
        params = trials.begin(number)
        found.append(params["optimizer.lr"] > 0.02)
        if found[-1]:
            trials.report(number, 0, 18.0)
            trials.end(number, "diverged")
        else:
            value = 5.0 * math.log10(params["optimizer.lr"] / 0.01) ** 2
            trials.end(number, "finished", measured(20.0 - value if direction == "maximize" else 20.0 + value))
    assert sum(found[:8]) >= 2, "the region is met at all"
    assert sum(found[-12:]) <= 3
    near = [trials.record.trials[number].params["optimizer.lr"] for number in range(16, 28)]
    assert 0.004 < np.median(near) < 0.02


def ends_of(lr: float) -> dict[str, float]:
    """Both metrics rise with the rate: psnr by 1 per decade, mse to 0.5 at 0.01."""
    return {"val/psnr": 10 + math.log10(lr), "val/mse": 0.5 + math.log10(lr / 0.01) / 4}


def rates(objective: Any, count: int = 18) -> list[float]:
    """Proposed rates where the ends are those of ``ends_of``."""
    trials, found = Trials(sampler_spec(RATES, objective, sampler="curve", num_trials=count)), []
    for number in range(2, 2 + count):
        lr = trials.begin(number)["optimizer.lr"]
        found.append(lr)
        trials.end(number, "finished", ends_of(lr))
    return found


def test_where_all_trials_miss_a_constraint_the_next_one_looks_for_one_that_keeps_it() -> None:
    """It leaves the rates above 0.02, where all miss it, though these are the better the higher."""
    trials = Trials(sampler_spec(RATE, CONSTRAINED, sampler="curve", num_trials=40))
    for number, lr in enumerate((0.9, 0.1, 0.3, 0.06, 0.02), start=2):
        trials.begin(number, {"optimizer.lr": lr})
        trials.end(number, "finished", {"val/psnr": 20 + 5 * math.log10(lr), "val/mse": 0.6 + 0.01 * (number % 2)})
    assert trials.begin(7)["optimizer.lr"] < 0.01


def test_a_constraint_is_kept() -> None:
    constrained, free = rates(CONSTRAINED)[8:], rates(ONE["maximize"])[8:]
    assert np.median(free) > 0.3, "without the constraint the highest rates are best"
    assert sum(lr > 0.015 for lr in constrained) <= 3
    assert sum(0.003 < lr <= 0.015 for lr in constrained) >= 5, "it stays near the bound"


# ---------------------------------------------------------------------------- expected improvement


@pytest.mark.parametrize("mean", [-4.0, -0.5, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("deviation", [0.2, 1.0, 3.0])
def test_the_expected_improvement_is_that_of_the_integral(mean: float, deviation: float) -> None:
    bar = 0.1
    if (mean - bar) / deviation < FAR_BELOW:
        mean = bar - 5.9 * deviation
    expected, _ = quad(
        lambda value: (value - bar) * norm.pdf(value, mean, deviation), bar, max(bar, mean) + 12.0 * deviation
    )
    [found] = log_expected_improvement(np.array([mean]), np.array([deviation]), bar)
    assert found == pytest.approx(math.log(expected), abs=1e-5)


def test_far_below_the_bar_the_logarithm_goes_on_falling_without_a_jump() -> None:
    z = np.concatenate([FAR_BELOW + np.linspace(-1e-3, 1e-3, 201), [-8.0, -20.0, -1e3, -1e5]])
    found = log_expected_improvement(z, np.ones_like(z), 0.0)
    assert np.isfinite(found).all()
    order = np.argsort(z)
    assert (np.diff(found[order]) > 0.0).all()
    assert np.abs(np.diff(found[:201])).max() < 1e-3
    for place, value in zip(z[201:203], found[201:203], strict=True):
        # The density of the normal at ``v`` above the bar, but for its value at the bar.
        expected, _ = quad(lambda v, z=place: v * math.exp(z * v - v * v / 2.0), 0.0, 3.0)
        assert value == pytest.approx(norm.logpdf(place) + math.log(expected), abs=2e-3)
