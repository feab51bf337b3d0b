"""The sampler's side: what params look like, what the study learns, and that a seed decides all of it."""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from ftae.search import params as params_module
from ftae.search import sampler as module
from ftae.search.sampler import Study
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.search.configurations import count_up_to, identity
from ftae.storage.folder_store import FolderStore

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "optimizer.weight_decay": {"low": 0.0, "high": 0.5},
    "optimizer.betas": {"choices": [[0.9, 0.999], [0.5, 0.9]]},
    "batch_size": {"low": 4, "high": 16, "step": 4},
    "grad_accumulation": {"low": 1, "high": 64, "log": True},
    "schedule.warmup_fraction": {"low": 0.0, "high": 0.5, "step": 0.25},
    "max_grad_norm": {"choices": [0.1, 1.0, None]},
    "model.latent_channels": {"choices": [4, 8]},
    "data.flip": {"choices": [False, True]},
}


CONSTRAINED = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/mse <= 0.5"]}
TWO = {"metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/mse", "direction": "minimize"}]}


def spec(
    direction: str = "maximize", space: dict[str, Any] | None = None, objective: Any = None, **settings: Any
) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": "study",
            "finetune": {
                "model": {"family": "conv_ae", "latent_channels": 4},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
                "schedule": {"warmup_fraction": 0.25},
                "max_steps": 12,
                "num_evals": 3,
                "metrics": ["psnr", "mse"],
            },
            "search_space": space or SPACE,
            "objective": objective
            or {"metric": "val/psnr" if direction == "maximize" else "val/mse", "direction": direction},
            "search": settings,
        }
    )


def told(value: float | None) -> dict[str, float]:
    """The metrics of a last report, whichever of them is the objective."""
    return {} if value is None else {"val/psnr": value, "val/mse": value}


def proposed(study: Study, number: int) -> dict[str, Any]:
    params = study.propose(number)
    assert params is not None
    return params


def suggestions(search: SearchSpec, count: int = 12) -> list[dict[str, Any]]:
    """Params of trials that do the better the closer their lr is to 0.01."""
    study, found = Study(search), []
    for number in range(2, 2 + count):
        params = proposed(study, number)
        found.append(params)
        study.tell(number, "finished", told(-abs(params["optimizer.lr"] - 0.01)))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_params_lie_in_their_ranges_and_have_the_type_of_their_leaf(sampler: str) -> None:
    search = spec(sampler=sampler, num_trials=16)
    found = suggestions(search, 40)
    for params in found:
        assert list(params) == list(SPACE)
        assert isinstance(params["optimizer.lr"], float)
        assert 1e-4 <= params["optimizer.lr"] <= 1.0
        assert isinstance(params["optimizer.weight_decay"], float)
        assert 0.0 <= params["optimizer.weight_decay"] <= 0.5
        assert type(params["batch_size"]) is int
        assert type(params["grad_accumulation"]) is int
        assert 1 <= params["grad_accumulation"] <= 64
        search.trial_spec(params)  # as a worker builds it
    values = {path: {str(params[path]) for params in found} for path in SPACE}
    assert values["optimizer.betas"] == {"[0.9, 0.999]", "[0.5, 0.9]"}
    assert values["batch_size"] <= {"4", "8", "12", "16"}
    assert len(values["batch_size"]) > 1
    assert values["schedule.warmup_fraction"] == {"0.0", "0.25", "0.5"}
    assert values["max_grad_norm"] == {"0.1", "1.0", "None"}
    assert values["model.latent_channels"] == {"4", "8"}
    assert values["data.flip"] == {"False", "True"}


@pytest.mark.parametrize("path", ["optimizer.lr", "grad_accumulation"])
def test_a_log_range_is_sampled_in_the_logarithm(path: str) -> None:
    found = sorted(params[path] for params in suggestions(spec(sampler="random"), 60))
    geometric_middle = {"optimizer.lr": 1e-2, "grad_accumulation": 8}[path]
    assert 15 < sum(value < geometric_middle for value in found) < 45  # of a linear range about 1 and 7


