"""Which trials the forecast stops, which go on, and what the journal is told."""

import math
from typing import Any

import pytest
from scipy.special import ndtr
from simulated import ONE, Trials, sampler_spec

from ftae.search.curves.decisions import Stop

RATE: dict[str, Any] = {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}}
STEPS = tuple(range(10, 91, 10))


def trials_of(direction: str = "maximize", **scheduler: Any) -> Trials:
    """A search of 90 steps and 9 evaluations, with the file's own trial at a rate of 0.001."""
    return Trials(
        sampler_spec(
            RATE,
            ONE[direction],
            {"max_steps": 90, "num_evals": 9},
            scheduler={"name": "forecast"} | scheduler,
            num_trials=100,
        )
    )


def value_at(step: int, end: float) -> float:
    """The curve of every trial: it comes up to its end as the logarithm of the steps."""
    return end + 2.0 * math.log(step / 90)


def run_to(trials: Trials, number: int, end: float, last: int = 90, lr: float | None = None) -> Stop | None:
    """Report the curve of a trial up to a step; returns what the scheduler said to the last report."""
    if number not in trials.record.trials:
        trials.begin(number, {"optimizer.lr": lr or 1e-3}, "file" if number == 1 else "sampled")
    sign = 1.0 if trials.spec.objective.first.direction == "maximize" else -1.0
    stop = None
    for step in STEPS:
        if trials.record.trials[number].step < step <= last:
            stop = trials.report(number, step, sign * value_at(step, end))
    if last == 90:
        trials.end(number, "finished")
    return stop


def with_four_done(trials: Trials) -> Trials:
    """Four trials that ended at 20 to 23; the higher the rate the better."""
    for number, lr in enumerate((1e-3, 3e-3, 1e-2, 3e-2), start=1):
        run_to(trials, number, 19.0 + number, lr=lr)
    return trials


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_hopeless_trial_is_stopped_and_a_promising_one_goes_on(direction: str) -> None:
    trials = with_four_done(trials_of(direction))
    assert run_to(trials, 5, 26.0, 30, lr=0.1) is None
    stop = run_to(trials, 6, 15.0, 30, lr=2e-3)
    assert stop is not None
    assert stop.forecast is not None
    sign = 1.0 if direction == "maximize" else -1.0
    mean, deviation, chance, best = (stop.forecast[name] for name in ("mean", "sd", "chance", "best"))
    assert mean == pytest.approx(sign * 15.0, abs=1.0)
    assert best == pytest.approx(sign * 23.0, abs=0.2)
    assert chance == pytest.approx(ndtr(sign * (mean - best) / deviation), rel=1e-3, abs=1e-12)
    assert chance < 0.25
    assert stop.reason.startswith("its end is expected at ")
    assert stop.reason.endswith(f"and the chance to beat {best:.4g} is {chance:.0%}")
    assert stop.fields() == {"reason": stop.reason, "forecast": stop.forecast}


def test_the_files_own_trial_runs_to_its_end() -> None:
    trials = trials_of()
    for number, end in ((2, 30.0), (3, 31.0), (4, 32.0)):
        run_to(trials, number, end, lr=0.01)
    assert run_to(trials, 5, 10.0, 80, lr=0.01) is not None
    assert run_to(trials, 1, 10.0, 80, lr=0.01) is None


def test_nothing_is_stopped_before_the_grace_is_over() -> None:
    trials = with_four_done(trials_of(grace_fraction=0.5))
    trials.begin(5, {"optimizer.lr": 2e-3})
    said = {step: run_to(trials, 5, 10.0, step) is not None for step in STEPS[:-1]}
    assert said == {step: step >= 50 for step in STEPS[:-1]}
    assert trials.spec.rung_steps() == [step for step in said if said[step]]


def test_the_first_evaluation_counts_where_its_step_is_rounded_down() -> None:
    """A ninth of 12 steps is evaluated at step 1, which is before 0.11 of them."""
    trials = Trials(sampler_spec(RATE, run={"max_steps": 12, "num_evals": 9}, scheduler={"name": "forecast"}))
    assert trials.spec.rung_steps()[0] == 1 < 0.11 * 12
    for number in range(2, 9):
        trials.begin(number, {"optimizer.lr": 10.0 ** (-number / 3)})
        for step in (1, 4, 8, 12):
            trials.report(number, step, number + 2.0 * math.log(step / 12))
        trials.end(number, "finished")
    trials.begin(9, {"optimizer.lr": 0.3})
    assert trials.stop(9, 1, 1.0 + 2.0 * math.log(1 / 12)) is not None


