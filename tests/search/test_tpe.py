"""What TPE learns: regions that diverge, constraints, several metrics, and what to turn on."""

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from simulated import CONSTRAINED, ONE, SPACE, TWO, Trials, measured, sampler_spec

from ftae.search.sampler import OptunaSampler

RATE = {"optimizer.lr": SPACE["optimizer.lr"]}


def asked_of_tpe(*arguments: Any, **settings: Any) -> tuple[Trials, OptunaSampler]:
    trials = Trials(sampler_spec(*arguments, **settings))
    assert isinstance(trials.sampler, OptunaSampler)
    return trials, trials.sampler


def divergences(status: str, direction: str) -> list[bool]:
    """Which of 60 proposals have an lr that diverges, where such a trial ends with ``status``."""
    space = {path: SPACE[path] for path in ("optimizer.lr", "max_grad_norm")}
    trials, found = Trials(sampler_spec(space, ONE[direction], num_trials=60)), []
    for number in range(2, 62):
        lr = trials.begin(number)["optimizer.lr"]
        found.append(lr > 0.02)
        if found[-1]:
            trials.end(number, status)
        else:
            loss = min(1.0, abs(math.log10(lr / 0.002)) / 3)  # the best lr is a tenth of the lowest that diverges
            trials.end(number, "finished", measured(loss if direction == "minimize" else 30 * (1 - loss)))
    return found


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_tpe_leaves_a_region_that_diverges(direction: str) -> None:
    found = divergences("diverged", direction)
    assert sum(found[:20]) >= 3, "the region is met at all"
    assert sum(found[20:]) <= 10


def test_tpe_stays_in_a_region_that_fails() -> None:
    """Why a diverged trial must not end as a failed one. If this test fails, Optuna has changed."""
    assert sum(divergences("failed", "maximize")[20:]) >= 30


# ----------------------------------------------------------------------- constraints, several metrics


def rates(objective: Any, count: int = 60) -> list[float]:
    """Proposed rates where both metrics rise with the rate: psnr by 1 per decade, mse to 0.5 at 0.01."""
    trials, found = Trials(sampler_spec(RATE, objective, num_trials=count)), []
    for number in range(2, 2 + count):
        lr = trials.begin(number)["optimizer.lr"]
        found.append(lr)
        trials.end(number, "finished", {"val/psnr": 10 + math.log10(lr), "val/mse": 0.5 + math.log10(lr / 0.01) / 4})
    return found


def test_tpe_learns_where_a_constraint_is_violated() -> None:
    constrained, free = rates(CONSTRAINED)[20:], rates(ONE["maximize"])[20:]
    assert sum(lr > 0.02 for lr in free) >= 35, "without the constraint the highest rates are best"
    assert sum(lr > 0.02 for lr in constrained) <= 15
    assert sum(0.001 < lr <= 0.02 for lr in constrained) >= 20, "it stays near the bound"


def test_tpe_spreads_over_the_front_of_two_metrics() -> None:
    found = rates(TWO)[20:]  # every rate is on the front
    assert sum(lr > 0.1 for lr in found) >= 5
    assert sum(lr < 0.001 for lr in found) >= 5


@pytest.mark.parametrize(
    ("status", "metrics", "violation"),
    [
        ("finished", {"val/psnr": 20.0, "val/mse": 0.4}, 0.0),
        ("finished", {"val/psnr": 20.0, "val/mse": 0.75}, 0.5),
        ("pruned", {"val/psnr": 20.0, "val/mse": 0.75}, 0.5),
        ("diverged", {"val/psnr": 20.0, "val/mse": 0.1}, math.inf),
        ("diverged", {}, math.inf),
    ],
)
def test_optuna_learns_how_far_a_constraint_is_violated(
    status: str, metrics: dict[str, float], violation: float
) -> None:
    trials, sampler = asked_of_tpe(objective=CONSTRAINED)
    trials.begin(2)
    trials.end(2, status, metrics)
    assert sampler.trials[0].constraints == {"val/mse <= 0.5": violation}


def test_optuna_accepts_no_pruned_trial_with_two_metrics() -> None:
    """Why such a trial ends as a complete one. If this test fails, Optuna has changed."""
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(n_startup_trials=1, seed=0)
    )
    for _ in range(3):
        study.tell((trial := study.ask()), [trial.suggest_float("x", 0, 1), 1.0])
    pruned = study.ask()
    pruned.suggest_float("x", 0, 1)
    study._storage.set_trial_intermediate_value(pruned._trial_id, 4, 1.0)
    study.tell(pruned, state=TrialState.PRUNED)
    with pytest.raises(RuntimeError, match="single direction"):
        study.ask().suggest_float("x", 0, 1)


def test_with_two_metrics_a_pruned_trial_ranks_behind_the_full_ones() -> None:
    trials, sampler = asked_of_tpe(RATE, TWO)
    ends = {2: ("pruned", 4), 3: ("finished", 12), 4: ("pruned", 8), 5: ("diverged", 4), 6: ("failed", 4)}
    for number, (status, step) in ends.items():
        trials.begin(number)
        trials.report(number, step, 30.0, {"val/psnr": 30.0, "val/mse": 0.1})
        trials.end(number, status)
    first, finished, second, diverged, failed = sampler.trials
    assert [t.state.name for t in sampler.trials] == ["COMPLETE"] * 4 + ["FAIL"]
    assert finished.values == first.values == [30.0, 0.1]
    assert diverged.values == [0.0, 1.0]
    assert failed.values is None
    assert [t.constraints for t in (first, second)] == [
        {"budget": pytest.approx(2 / 3)},
        {"budget": pytest.approx(1 / 3)},
    ]
    assert sampler._ranked(dict(zip(ends, sampler.trials[:4], strict=False))) == [3, 5, 4, 2]
    assert trials.proposed(7)


# ------------------------------------------------------------------------------- conditional params


@pytest.mark.parametrize("objective", [ONE["maximize"], TWO], ids=["one metric", "two metrics"])
def test_tpe_learns_what_to_turn_on_and_how_far(objective: Any) -> None:
    """TV helps near 0.1 and harms far from it; Huber only harms."""
    space = {
        "losses.huber_delta": {"low": 0.01, "high": 1.0, "log": True},
        "losses.huber": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
        "losses.tv": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
        "max_grad_norm": {"low": 0.1, "high": 2.0, "or_off": True},
        "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
        "schedule.num_cycles": {"low": 2, "high": 5},
    }
    trials, found = Trials(sampler_spec(space, objective, num_trials=80)), []
    for number in range(2, 82):
        params = trials.begin(number)
        found.append(params)
        value = 20.0 - 5.0 * (params["losses.huber"] > 0.0)
        if params["losses.tv"]:
            value += 3.0 - 6.0 * abs(math.log10(params["losses.tv"] / 0.1))
        trials.end(number, "finished", {"val/psnr": value, "val/mse": 1.0 - value / 40.0})
    late = found[40:]
    assert sum(params["losses.huber"] == 0.0 for params in late) >= 30
    near = [0.03 < params["losses.tv"] < 0.3 for params in late]
    assert sum(near) >= 25