def test_an_int_range_reaches_both_ends() -> None:
    search = spec(space={"batch_size": {"low": 7, "high": 9}}, sampler="random")
    assert {proposed(Study(search), number)["batch_size"] for number in range(30)} == {7, 8, 9}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides_the_suggestions(sampler: str) -> None:
    first = suggestions(spec(sampler=sampler, seed=3))
    assert suggestions(spec(sampler=sampler, seed=3)) == first
    other = suggestions(spec(sampler=sampler, seed=4))
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert len({str(params) for params in first}) == len(first)


def test_neighbouring_seeds_do_not_share_suggestions() -> None:
    found = [str(params) for seed in range(5) for params in suggestions(spec(sampler="random", seed=seed), 5)]
    assert len(set(found)) == 25


@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.0), ("minimize", 1.0)])
def test_a_diverged_trial_is_complete_with_the_worst_value(direction: str, worst: float) -> None:
    study = Study(spec(direction))
    study.propose(2)
    study.report(2, 0, 0.5)
    study.tell(2, "diverged", told(worst))
    [trial] = study.trials
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, worst, {0: 0.5})


def test_how_a_trial_ended_is_told() -> None:
    study = Study(spec())
    for number in (2, 3, 4):
        study.propose(number)
        study.report(number, 0, 18.0)
        study.report(number, 4, 20.0 + number)
    study.tell(2, "finished", told(22.0))
    study.tell(3, "pruned", told(23.0))
    study.tell(4, "failed", told(24.0))
    finished, pruned, failed = study.trials
    assert (finished.state, finished.value) == (TrialState.COMPLETE, 22.0)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {0: 18.0, 4: 23.0})
    assert (failed.state, failed.value) == (TrialState.FAIL, None)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_of_adopted_trials_suggests_what_the_first_one_would_have(sampler: str) -> None:
    search = spec(num_trials=16, sampler=sampler)
    first, second = Study(search), Study(search)
    first.adopt(1, search.file_params())
    params = {1: search.file_params()} | {number: first.propose(number) for number in range(2, 12)}
    for number in params:
        second.adopt(number, params[number])
        for study in (first, second) if number < 9 else ():  # the last three are still running
            study.report(number, 4, float(number % 5))
            study.tell(number, "finished" if number % 3 else "pruned", told(float(number % 5)))
    assert second.propose(12) == first.propose(12)


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"MOST_TRIALS": 40, "BEST_TRIALS": 5, "NEWEST_TRIALS": 20}.items():
        monkeypatch.setattr(module, name, number)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_sampler_sees_the_best_and_the_newest_of_many_trials(direction: str, short_memory: None) -> None:
    study = Study(spec(direction, sampler="random", num_trials=100))
    study.propose(2)  # runs all the time
    for number in range(3, 100):
        study.propose(number)
        study.report(number, 4, float(number))
        finished, value = number % 2, float(number if direction == "minimize" else -number)
        study.tell(number, "finished" if finished else "pruned", told(value))
        assert len(study.trials) <= 41
    seen = study.trials
    assert seen[0].state == TrialState.RUNNING
    assert [abs(t.value) for t in seen if t.value is not None][:5] == [3.0, 5.0, 7.0, 9.0, 11.0]
    assert [t.intermediate_values[4] for t in seen[-20:]] == [float(number) for number in range(80, 100)]
    study.report(2, 4, 1.0)
    study.tell(2, "finished", told(50.0))
    assert (study.trials[0].value, study.trials[0].intermediate_values) == (50.0, {4: 1.0})


def test_a_study_that_forgot_suggests_the_same_when_replayed(short_memory: None) -> None:
    search = spec(num_trials=200)
    first, second = Study(search), Study(search)
    for number in range(2, 130):
        params = proposed(first, number)
        if number > 120:
            assert second.propose(number) == params
        else:
            second.adopt(number, params)
        for study in (first, second) if number > 5 else ():
            study.report(number - 3, 4, float(number % 7))  # three at a time
            study.tell(number - 3, ["finished", "pruned", "diverged", "failed"][number % 4], told(float(number % 7)))
    assert [(t.params, t.state, t.value) for t in first.trials] == [(t.params, t.state, t.value) for t in second.trials]


