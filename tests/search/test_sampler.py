"""Proposals of every sampler: their types and ranges, what the sampler keeps, and that journal and seed decide them."""

import ast
import re
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.trial import TrialState
from simulated import (
    CONDITIONAL_SPACE,
    CONSTRAINED,
    ONE,
    SPACE,
    TWO,
    Trials,
    measured,
    optuna_trials,
    quicken_models,
    sampler_spec,
)

from ftae.search import params as params_module
from ftae.search import sampler as module
from ftae.search.curves import forecaster
from ftae.search.sampler import SAMPLERS, OptunaSampler
from ftae.specs import SearchSpec
from ftae.specs.search.settings import SamplerName

STATUSES = ("finished", "pruned", "diverged", "failed")


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers that look at few trials, so that some are too old for them."""
    for name, number in {"MAX_TRIALS": 24, "BEST_TRIALS": 4, "NEWEST_TRIALS": 12}.items():
        monkeypatch.setattr(module, name, number)
    for name, number in {"MAX_TRIALS": 16, "MAX_FITTED_TRIALS": 10, "MAX_DIVERGED": 4, "MAX_ALIVE": 8}.items():
        monkeypatch.setattr(forecaster, name, number)


@pytest.fixture
def quick_models(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_models(monkeypatch)


def proposals(search: SearchSpec, count: int = 12) -> list[dict[str, Any]]:
    """Params of trials whose results are the better the closer their lr is to 0.01."""
    trials = Trials(search)
    return [trials.run(number, lambda params: -abs(params["optimizer.lr"] - 0.01)) for number in range(2, 2 + count)]


def asked_of_optuna(**settings: Any) -> tuple[Trials, OptunaSampler]:
    trials = Trials(sampler_spec(**settings))
    assert isinstance(trials.sampler, OptunaSampler)
    return trials, trials.sampler


def test_the_table_has_the_samplers_of_the_file() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))


# ----------------------------------------------------------------------- the contract of every sampler


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    def test_params_lie_in_their_ranges_and_have_the_type_of_their_leaf(self, name: str) -> None:
        search = sampler_spec(sampler=name, num_trials=16)
        found = proposals(search, 24)
        for params in found:
            assert list(params) == list(SPACE)
            assert isinstance(params["optimizer.lr"], float)
            assert 1e-4 <= params["optimizer.lr"] <= 1.0
            assert isinstance(params["optimizer.weight_decay"], float)
            assert 0.0 <= params["optimizer.weight_decay"] <= 0.5
            assert type(params["batch_size"]) is int
            assert type(params["grad_accumulation"]) is int
            assert 1 <= params["grad_accumulation"] <= 64
            search.trial_spec(params)  # a worker can build it
        values = {path: {str(params[path]) for params in found} for path in SPACE}
        assert values["optimizer.betas"] == {"[0.9, 0.999]", "[0.5, 0.9]"}
        assert values["batch_size"] <= {"4", "8", "12", "16"}
        assert len(values["batch_size"]) > 1
        assert values["schedule.warmup_fraction"] == {"0.0", "0.25", "0.5"}
        assert values["max_grad_norm"] == {"0.1", "1.0", "None"}
        assert values["model.latent_channels"] == {"4", "8"}
        assert values["data.flip"] == {"False", "True"}

    def test_the_seed_decides_the_proposals(self, name: str) -> None:
        first = proposals(sampler_spec(sampler=name, seed=3))
        assert proposals(sampler_spec(sampler=name, seed=3)) == first
        other = proposals(sampler_spec(sampler=name, seed=4))
        assert all(a != b for a, b in zip(first, other, strict=True))
        assert len({str(params) for params in first}) == len(first)

    def test_to_propose_changes_nothing(self, name: str) -> None:
        asked, other = (Trials(sampler_spec(sampler=name)) for _ in range(2))
        for number in range(2, 12):
            for ahead in (0, 1, 0):
                asked.proposed(number + ahead)
            assert asked.begin(number) == other.begin(number)
            for trials in (asked, other):
                trials.end(number, STATUSES[number % 4], measured(float(number)))

    @pytest.mark.parametrize(
        ("space", "objective"),
        [(SPACE, ONE["maximize"]), (SPACE, CONSTRAINED), (SPACE, TWO), (CONDITIONAL_SPACE, ONE["minimize"])],
        ids=["plain", "constrained", "two metrics", "conditional"],
    )
    @pytest.mark.usefixtures("short_memory", "quick_models")
    def test_a_replayed_journal_gives_the_same_proposals(self, name: str, space: Any, objective: Any) -> None:
        """Three trials run at a time, and all but these are of any status, also beside what the sampler proposes."""
        if name == "curve" and objective is TWO:
            pytest.skip("it optimises one metric")
        trials = Trials(sampler_spec(space, objective, sampler=name, num_trials=200))
        trials.begin_file()
        for number in range(2, 38):
            if number % 9 == 0:
                again = trials.replayed()
                assert again.sampler.propose(number) == trials.sampler.propose(number)
                assert optuna_trials(again.sampler) == optuna_trials(trials.sampler)
                assert len(optuna_trials(again.sampler)) <= 27
            trials.begin(number, trials.proposed(number) if number % 2 else None)
            ended = number - 3
            if ended > 0:
                trials.report(ended, 4, float(ended % 7), {"val/psnr": float(ended % 7), "val/mse": ended % 5 / 5})
                trials.end(ended, STATUSES[number % 4])

    def test_a_space_without_new_params_is_exhausted(self, name: str) -> None:
        trials = Trials(sampler_spec({"data.flip": {"choices": [False, True]}}, sampler=name))
        trials.begin_file()
        assert trials.begin(2) == {"data.flip": True}
        assert trials.sampler.is_exhausted
        assert trials.proposed(3) is None


# ------------------------------------------------------------------------------------------- proposals


@pytest.mark.parametrize("path", ["optimizer.lr", "grad_accumulation"])
def test_a_log_range_is_sampled_in_the_logarithm(path: str) -> None:
    found = sorted(params[path] for params in proposals(sampler_spec(sampler="random"), 60))
    geometric_middle = {"optimizer.lr": 1e-2, "grad_accumulation": 8}[path]
    assert 15 < sum(value < geometric_middle for value in found) < 45  # a linear range has about 1 and 7 there


def test_an_int_range_reaches_both_ends() -> None:
    search = sampler_spec({"batch_size": {"low": 7, "high": 9}}, sampler="random")
    found = [Trials(search).proposed(number) for number in range(2, 32)]
    assert {params["batch_size"] for params in found if params} == {7, 8, 9}


def test_neighbouring_seeds_share_no_proposals() -> None:
    found = [str(params) for seed in range(5) for params in proposals(sampler_spec(sampler="random", seed=seed), 5)]
    assert len(set(found)) == 25


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_extended_search_proposes_what_one_of_its_length_would_have_proposed(name: str) -> None:
    short, long = (Trials(sampler_spec(sampler=name, num_trials=count)) for count in (8, 80))
    for number in range(2, 10):
        params = short.begin(number)
        long.begin(number, params)
        for trials in (short, long):
            trials.end(number, "finished", measured(-abs(params["optimizer.lr"] - 0.01)))
    extended = Trials(long.spec)
    for event in short.events:
        extended.apply(event)
    for number in range(10, 20):
        assert extended.proposed(number) == long.proposed(number)
        params = long.run(number, lambda params: -abs(params["optimizer.lr"] - 0.01))
        extended.begin(number, params)
        extended.end(number, "finished", measured(-abs(params["optimizer.lr"] - 0.01)))


# --------------------------------------------------------------------------------------- ends of trials


@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.0), ("minimize", 1.0)])
def test_a_diverged_trial_completes_with_the_worst_value(direction: str, worst: float) -> None:
    trials, sampler = asked_of_optuna(objective=ONE[direction])
    trials.begin(2)
    trials.report(2, 0, 0.5)
    trials.end(2, "diverged")
    [trial] = sampler.trials
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, worst, {0: 0.5})


def test_optuna_learns_how_a_trial_ended() -> None:
    trials, sampler = asked_of_optuna()
    for number in (2, 3, 4):
        trials.begin(number)
        trials.report(number, 0, 18.0)
        trials.report(number, 4, 20.0 + number)
    trials.end(2, "finished")
    trials.end(3, "pruned")
    trials.end(4, "failed")
    finished, pruned, failed = sampler.trials
    assert (finished.state, finished.value) == (TrialState.COMPLETE, 22.0)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {0: 18.0, 4: 23.0})
    assert (failed.state, failed.value) == (TrialState.FAIL, None)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.usefixtures("short_memory")
def test_optuna_gets_the_best_and_the_newest_of_many_trials(direction: str) -> None:
    trials, sampler = asked_of_optuna(objective=ONE[direction], sampler="random", num_trials=100)
    trials.begin(2)  # runs all the time
    for number in range(3, 100):
        trials.begin(number)
        is_finished, value = number % 2, float(number if direction == "minimize" else -number)
        trials.report(number, 4, value)
        trials.end(number, "finished" if is_finished else "pruned")
        assert len(sampler.trials) <= 25
    trials.begin(100)
    kept = sampler.trials
    assert kept[0].state == TrialState.RUNNING
    assert [abs(t.value) for t in kept if t.value is not None][:4] == [3.0, 5.0, 7.0, 9.0]
    assert [abs(t.intermediate_values[4]) for t in kept[-13:-1]] == [float(number) for number in range(88, 100)]
    trials.report(2, 4, 50.0)
    trials.end(2, "finished")
    assert (sampler.trials[0].value, sampler.trials[0].intermediate_values) == (50.0, {4: 50.0})


# ---------------------------------------------------------------------------------------------- Optuna


def test_the_verbosity_of_optuna_stays() -> None:
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        Trials(sampler_spec()).proposed(2)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)


def test_nothing_private_of_optuna_is_used() -> None:
    """Names that begin with an underscore belong to the modules' own classes."""
    for file in (module.__file__, params_module.__file__):
        tree = ast.walk(ast.parse(Path(file).read_text()))
        private = [node for node in tree if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
        assert private
        assert {ast.unparse(node.value) for node in private} == {"self"}
