"""What the model of the curves sees of a journal, and which forecasts it makes of it."""

import json
from typing import Any

import numpy as np
import pytest
from simulated import SPACE, Trials, sampler_spec

from ftae.search.curves import forecaster as module

RATES: dict[str, Any] = {path: SPACE[path] for path in ("optimizer.lr", "optimizer.weight_decay")}


def trials_of(objective: Any = None, **settings: Any) -> Trials:
    run = {"max_steps": 90, "num_evals": 9}
    objective = objective or {"metric": "val/psnr", "direction": "maximize"}
    return Trials(sampler_spec(RATES, objective, run, scheduler={"name": "forecast"}, num_trials=200, **settings))


def some(trials: Trials, count: int, seed: int = 0) -> Trials:
    """Trials of random params, each reported up to a random step; every third has ended."""
    rng = np.random.default_rng(seed)
    for number in range(2, 2 + count):
        trials.begin(number, trials.forecaster.cube.params(rng.random(trials.forecaster.cube.num_coordinates)))
        last = 90 if number % 3 == 0 else int(rng.integers(1, 9)) * 10
        for step in range(10, last + 1, 10):
            trials.report(number, step, 20.0 + step / 30 + rng.normal())
        if last == 90:
            trials.end(number, "finished")
    return trials


def test_of_a_curve_the_model_sees_the_first_reports_behind_some_shares_and_the_last() -> None:
    trials = trials_of()
    trials.begin(2, trials.spec.file_params())
    trials.report(2, 0, 1.0)  # the untuned model says nothing of the params
    for step in (10, 20, 30, 40, 50):
        trials.report(2, step, float(step))
    seen = trials.forecaster.observations()
    assert seen is not None
    assert (seen.shares * 90).tolist() == pytest.approx([10, 30, 50])
    assert seen.values.tolist() == [10.0, 30.0, 50.0]
    ahead = trials.forecaster.observations({2: (60, 7.0)})
    assert ahead is not None
    assert dict(zip((ahead.shares * 90).round().tolist(), ahead.values.tolist(), strict=True)) == {
        10.0: 10.0,
        30.0: 30.0,
        60.0: 7.0,
    }


def test_neither_the_baseline_nor_diverged_trials_are_curves() -> None:
    trials = trials_of({"metric": "val/mse", "direction": "minimize"})
    trials.begin(0, {}, "baseline")
    trials.report(0, 0, 1.0)
    for number in (2, 3):
        trials.begin(number, trials.spec.file_params())
        for step in (10, 30, 60):
            trials.report(number, step, step / 100)
    trials.end(3, "diverged")
    seen = trials.forecaster.observations()
    assert seen is not None
    assert set(seen.trials.tolist()) == {2}
    assert seen.values.tolist() == [-0.1, -0.3, -0.6], "more is better"


@pytest.mark.parametrize("most", [6, 12, 100])
def test_a_report_counts_the_same_before_and_after_it_is_written(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that died between a report and the end of its trial takes the decision again, with the same digits."""
    monkeypatch.setattr(module, "MAX_TRIALS", most)
    monkeypatch.setattr(module, "MAX_FITTED_TRIALS", most // 2)
    trials = some(trials_of(), 30)
    running = [n for n, trial in trials.record.running.items() if trial.step < 80]
    assert len(running) > 10
    for number in running[:6]:
        step, value = trials.record.trials[number].step + 10, 26.0
        before, stop = trials.forecaster.current({number: (step, value)}), trials.stop(number, step, value)
        trials.report(number, step, value)
        after = trials.forecaster.current({number: (step, value)})
        assert before is not None
        assert after is not None
        assert (before.process.observations.trials == after.process.observations.trials).all()
        assert (before.process.parameters == after.process.parameters).all()
        assert number in before.process.observations.trials
        assert before.bar == after.bar
        assert trials.stop(number, step, value) == stop


def test_of_many_trials_the_model_sees_the_best_and_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TRIALS", 9)
    trials = trials_of()
    for number in range(2, 32):
        trials.run(number, lambda params: 40.0 if len(trials.record.trials) in (4, 5, 6) else 20.0)
    seen = trials.forecaster.observations()
    assert seen is not None
    assert sorted(set(seen.trials.tolist())) == [5, 6, 7, 26, 27, 28, 29, 30, 31]


def test_each_trial_is_proposed_by_a_fit_of_its_own_which_the_seed_decides() -> None:
    trials = some(trials_of(), 12)
    one, again, other = (trials.forecaster.fitted(number) for number in (20, 20, 21))
    assert one is not None
    assert again is not None
    assert other is not None
    assert (one.process.parameters == again.process.parameters).all()
    assert (one.process.parameters != other.process.parameters).any()


def test_decisions_take_the_newest_model_of_the_journal() -> None:
    trials = some(trials_of(), 12)
    before = trials.forecaster.current()
    forecast = trials.forecaster.fitted(20)
    assert before is not None
    assert forecast is not None
    params = trials.spec.file_params()
    facts = json.loads(json.dumps(trials.forecaster.facts(forecast, params)))
    trials.apply({"event": "suggest", "time": 99.0, "trial": 20, "params": params, "kind": "sampled", **facts})
    after = trials.forecaster.current()
    assert after is not None
    assert after.process.parameters.tolist() == facts["model"] == trials.record.model
    assert (after.process.parameters != before.process.parameters).any()
    [mean], [deviation] = after.process.at_end(trials.forecaster.vectors([20]))
    assert facts["forecast"] == {"mean": pytest.approx(mean, rel=1e-5), "sd": pytest.approx(deviation, rel=1e-4)}
    assert facts["noise"] == pytest.approx(after.process.noise, rel=1e-5)


def test_without_data_there_is_no_forecast_and_nothing_in_the_journal() -> None:
    trials = trials_of()
    trials.begin_file()
    assert trials.forecaster.fitted(2) is None
    assert trials.forecaster.facts(None, {}) == {}
    assert "model" not in trials.events[0]


def test_the_chances_know_where_trials_diverge_and_constraints_break() -> None:
    """Rates above 0.01 diverge; the mse rises with the weight decay, over its bound at 0.25."""
    constrained = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/mse <= 0.5"]}
    trials = trials_of(constrained, sampler="random")
    for number in range(2, 32):
        params = trials.begin(number)
        if params["optimizer.lr"] > 0.01:
            trials.end(number, "diverged")
        else:
            mse = 2.0 * params["optimizer.weight_decay"] + 0.01
            trials.end(number, "finished", {"val/psnr": 20.0, "val/mse": mse})
    chances = trials.forecaster.log_chances()
    cube = trials.forecaster.cube

    def at(lr: float, decay: float) -> float:
        [found] = np.exp(chances(cube.vector({"optimizer.lr": lr, "optimizer.weight_decay": decay})[None]))
        return float(found)

    assert at(1e-3, 0.1) > 0.9
    assert at(0.3, 0.1) < 0.1, "it diverges"
    assert at(1e-3, 0.4) < 0.1, "it breaks the constraint"
    assert trials_of().forecaster.log_chances()(np.full((2, 2), 0.5)).tolist() == [0.0, 0.0]