def test_an_extended_search_suggests_what_one_of_its_length_would_have() -> None:
    short, long = spec(num_trials=8), spec(num_trials=80)
    study, extended, fresh = Study(short), Study(long), Study(long)
    for number in range(2, 10):
        params = proposed(study, number)
        for other in (extended, fresh):
            other.adopt(number, params)
        for other in (study, extended, fresh):
            other.tell(number, "finished", told(-abs(params["optimizer.lr"] - 0.01)))
    for number in range(10, 40):
        params = proposed(extended, number)
        assert fresh.propose(number) == params
        for other in (extended, fresh):
            other.tell(number, "finished", told(-abs(params["optimizer.lr"] - 0.01)))
    assert extended.trials[-1].params["optimizer.lr"] == pytest.approx(0.01, rel=1.0)


def divergences(status: str, direction: str) -> list[bool]:
    """Which of 60 suggestions have an lr that diverges, when its trials end with ``status``."""
    search = spec(direction, {path: SPACE[path] for path in ("optimizer.lr", "max_grad_norm")}, num_trials=60)
    study, found = Study(search), []
    for number in range(2, 62):
        lr = proposed(study, number)["optimizer.lr"]
        found.append(lr > 0.02)
        if found[-1]:
            study.tell(number, status, told(None))
        else:
            loss = min(1.0, abs(math.log10(lr / 0.002)) / 3)  # best a tenth below the cliff
            study.tell(number, "finished", told(loss if direction == "minimize" else 30 * (1 - loss)))
    return found


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_tpe_leaves_a_region_that_is_told_to_diverge(direction: str) -> None:
    found = divergences("diverged", direction)
    assert sum(found[:20]) >= 3, "the region is met at all"
    assert sum(found[20:]) <= 10


def test_told_to_have_failed_tpe_would_stay_there() -> None:
    """Why a diverged trial must not be told as a failed one; Optuna may have changed where this fails."""
    assert sum(divergences("failed", "maximize")[20:]) >= 30


# ----------------------------------------------------------------------- constraints, several metrics

RATE = {"optimizer.lr": SPACE["optimizer.lr"]}


def rates(objective: Any, count: int = 60) -> list[float]:
    """Suggested rates where both metrics rise with the rate: psnr by 1 a decade, mse to 0.5 at 0.01."""
    study, found = Study(spec(space=RATE, objective=objective, num_trials=count)), []
    for number in range(2, 2 + count):
        lr = proposed(study, number)["optimizer.lr"]
        found.append(lr)
        study.tell(number, "finished", {"val/psnr": 10 + math.log10(lr), "val/mse": 0.5 + math.log10(lr / 0.01) / 4})
    return found


def test_tpe_learns_where_a_constraint_is_missed() -> None:
    constrained, free = rates(CONSTRAINED)[20:], rates(None)[20:]
    assert sum(lr > 0.02 for lr in free) >= 35, "without it the highest rates are best"
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
def test_how_far_a_constraint_is_missed_is_told(status: str, metrics: dict[str, float], violation: float) -> None:
    study = Study(spec(objective=CONSTRAINED))
    params = proposed(study, 2)
    study.adopt(3, params)
    for number in (2, 3):
        study.report(number, 4, 1.0)
        study.tell(number, status, metrics)
        assert study.trials[number - 2].constraints == {"val/mse <= 0.5": violation}


def test_of_two_metrics_optuna_takes_no_pruned_trial() -> None:
    """Why such a trial is told as complete; Optuna may have changed where this fails."""
    import optuna

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


def test_of_two_metrics_a_pruned_trial_ranks_behind_the_full_ones_and_is_learnt_from() -> None:
    study = Study(spec(space=RATE, objective=TWO))
    ends = {2: ("pruned", 4), 3: ("finished", 12), 4: ("pruned", 8), 5: ("diverged", 4), 6: ("failed", 4)}
    for number, (status, step) in ends.items():
        study.propose(number)
        study.report(number, step, 1.0)
        study.tell(number, status, {"val/psnr": 30.0, "val/mse": 0.1})
    first, finished, second, diverged, failed = study.trials
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4 + ["FAIL"]
    assert finished.values == first.values == [30.0, 0.1]
    assert diverged.values == [0.0, 1.0]
    assert failed.values is None
    assert [t.constraints for t in (first, second)] == [
        {"budget": pytest.approx(2 / 3)},
        {"budget": pytest.approx(1 / 3)},
    ]
    assert study._ranked(dict(zip(ends, study.trials[:4], strict=False))) == [3, 5, 4, 2]
    study.propose(7)