@pytest.mark.parametrize(("min_chance", "stopped"), [(0.05, False), (0.25, False), (0.9, True)])
def test_the_least_chance_is_that_of_the_file(min_chance: float, stopped: bool) -> None:
    """A trial about as good as the best."""
    trials = with_four_done(trials_of(min_chance=min_chance))
    assert (run_to(trials, 5, 23.0, 30, lr=3e-2) is not None) is stopped


def test_without_data_nothing_is_stopped() -> None:
    trials = trials_of()
    trials.begin(2, {"optimizer.lr": 1e-3})
    assert trials.report(2, 10, -100.0) is None


def test_before_any_trial_has_ended_the_best_expected_end_is_the_bar() -> None:
    trials = trials_of()
    for number, end in ((2, 20.0), (3, 21.0), (4, 22.0)):
        run_to(trials, number, end, 30, lr=10.0**-number)
    trials.end(3, "pruned")
    trials.end(2, "failed")
    assert trials.forecaster.current() is not None
    assert trials.forecaster.finished_feasible() == []
    stop = run_to(trials, 5, 14.0, 30, lr=1e-3)
    assert stop is not None
    assert stop.forecast is not None
    forecast = trials.forecaster.current()
    assert forecast is not None
    assert forecast.bar is None
    ends, _ = forecast.process.at_end(trials.forecaster.vectors([2, 3, 4, 5]), [2, 3, 4, 5])
    assert stop.forecast["best"] == pytest.approx(ends.max(), rel=1e-5)
    assert ends.argmax() == 2
    assert run_to(trials, 6, 24.0, 30, lr=1e-3) is None


@pytest.mark.parametrize(("num_running", "num_protected"), [(1, 0), (2, 0), (3, 1), (4, 1), (8, 2), (16, 4)])
def test_a_share_of_the_running_trials_goes_on_whatever_the_bar(num_running: int, num_protected: int) -> None:
    """All are hopeless, and one as far as the others; the better the number the higher the end."""
    trials = with_four_done(trials_of())
    numbers = range(10, 10 + num_running)
    for number in numbers:
        trials.begin(number, {"optimizer.lr": 1e-3})
        for step in STEPS[:3]:
            trials.report(number, step, value_at(step, 5.0 + number / 5))
    goes_on = [n for n in numbers if trials.stop(n, 30, value_at(30, 5.0 + n / 5)) is None]
    assert goes_on == list(numbers[num_running - num_protected :])


def test_of_several_running_trials_the_one_that_is_furthest_goes_on() -> None:
    trials = with_four_done(trials_of())
    for number in (10, 11, 12):
        trials.begin(number, {"optimizer.lr": 1e-3})
        trials.report(number, 10, value_at(10, 8.0))
    assert trials.stop(10, 20, value_at(20, 7.0)) is None
    trials.report(11, 20, value_at(20, 8.0))
    assert trials.stop(10, 20, value_at(20, 7.0)) is not None


def test_the_baseline_is_no_running_trial() -> None:
    trials = with_four_done(trials_of())
    trials.begin(0, {}, "baseline")
    for number in (10, 11):
        trials.begin(number, {"optimizer.lr": 1e-3})
        trials.report(number, 10, value_at(10, 8.0))
    assert trials.stop(10, 20, value_at(20, 7.0)) is not None


def test_an_end_that_misses_a_constraint_is_no_bar() -> None:
    objective = ONE["maximize"] | {"constraints": ["val/mse <= 0.5"]}
    run = {"max_steps": 90, "num_evals": 9}
    trials = Trials(sampler_spec(RATE, objective, run, scheduler={"name": "forecast"}))
    for number, (end, mse) in enumerate(((20.0, 0.1), (30.0, 0.9), (20.5, 0.2)), start=2):
        trials.begin(number, {"optimizer.lr": 10.0**-number})
        for step in STEPS:
            trials.report(number, step, value_at(step, end), {"val/psnr": value_at(step, end), "val/mse": mse})
        trials.end(number, "finished")
    forecast = trials.forecaster.current()
    assert forecast is not None
    assert forecast.bar == pytest.approx(20.5, abs=0.3)
