"""Params exist only where they have an effect, and no configuration is trained twice."""

import json
from typing import Any

import pytest
from simulated import ONE, TWO, measured, proposed, sampler_spec

from ftae.search.sampler import SAMPLERS, Sampler
from ftae.specs import SearchSpec
from ftae.specs.search.distributions import count_up_to, identity

CONDITIONAL: dict[str, Any] = {
    "losses.huber_delta": {"low": 0.01, "high": 1.0, "log": True},
    "losses.huber": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
    "losses.tv": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
    "max_grad_norm": {"low": 0.1, "high": 2.0, "or_off": True},
    "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
    "schedule.num_cycles": {"low": 2, "high": 5},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_has_the_params_that_have_an_effect(name: str) -> None:
    search = sampler_spec(CONDITIONAL, sampler=name, num_trials=40)
    sampler, found = Sampler(search), []
    for number in range(2, 42):
        params = proposed(sampler, number)
        found.append(params)
        sampler.end(number, "finished", measured(float(number % 7)))
        assert list(params) == [path for path in CONDITIONAL if path in params]
        assert ("losses.huber_delta" in params) is (params["losses.huber"] > 0.0)
        assert ("schedule.num_cycles" in params) is (params["schedule.name"] == "cyclical")
        trial = search.trial_spec(params)  # a worker can build it
        assert (trial.losses.tv, trial.max_grad_norm) == (params["losses.tv"], params["max_grad_norm"])
        assert params["losses.tv"] == 0.0 or params["losses.tv"] >= 0.01
    for path, off in (("losses.huber", 0.0), ("losses.tv", 0.0), ("max_grad_norm", None)):
        assert 5 < sum(params[path] == off for params in found) < 35
    optuna_params = [set(trial.params) for trial in sampler.trials]
    assert all(("losses.huber" in names) == ("losses.huber_delta" in names) for names in optuna_params)


def test_optuna_does_not_learn_params_without_an_effect() -> None:
    """Journals of older versions may hold them."""
    search = sampler_spec(CONDITIONAL)
    sampler = Sampler(search)
    sampler.adopt(1, search.file_params() | {"losses.huber": 0.0, "losses.huber_delta": 0.5})
    assert set(sampler.trials[0].params) == {
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
}  # 16 configurations: the delta has an effect only if the loss is on


def small(name: str = "tpe", num_trials: int = 40, objective: Any = ONE["maximize"]) -> SearchSpec:
    return sampler_spec(
        SMALL, objective, {"losses": {"mse": 1.0, "huber_delta": 0.2}}, num_trials=num_trials, sampler=name
    )


def run_through(search: SearchSpec, at_a_time: int) -> list[dict[str, Any]]:
    """The file's own params and all proposals until there are no more; ``at_a_time`` trials run together."""
    sampler, params = Sampler(search), search.file_params()
    sampler.adopt(1, params)
    found, running = [params], [1]
    for number in range(2, 60):
        if len(running) == at_a_time:
            sampler.report(ended := running.pop(0), 4, 1.0)
            sampler.end(ended, ["finished", "pruned", "diverged"][ended % 3], measured(float(ended % 5)))
        if (proposal := sampler.propose(number)) is None:
            return found
        found.append(proposal)
        running.append(number)
    raise AssertionError("proposals do not end")


@pytest.mark.parametrize("at_a_time", [1, 3])
@pytest.mark.parametrize(
    ("name", "objective"),
    [("tpe", ONE["maximize"]), ("tpe", TWO), ("random", ONE["maximize"])],
    ids=["tpe", "two metrics", "random"],
)
def test_each_configuration_is_proposed_once_until_none_is_left(name: str, objective: Any, at_a_time: int) -> None:
    search = small(name, objective=objective)
    found = run_through(search, at_a_time)
    assert run_through(search, at_a_time) == found
    assert len({identity(search, params) for params in found}) == len(found) == count_up_to(100, search) == 16
    for params in found:
        search.trial_spec(params)  # a worker can build it


def test_a_space_that_is_not_exhausted_gives_as_many_params_as_are_wanted() -> None:
    search = small(num_trials=15)
    sampler = Sampler(search)
    sampler.adopt(1, search.file_params())
    found = [identity(search, proposed(sampler, number)) for number in range(2, 16)]
    assert len({*found, identity(search, search.file_params())}) == 15
    assert not sampler.is_exhausted


def test_a_configuration_that_a_machine_failed_is_proposed_again() -> None:
    sampler = Sampler(sampler_spec({"data.flip": {"choices": [False, True]}}))
    sampler.adopt(1, {"data.flip": False})
    assert sampler.propose(2) == {"data.flip": True}
    sampler.end(2, "failed", {})
    assert not sampler.is_exhausted
    assert sampler.propose(3) == {"data.flip": True}
    sampler.end(3, "diverged", {})
    assert sampler.propose(4) is None


def test_off_is_tried_once_though_the_range_is_continuous() -> None:
    space = {"losses.tv": {"low": 0.1, "high": 1.0, "or_off": True}}
    sampler = Sampler(sampler_spec(space, sampler="random", num_trials=40))
    found = [proposed(sampler, number)["losses.tv"] for number in range(2, 32)]
    assert found.count(0.0) == 1
    assert len(set(found)) == 30


def test_a_step_of_a_range_is_the_same_step_whatever_its_last_digit() -> None:
    search = sampler_spec({"schedule.warmup_fraction": {"low": 0.05, "high": 0.85, "step": 0.1}})
    assert identity(search, {"schedule.warmup_fraction": 0.05 + 3 * 0.1}) == identity(
        search, {"schedule.warmup_fraction": 0.35}
    )
    assert count_up_to(100, search) == 9
    assert 0.05 + 3 * 0.1 != 0.35


def test_an_exhausted_sampler_is_the_same_after_a_replay() -> None:
    search = small()
    first, second = Sampler(search), Sampler(search)
    for number in range(2, 17):
        params = proposed(first, number)
        second.adopt(number, json.loads(json.dumps(params)))
        for sampler in (first, second):
            sampler.end(number, ["finished", "failed"][number % 2], measured(float(number % 7)))
    assert second.is_exhausted is first.is_exhausted is False
    assert second.propose(17) == first.propose(17)