@pytest.mark.parametrize("objective", [CONSTRAINED, TWO], ids=["constrained", "two metrics"])
def test_a_study_of_constraints_or_two_metrics_suggests_the_same_when_replayed(
    objective: Any, short_memory: None
) -> None:
    search = spec(objective=objective, num_trials=200)
    first, second = Study(search), Study(search)
    for number in range(2, 110):
        params = proposed(first, number)
        if number > 100:
            assert second.propose(number) == params
        else:
            second.adopt(number, params)
        for study in (first, second) if number > 5 else ():
            ended = number - 3  # three at a time
            study.report(ended, 4, float(ended % 7))
            status = ["finished", "pruned", "diverged", "failed"][number % 4]
            study.tell(ended, status, {"val/psnr": float(ended % 7), "val/mse": ended % 5 / 5})
    seen = [[(t.params, t.state, t.values, t.constraints) for t in study.trials] for study in (first, second)]
    assert seen[0] == seen[1]
    assert len(seen[0]) <= 41


# ------------------------------------------------------------------------------- conditional params

CONDITIONAL: dict[str, Any] = {
    "losses.huber_delta": {"low": 0.01, "high": 1.0, "log": True},
    "losses.huber": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
    "losses.tv": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
    "max_grad_norm": {"low": 0.1, "high": 2.0, "or_off": True},
    "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
    "schedule.num_cycles": {"low": 2, "high": 5},
}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_trial_has_the_params_that_have_an_effect(sampler: str) -> None:
    search = spec(space=CONDITIONAL, sampler=sampler, num_trials=40)
    study, found = Study(search), []
    for number in range(2, 42):
        params = proposed(study, number)
        found.append(params)
        study.tell(number, "finished", told(float(number % 7)))
        assert list(params) == [path for path in CONDITIONAL if path in params]
        assert ("losses.huber_delta" in params) is (params["losses.huber"] > 0.0)
        assert ("schedule.num_cycles" in params) is (params["schedule.name"] == "cyclical")
        trial = search.trial_spec(params)  # as a worker builds it
        assert (trial.losses.tv, trial.max_grad_norm) == (params["losses.tv"], params["max_grad_norm"])
        assert params["losses.tv"] == 0.0 or params["losses.tv"] >= 0.01
    for path, off in (("losses.huber", 0.0), ("losses.tv", 0.0), ("max_grad_norm", None)):
        assert 5 < sum(params[path] == off for params in found) < 35
    optuna_params = [set(trial.params) for trial in study.trials]
    assert all(("losses.huber" in names) == ("losses.huber_delta" in names) for names in optuna_params)


@pytest.mark.parametrize("objective", [None, TWO], ids=["one metric", "two metrics"])
def test_tpe_learns_what_to_turn_on_and_how_far(objective: Any) -> None:
    """TV helps near 0.1 and harms far from it; Huber only harms."""
    study, found = Study(spec(space=CONDITIONAL, objective=objective, num_trials=80)), []
    for number in range(2, 82):
        params = proposed(study, number)
        found.append(params)
        value = 20.0 - 5.0 * (params["losses.huber"] > 0.0)
        if params["losses.tv"]:
            value += 3.0 - 6.0 * abs(math.log10(params["losses.tv"] / 0.1))
        study.tell(number, "finished", {"val/psnr": value, "val/mse": 1.0 - value / 40.0})
    late = found[40:]
    assert sum(params["losses.huber"] == 0.0 for params in late) >= 30
    near = [0.03 < params["losses.tv"] < 0.3 for params in late]
    assert sum(near) >= 25


