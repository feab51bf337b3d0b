"""Params exist only where they have an effect, and no configuration is trained twice."""

from typing import Any

import pytest
from simulated import ONE, TWO, Trials, measured, optuna_trials, quicken_models, sampler_spec

from ftae.search.sampler import SAMPLERS, OptunaSampler
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


@pytest.fixture(autouse=True)
def quick_models(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_models(monkeypatch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_has_the_params_that_have_an_effect(name: str) -> None:
    search = sampler_spec(CONDITIONAL, sampler=name, num_trials=40)
    trials, found = Trials(search), []
    for number in range(2, 32):
        params = trials.run(number, lambda params: float(len(found) % 7))
        found.append(params)
        assert list(params) == [path for path in CONDITIONAL if path in params]
        assert ("losses.huber_delta" in params) is (params["losses.huber"] > 0.0)
        assert ("schedule.num_cycles" in params) is (params["schedule.name"] == "cyclical")
        trial = search.trial_spec(params)  # a worker can build it
        assert (trial.losses.tv, trial.max_grad_norm) == (params["losses.tv"], params["max_grad_norm"])
        assert params["losses.tv"] == 0.0 or params["losses.tv"] >= 0.01
    for path, off in (("losses.huber", 0.0), ("losses.tv", 0.0), ("max_grad_norm", None)):
        assert 1 < sum(params[path] == off for params in found) < 29
    of_optuna = [params for params, *_ in optuna_trials(trials.sampler)]
    assert all(("losses.huber" in names) == ("losses.huber_delta" in names) for names in of_optuna)


def test_optuna_does_not_learn_params_without_an_effect() -> None:
    """Journals of older versions may hold them."""
    search = sampler_spec(CONDITIONAL)
    trials = Trials(search)
    trials.begin(1, search.file_params() | {"losses.huber": 0.0, "losses.huber_delta": 0.5}, "file")
    assert isinstance(trials.sampler, OptunaSampler)
    assert set(trials.sampler.trials[0].params) == {
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
    trials = Trials(search)
    found, running = [trials.begin_file()], [1]
    for number in range(2, 60):
        if len(running) == at_a_time:
            trials.report(ended := running.pop(0), 4, float(ended % 5))
            trials.end(ended, ["finished", "pruned", "diverged"][ended % 3])
        if trials.proposed(number) is None:
            return found
        found.append(trials.begin(number))
        running.append(number)
    raise AssertionError("proposals do not end")


@pytest.mark.parametrize("at_a_time", [1, 3])
@pytest.mark.parametrize(
    ("name", "objective"),
    [*((name, ONE["maximize"]) for name in SAMPLERS), ("tpe", TWO)],
    ids=[*SAMPLERS, "two metrics"],
)
def test_each_configuration_is_proposed_once_until_none_is_left(name: str, objective: Any, at_a_time: int) -> None:
    search = small(name, objective=objective)
    found = run_through(search, at_a_time)
    assert len({identity(search, params) for params in found}) == len(found) == count_up_to(100, search) == 16
    for params in found:
        search.trial_spec(params)  # a worker can build it


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_space_that_is_not_exhausted_gives_as_many_params_as_are_wanted(name: str) -> None:
    search = small(name, num_trials=15)
    trials = Trials(search)
    found = [identity(search, trials.begin_file())]
    found += [identity(search, trials.begin(number)) for number in range(2, 16)]
    assert len(set(found)) == 15
    assert not trials.sampler.is_exhausted


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_configuration_that_a_machine_failed_is_proposed_again(name: str) -> None:
    trials = Trials(sampler_spec({"data.flip": {"choices": [False, True]}}, sampler=name))
    trials.begin_file()
    assert trials.begin(2) == {"data.flip": True}
    trials.end(2, "failed")
    assert not trials.sampler.is_exhausted
    assert trials.begin(3) == {"data.flip": True}
    trials.end(3, "diverged")
    assert trials.proposed(4) is None


@pytest.mark.parametrize("name", SAMPLERS)
def test_off_is_tried_once_though_the_range_is_continuous(name: str) -> None:
    space = {"losses.tv": {"low": 0.1, "high": 1.0, "or_off": True}}
    trials = Trials(sampler_spec(space, sampler=name, num_trials=40))
    found = [trials.begin(number)["losses.tv"] for number in range(2, 32)]
    assert found.count(0.0) == 1
    assert len(set(found)) == 30


def test_a_step_of_a_range_is_the_same_step_whatever_its_last_digit() -> None:
    search = sampler_spec({"schedule.warmup_fraction": {"low": 0.05, "high": 0.85, "step": 0.1}})
    assert identity(search, {"schedule.warmup_fraction": 0.05 + 3 * 0.1}) == identity(
        search, {"schedule.warmup_fraction": 0.35}
    )
    assert count_up_to(100, search) == 9
    assert 0.05 + 3 * 0.1 != 0.35


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_almost_exhausted_sampler_is_the_same_after_a_replay(name: str) -> None:
    trials = Trials(small(name))
    for number in range(2, 17):
        trials.begin(number)
        trials.end(number, ["finished", "failed"][number % 2], measured(float(number % 7)))
    again = trials.replayed()
    assert again.sampler.is_exhausted is trials.sampler.is_exhausted is False
    assert again.proposed(17) == trials.proposed(17)
