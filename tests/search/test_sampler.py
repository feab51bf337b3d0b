"""Proposals of every sampler: their types and ranges, what the sampler keeps, and that journal and seed decide them."""

import ast
import re
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.trial import TrialState
from simulated import CONDITIONAL_SPACE, CONSTRAINED, ONE, SPACE, TWO, measured, proposed, sampler_spec

from ftae.search import params as params_module
from ftae.search import sampler as module
from ftae.search.sampler import SAMPLERS, Sampler
from ftae.specs import SearchSpec
from ftae.specs.search.settings import SamplerName

STATUSES = ("finished", "pruned", "diverged", "failed")


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"MAX_TRIALS": 40, "BEST_TRIALS": 5, "NEWEST_TRIALS": 20}.items():
        monkeypatch.setattr(module, name, number)


def proposals(search: SearchSpec, count: int = 12) -> list[dict[str, Any]]:
    """Params of trials whose results are the better the closer their lr is to 0.01."""
    sampler, found = Sampler(search), []
    for number in range(2, 2 + count):
        params = proposed(sampler, number)
        found.append(params)
        sampler.end(number, "finished", measured(-abs(params["optimizer.lr"] - 0.01)))
    return found


def state_of(sampler: Sampler) -> list[Any]:
    return [
        (t.params, t.distributions, t.state, t.values, t.intermediate_values, t.constraints) for t in sampler.trials
    ]


def test_the_table_has_the_samplers_of_the_file() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))


# ----------------------------------------------------------------------- the contract of every sampler


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    def test_params_lie_in_their_ranges_and_have_the_type_of_their_leaf(self, name: str) -> None:
        search = sampler_spec(sampler=name, num_trials=16)
        found = proposals(search, 40)
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

    @pytest.mark.parametrize(
        ("space", "objective"),
        [(SPACE, ONE["maximize"]), (SPACE, CONSTRAINED), (SPACE, TWO), (CONDITIONAL_SPACE, ONE["maximize"])],
        ids=["plain", "constrained", "two metrics", "conditional"],
    )
    @pytest.mark.usefixtures("short_memory")
    def test_a_replayed_journal_gives_the_same_proposals(self, name: str, space: Any, objective: Any) -> None:
        """The first sampler proposes; the second one adopts its params, until both propose."""
        search = sampler_spec(space, objective, sampler=name, num_trials=200)
        first, second = Sampler(search), Sampler(search)
        for sampler in (first, second):
            sampler.adopt(1, search.file_params())
        for number in range(2, 110):
            params = proposed(first, number)
            if number > 95:
                assert second.propose(number) == params
            else:
                second.adopt(number, params)
            ended = number - 3  # three trials run at a time
            for sampler in (first, second) if ended > 1 else ():
                sampler.report(ended, 4, float(ended % 7))
                metrics = {"val/psnr": float(ended % 7), "val/mse": ended % 5 / 5}
                sampler.end(ended, STATUSES[number % 4], metrics)
        assert state_of(first) == state_of(second)
        assert len(first.trials) <= 44

    def test_a_space_without_new_params_is_exhausted(self, name: str) -> None:
        sampler = Sampler(sampler_spec({"data.flip": {"choices": [False, True]}}, sampler=name))
        sampler.adopt(1, {"data.flip": False})
        assert sampler.propose(2) == {"data.flip": True}
        assert sampler.is_exhausted
        assert sampler.propose(3) is None


# ------------------------------------------------------------------------------------------- proposals


@pytest.mark.parametrize("path", ["optimizer.lr", "grad_accumulation"])
def test_a_log_range_is_sampled_in_the_logarithm(path: str) -> None:
    found = sorted(params[path] for params in proposals(sampler_spec(sampler="random"), 60))
    geometric_middle = {"optimizer.lr": 1e-2, "grad_accumulation": 8}[path]
    assert 15 < sum(value < geometric_middle for value in found) < 45  # a linear range has about 1 and 7 there


def test_an_int_range_reaches_both_ends() -> None:
    search = sampler_spec({"batch_size": {"low": 7, "high": 9}}, sampler="random")
    assert {proposed(Sampler(search), number)["batch_size"] for number in range(30)} == {7, 8, 9}


def test_neighbouring_seeds_share_no_proposals() -> None:
    found = [str(params) for seed in range(5) for params in proposals(sampler_spec(sampler="random", seed=seed), 5)]
    assert len(set(found)) == 25


def test_an_extended_search_proposes_what_one_of_its_length_would_have_proposed() -> None:
    short, long = sampler_spec(num_trials=8), sampler_spec(num_trials=80)
    sampler, extended, fresh = Sampler(short), Sampler(long), Sampler(long)
    for number in range(2, 10):
        params = proposed(sampler, number)
        for other in (extended, fresh):
            other.adopt(number, params)
        for other in (sampler, extended, fresh):
            other.end(number, "finished", measured(-abs(params["optimizer.lr"] - 0.01)))
    for number in range(10, 40):
        params = proposed(extended, number)
        assert fresh.propose(number) == params
        for other in (extended, fresh):
            other.end(number, "finished", measured(-abs(params["optimizer.lr"] - 0.01)))
    assert extended.trials[-1].params["optimizer.lr"] == pytest.approx(0.01, rel=1.0)


# --------------------------------------------------------------------------------------- ends of trials


@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.0), ("minimize", 1.0)])
def test_a_diverged_trial_completes_with_the_worst_value(direction: str, worst: float) -> None:
    sampler = Sampler(sampler_spec(objective=ONE[direction]))
    sampler.propose(2)
    sampler.report(2, 0, 0.5)
    sampler.end(2, "diverged", measured(worst))
    [trial] = sampler.trials
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, worst, {0: 0.5})


def test_optuna_learns_how_a_trial_ended() -> None:
    sampler = Sampler(sampler_spec())
    for number in (2, 3, 4):
        sampler.propose(number)
        sampler.report(number, 0, 18.0)
        sampler.report(number, 4, 20.0 + number)
    sampler.end(2, "finished", measured(22.0))
    sampler.end(3, "pruned", measured(23.0))
    sampler.end(4, "failed", measured(24.0))
    finished, pruned, failed = sampler.trials
    assert (finished.state, finished.value) == (TrialState.COMPLETE, 22.0)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {0: 18.0, 4: 23.0})
    assert (failed.state, failed.value) == (TrialState.FAIL, None)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.usefixtures("short_memory")
def test_the_sampler_keeps_the_best_and_the_newest_of_many_trials(direction: str) -> None:
    sampler = Sampler(sampler_spec(objective=ONE[direction], sampler="random", num_trials=100))
    sampler.propose(2)  # runs all the time
    for number in range(3, 100):
        sampler.propose(number)
        sampler.report(number, 4, float(number))
        finished, value = number % 2, float(number if direction == "minimize" else -number)
        sampler.end(number, "finished" if finished else "pruned", measured(value))
        assert len(sampler.trials) <= 41
    kept = sampler.trials
    assert kept[0].state == TrialState.RUNNING
    assert [abs(t.value) for t in kept if t.value is not None][:5] == [3.0, 5.0, 7.0, 9.0, 11.0]
    assert [t.intermediate_values[4] for t in kept[-20:]] == [float(number) for number in range(80, 100)]
    sampler.report(2, 4, 1.0)
    sampler.end(2, "finished", measured(50.0))
    assert (sampler.trials[0].value, sampler.trials[0].intermediate_values) == (50.0, {4: 1.0})


# ---------------------------------------------------------------------------------------------- Optuna


def test_the_verbosity_of_optuna_stays() -> None:
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        Sampler(sampler_spec()).propose(2)
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