def test_a_conditional_study_suggests_the_same_when_replayed(short_memory: None) -> None:
    search = spec(space=CONDITIONAL, num_trials=200)
    first, second = Study(search), Study(search)
    for number in range(2, 110):
        params = proposed(first, number)
        if number > 90:
            assert second.propose(number) == params
        else:
            second.adopt(number, json.loads(json.dumps(params)))
        for study in (first, second) if number > 5 else ():
            study.report(number - 3, 4, float(number % 7))  # three at a time
            study.tell(number - 3, ["finished", "pruned", "diverged", "failed"][number % 4], told(float(number % 7)))
    seen = [[(t.params, t.distributions, t.state, t.system_attrs) for t in study.trials] for study in (first, second)]
    assert seen[0] == seen[1]


def test_params_that_have_no_effect_are_not_told() -> None:
    """As journals of before held them."""
    study = Study(spec(space=CONDITIONAL))
    study.adopt(1, spec(space=CONDITIONAL).file_params() | {"losses.huber": 0.0, "losses.huber_delta": 0.5})
    assert set(study.trials[0].params) == {
        "losses.huber is on",
        "losses.tv is on",
        "max_grad_norm is on",
        "max_grad_norm",
        "schedule.name",
    }


# --------------------------------------------------------------- no configuration is trained twice

SMALL: dict[str, Any] = {
    "losses.huber": {"choices": [0.0, 1.0]},
    "losses.huber_delta": {"low": 0.1, "high": 0.3, "step": 0.1},
    "data.flip": {"choices": [False, True]},
    "batch_size": {"low": 7, "high": 8},
}  # 16: the delta has an effect only beside the loss


def small(sampler: str = "tpe", num_trials: int = 40, objective: Any = None) -> SearchSpec:
    given = spec(num_trials=num_trials, sampler=sampler, objective=objective).model_dump()
    given["finetune"]["losses"] |= {"huber_delta": 0.2}
    return SearchSpec.model_validate(given | {"search_space": SMALL})


def run_through(search: SearchSpec, at_once: int) -> list[dict[str, Any]]:
    """All that is proposed until nothing is, after the file's own; ``at_once`` trials run at a time."""
    study, params = Study(search), search.file_params()
    study.adopt(1, params)
    found, running = [params], [1]
    for number in range(2, 60):
        if len(running) == at_once:
            study.report(ended := running.pop(0), 4, 1.0)
            study.tell(ended, ["finished", "pruned", "diverged"][ended % 3], told(float(ended % 5)))
        if (proposal := study.propose(number)) is None:
            return found
        found.append(proposal)
        running.append(number)
    raise AssertionError("it goes on without end")


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize(
    ("sampler", "objective"), [("tpe", None), ("tpe", TWO), ("random", None)], ids=["tpe", "two metrics", "random"]
)
def test_each_configuration_is_proposed_once_until_none_is_left(sampler: str, objective: Any, at_once: int) -> None:
    search = small(sampler, objective=objective)
    found = run_through(search, at_once)
    assert run_through(search, at_once) == found
    assert len({identity(search, params) for params in found}) == len(found) == count_up_to(100, search) == 16
    for params in found:
        search.trial_spec(params)  # as a worker builds it


def test_a_space_that_is_not_exhausted_gives_as_many_as_are_wanted() -> None:
    search = small(num_trials=15)
    study = Study(search)
    study.adopt(1, search.file_params())
    found = [identity(search, proposed(study, number)) for number in range(2, 16)]
    assert len({*found, identity(search, search.file_params())}) == 15
    assert not study.is_exhausted


def test_what_a_fault_of_the_machine_ended_may_be_tried_again() -> None:
    search = spec(space={"data.flip": {"choices": [False, True]}})
    study = Study(search)
    study.adopt(1, {"data.flip": False})
    assert study.propose(2) == {"data.flip": True}
    assert study.is_exhausted
    assert study.propose(3) is None
    study.tell(2, "failed", {})
    assert not study.is_exhausted
    assert study.propose(3) == {"data.flip": True}
    study.tell(3, "diverged", {})
    assert study.propose(4) is None


def test_off_is_not_tried_twice_though_its_range_has_no_end() -> None:
    search = spec(space={"losses.tv": {"low": 0.1, "high": 1.0, "or_off": True}}, sampler="random", num_trials=40)
    found = [params["losses.tv"] for params in run_for(search, 30)]
    assert found.count(0.0) == 1
    assert len(set(found)) == 30


def run_for(search: SearchSpec, count: int) -> list[dict[str, Any]]:
    study = Study(search)
    return [proposed(study, number) for number in range(2, 2 + count)]


def test_a_step_is_the_same_step_whatever_its_last_digit() -> None:
    search = spec(space={"schedule.warmup_fraction": {"low": 0.05, "high": 0.85, "step": 0.1}})
    assert identity(search, {"schedule.warmup_fraction": 0.05 + 3 * 0.1}) == identity(
        search, {"schedule.warmup_fraction": 0.35}
    )
    assert count_up_to(100, search) == 9
    assert 0.05 + 3 * 0.1 != 0.35


def test_an_exhausted_study_is_the_same_when_replayed() -> None:
    search = small()
    first, second = Study(search), Study(search)
    for number in range(2, 17):
        params = proposed(first, number)
        second.adopt(number, json.loads(json.dumps(params)))
        for study in (first, second):
            study.tell(number, ["finished", "failed"][number % 2], told(float(number % 7)))
    assert second.is_exhausted is first.is_exhausted is False
    assert second.propose(17) == first.propose(17)


def test_optuna_is_as_talkative_as_before() -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        Study(spec()).propose(2)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)


def test_nothing_private_of_optuna_is_used() -> None:
    """Names that begin with an underscore are of the modules' own classes."""
    for file in (module.__file__, params_module.__file__):
        tree = ast.walk(ast.parse(Path(file).read_text()))
        private = [node for node in tree if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
        assert private
        assert {ast.unparse(node.value) for node in private} == {"self"}


# ------------------------------------------------------------------------ the end of a small space


def ended(state: SearchState, number: int, status: str = "finished") -> None:
    """A trial's reports to the end, or a fault of the machine."""
    if status == "failed":
        state.end(number, "failed", "its machine was lost")
        return
    for step in (0, 4, 8, 12):
        metrics = {"val/psnr": 20.0 + number, "val/mse": 0.1}
        state.report(number, {"step": step, "metrics": metrics, "timing": {}, "checkpoint": None, "images": None})


def choice_of_two(num_trials: int = 9) -> SearchSpec:
    return spec(space={"data.flip": {"choices": [False, True]}}, num_trials=num_trials, scheduler={"name": "fifo"})


def test_a_search_ends_when_all_configurations_have_been_tried(tmp_path: Path) -> None:
    state = SearchState(choice_of_two(), FolderStore(tmp_path))
    given = []
    while (trial := state.next_trial()) is not None:
        assert not state.is_complete
        given.append((trial.kind, trial.params))
        ended(state, trial.number)
    assert given == [("baseline", {}), ("file", {"data.flip": False}), ("sampled", {"data.flip": True})]
    assert state.is_complete
    assert state.ended_early == "all configurations of the search space have been tried: 2 trials instead of 9"
    state.close("complete")
    extended = SearchState(choice_of_two(20), FolderStore(tmp_path))  # more trials find nothing new either
    assert extended.is_complete
    assert extended.next_trial() is None
    extended.close("complete")


def test_a_search_with_running_trials_is_not_at_its_end(tmp_path: Path) -> None:
    """One that its machine fails gives its configuration back."""
    state = SearchState(choice_of_two(), FolderStore(tmp_path))
    for _ in range(3):
        assert state.next_trial() is not None
    ended(state, 0)
    ended(state, 1)
    assert state.next_trial() is None
    assert not state.is_complete
    state.close("interrupted")
    resumed = SearchState(choice_of_two(), FolderStore(tmp_path))
    again = resumed.next_trial()
    assert (again is not None and again.number) == 2
    ended(resumed, 2, "failed")
    assert not resumed.is_complete
    repeated = resumed.next_trial()
    assert repeated is not None
    assert (repeated.number, repeated.params) == (3, {"data.flip": True})
    ended(resumed, 3)
    assert resumed.is_complete
    resumed.close("complete")


def test_a_search_that_has_all_its_trials_did_not_end_early(tmp_path: Path) -> None:
    state = SearchState(choice_of_two(2), FolderStore(tmp_path))
    while (trial := state.next_trial()) is not None:
        ended(state, trial.number)
    assert state.is_complete
    assert state.ended_early is None
    state.close("complete")
