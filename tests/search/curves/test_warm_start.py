"""``search.warm_start``: what is taken from earlier searches, how it guides the first trials, and that it lasts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import production_spec
from simulated import CONDITIONAL_SPACE, MIXED_SPACE, events, kill, run, sampler_spec

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.search.curves.curve_sampler import CurveSampler
from ftae.search.curves.earlier_searches import described, warm_start
from ftae.search.curves.forecaster import Forecaster
from ftae.search.curves.related_tasks import RelatedTasks
from ftae.search.curves.unit_cube import UnitCube
from ftae.search.plan import plan
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME, Journal, UnreadableJournal

LR = {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}}


def spec(storage: Path, space: dict[str, Any] = MIXED_SPACE, name: str = "small", **settings: Any) -> SearchSpec:
    """A search of 10 trials whose model of the curves decides."""
    chosen = {"sampler": "curve", "scheduler": {"name": "forecast"}, "num_trials": 10, "seed": 3}
    made = sampler_spec(
        space, run={"metrics": ["psnr", "mse", "ssim"]}, **chosen | {"storage": str(storage)} | settings
    )
    return made.model_copy(update={"name": name})


def state_of(search: SearchSpec, facts: dict[str, Any] | None = None) -> SearchState:
    return SearchState(search, FolderStore(Path(search.search.storage) / search.name), facts)


def ran(search: SearchSpec) -> SearchState:
    """A search that is over; the closer its rates are to 0.01, the better its trials."""
    (Path(search.search.storage) / search.name).mkdir(parents=True)
    state = run(state_of(search))
    state.close("complete")
    return state


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the search ``first``."""
    storage = tmp_path_factory.mktemp("searches")
    ran(spec(storage, name="first"))
    return storage


def forecaster(search: SearchSpec, facts: dict[str, Any]) -> Forecaster:
    """Of a search that has begun with its own configuration, and has not reported."""
    record = SearchRecord(search={})
    dumped = search.model_dump(mode="json")
    record.apply({"event": "open", "time": 0.0, "search": dumped, "digest": search.digest(), "facts": facts})
    params = search.file_params()
    record.apply({"event": "suggest", "time": 0.0, "trial": 1, "params": params, "kind": "file"})
    return Forecaster(search, record)


# ------------------------------------------------------------------------------------------ what is taken


def test_trials_are_taken_with_what_the_model_of_the_curves_sees_of_them(storage: Path) -> None:
    [found] = warm_start(spec(storage, warm_start=["first"]))["warm_start"]
    before = replay(storage / "first")
    with_values = [t for t in before.trials.values() if t.kind != "baseline" and t.step and t.status != "diverged"]
    assert len(with_values) > 5
    assert [trial["params"] for trial in found["trials"]] == [trial.params for trial in with_values]
    for trial, recorded in zip(found["trials"], with_values, strict=True):
        steps = [round(12 * share, 4) for share in trial["shares"]]
        curve = [[report["step"], report["value"]] for report in recorded.reports if report["step"]]
        assert [list(pair) for pair in zip(steps, trial["values"], strict=True)] == curve
    assert found["search"] == "first"
    assert found["digest"] == spec(storage, name="first").with_absolute_paths().digest()
    assert json.loads(json.dumps(found)) == found
    assert described({"warm_start": [found]}) == [f"{len(with_values)} trials of first"]


def test_without_earlier_searches_nothing_is_taken(storage: Path) -> None:
    assert warm_start(spec(storage)) == {}
    assert described({}) == []


def test_an_earlier_search_may_be_elsewhere(storage: Path, tmp_path: Path) -> None:
    [by_name] = warm_start(spec(storage, warm_start=["first"]))["warm_start"]
    [by_folder] = warm_start(spec(tmp_path, warm_start=[f"{storage}/first/"]))["warm_start"]
    assert by_folder == by_name | {"search": f"{storage}/first/"}


def test_a_name_is_never_that_of_a_folder_here(tmp_path: Path, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(storage / "first", tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FtaeError, match=r"search.warm_start: there is no search 'first' in .*/empty; it holds none"):
        warm_start(spec(tmp_path / "empty", warm_start=["first"]))


def test_params_are_those_of_this_search(storage: Path) -> None:
    space = LR | {
        "max_grad_norm": {"choices": [0.1, 1.0]},  # null is no longer among them
        "optimizer.weight_decay": {"low": 0.0, "high": 0.5},  # not varied before
        "model.num_latents": {"low": 1, "high": 2},
    }
    search = spec(storage, warm_start=["first"])
    search = search.model_copy(update={"search_space": spec(storage, space={**LR}).search_space})
    assert {tuple(t["params"]) for t in warm_start(search)["warm_start"][0]["trials"]} == {("optimizer.lr",)}
    del space["model.num_latents"]
    trials = warm_start(spec(storage, space, warm_start=["first"]))["warm_start"][0]["trials"]
    assert {tuple(trial["params"]) for trial in trials} == {tuple(space)}
    decay = spec(storage, name="first").finetune.optimizer.weight_decay
    assert {trial["params"]["optimizer.weight_decay"] for trial in trials} == {decay}


def test_settings_that_another_model_has_not_are_left_out(storage: Path) -> None:
    vq = {"model": {"family": "vq_vae", "codebook_size": 16}, "losses": {"mse": 1.0}}
    search = sampler_spec(
        LR | {"model.codebook_size": {"choices": [8, 16]}},
        run=vq | {"metrics": ["psnr"]},
        sampler="curve",
        storage=str(storage),
        warm_start=["first"],
    )
    assert {tuple(t["params"]) for t in warm_start(search)["warm_start"][0]["trials"]} == {("optimizer.lr",)}


# -------------------------------------------------------------------------------------------- refusals


def test_unknown_searches_are_refused_with_those_that_there_are(storage: Path) -> None:
    with pytest.raises(FtaeError, match=r"there is no search 'second' in .*; choose one of first"):
        warm_start(spec(storage, warm_start=["second"]))


@pytest.mark.parametrize("objective", [{"metric": "val/mse", "direction": "minimize"}, {"direction": "minimize"}])
def test_a_search_for_something_else_is_refused(storage: Path, objective: dict[str, str]) -> None:
    search = spec(storage, warm_start=["first"])
    changed = {"metric": "val/psnr"} | objective
    search = SearchSpec.model_validate(search.model_dump(exclude_unset=True) | {"objective": changed})
    with pytest.raises(FtaeError, match=f"first has to maximize val/psnr, and .* minimize {changed['metric']}"):
        warm_start(search)


def test_a_search_without_values_is_refused(tmp_path: Path) -> None:
    earlier = spec(tmp_path, name="first")
    (tmp_path / "first").mkdir()
    state_of(earlier).close("interrupted")
    with pytest.raises(FtaeError, match="first has too few trials with a value"):
        warm_start(spec(tmp_path, warm_start=["first"]))


def test_an_unreadable_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / FILE_NAME).write_text("no event\n")
    with pytest.raises(FtaeError, match=r"search.warm_start: first cannot be read: .*is damaged"):
        warm_start(spec(tmp_path, warm_start=["first"]))


def test_a_production_run_is_no_earlier_search(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    made = production_spec()
    objective = {"metric": "val/psnr", "direction": "maximize"}
    dumped = made.model_dump(mode="json") | {"search_space": {}, "search": {"num_trials": 1}, "objective": objective}
    journal = Journal(tmp_path / "first")
    journal.append("open", kind="production", search=dumped, digest=made.digest(), facts={})
    journal.close()
    with pytest.raises(FtaeError, match="is a production run, not a search"):
        warm_start(spec(tmp_path, warm_start=["first"]))


# --------------------------------------------------------------------------------- in another search space


@pytest.mark.parametrize(
    ("values", "params", "unknown"),
    [
        ({"optimizer.lr": 5.0, "batch_size": 2}, {"optimizer.lr": 1.0, "batch_size": 4}, set()),
        ({"optimizer.lr": 0.0, "batch_size": 9}, {"optimizer.lr": 1e-4, "batch_size": 8}, set()),
        ({"max_grad_norm": None, "optimizer.betas": [0.5, 0.9]}, {"max_grad_norm": None}, set()),
        ({"max_grad_norm": 0.3}, {}, {"max_grad_norm"}),
        ({"optimizer.lr": None, "optimizer.betas": [0.1, 0.2]}, {}, {"optimizer.lr", "optimizer.betas"}),
    ],
)
def test_values_of_another_space_lie_at_the_nearest_of_this_one(
    tmp_path: Path, values: dict[str, Any], params: dict[str, Any], unknown: set[str]
) -> None:
    cube = UnitCube(spec(tmp_path))
    point, vector = cube.nearest(values)
    assert {path: cube.params(point)[path] for path in params} == pytest.approx(params)
    columns = {"optimizer.lr": [0], "optimizer.betas": [1, 2], "batch_size": [3], "max_grad_norm": [4, 5, 6]}
    plain = cube.vectors(point[None])[0]
    for path, places in columns.items():
        assert vector[places].tolist() == ([0.5] * len(places) if path in unknown else plain[places].tolist())


def test_off_stays_off_where_this_space_has_it(tmp_path: Path) -> None:
    cube = UnitCube(spec(tmp_path, CONDITIONAL_SPACE))
    for value, expected in ((None, None), (0.5, 0.5), (7.0, 1.0), (0.01, 0.1)):
        point, vector = cube.nearest({"max_grad_norm": value, "losses.huber": 0.0, "losses.huber_delta": 0.3})
        chosen = cube.params(point)
        assert chosen["max_grad_norm"] == (None if expected is None else pytest.approx(expected))
        assert chosen["losses.huber"] == 0.0
        assert "losses.huber_delta" not in chosen
        assert vector == pytest.approx(cube.vector(chosen))


def test_a_related_task_expects_most_where_its_trials_were_best(storage: Path) -> None:
    search = spec(storage, warm_start=["first"])
    facts = warm_start(search)["warm_start"]
    cube = UnitCube(search)
    tasks = RelatedTasks(cube, facts, 1.0)
    rates = [3e-4, 1e-2, 0.09]
    expected = tasks.expected(np.array([cube.vector(search.file_params() | {"optimizer.lr": rate}) for rate in rates]))
    assert int(np.argmax(expected)) == 1
    best = max(replay(storage / "first").ranked(), key=lambda trial: trial.value or 0.0)
    assert 1e-3 < cube.params(tasks.best(1)[0])["optimizer.lr"] < 0.1
    assert best.params["optimizer.lr"] in [pytest.approx(cube.params(point)["optimizer.lr"]) for point in tasks.best(3)]
    assert len(RelatedTasks(cube, facts * 2, 1.0).best(2)) == 4
    twice = RelatedTasks(cube, facts * 2, 1.0).expected(cube.vectors(np.array(tasks.best(3))))
    assert twice == pytest.approx(tasks.expected(cube.vectors(np.array(tasks.best(3)))))


def test_where_less_is_better_the_least_is_expected_most(storage: Path) -> None:
    search = spec(storage, warm_start=["first"])
    [found] = warm_start(search)["warm_start"]
    cube = UnitCube(search)
    turned = {**found, "trials": [{**t, "values": [-value for value in t["values"]]} for t in found["trials"]]}
    vectors = cube.vectors(np.array(RelatedTasks(cube, [found], 1.0).best(4)))
    assert np.array_equal(
        RelatedTasks(cube, [turned], -1.0).expected(vectors), RelatedTasks(cube, [found], 1.0).expected(vectors)
    )


def test_a_model_of_another_space_is_refused(storage: Path) -> None:
    [found] = warm_start(spec(storage, warm_start=["first"]))["warm_start"]
    with pytest.raises(FtaeError, match="a model of 12 numbers of first, and this search space needs 13"):
        RelatedTasks(UnitCube(spec(storage)), [found | {"model": found["model"][1:]}], 1.0)


# --------------------------------------------------------------------------------------- the first trials


def test_every_other_of_the_first_trials_follows_the_earlier_search(storage: Path) -> None:
    search = spec(storage, warm_start=["first"])
    facts = warm_start(search)
    warm, cold = CurveSampler(forecaster(search, facts)), CurveSampler(forecaster(search, {}))
    for number in (2, 3, 4, 5):
        with_it, without = warm.propose(number), cold.propose(number)
        assert with_it is not None
        assert without is not None
        assert with_it.facts == {}, "the journal says nothing that the fit of earlier curves decided"
        if number % 2:
            assert with_it.params == without.params
        else:
            assert 3e-3 < with_it.params["optimizer.lr"] < 0.04


def test_trials_that_follow_an_earlier_search_differ(storage: Path) -> None:
    search = spec(storage, warm_start=["first"])
    found = forecaster(search, warm_start(search))
    sampler, vectors = CurveSampler(found), [found.vector(1)]
    for number in (2, 4, 6):  # six begin before any has reported
        proposal = sampler.propose(number)
        assert proposal is not None
        event = {"event": "suggest", "time": 0.0, "trial": number, "params": proposal.params, "kind": "sampled"}
        found.record.apply(event)
        sampler.adopt(number, proposal.params)
        assert min(np.linalg.norm(found.vector(number) - other) for other in vectors) >= 0.2
        vectors.append(found.vector(number))


def test_later_trials_are_proposed_by_this_search_alone(storage: Path) -> None:
    search = spec(storage, warm_start=["first"])
    record = replay(storage / "first")
    assert len(record.trials) > 6
    cold = Forecaster(search, record)
    without = CurveSampler(cold).propose(11)
    record.facts = record.facts | warm_start(search)
    assert CurveSampler(Forecaster(search, record)).propose(11) == without


# ------------------------------------------------------------------------------------------------ it lasts


def test_a_resumed_search_needs_no_earlier_one(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage / "first", tmp_path / "first")
    whole = spec(tmp_path, name="whole", warm_start=["first"], num_trials=7)
    facts = warm_start(whole)
    (tmp_path / "whole").mkdir()
    kill(run(state_of(whole, facts | {"git_commit": "a"})))
    expected = events(tmp_path / "whole")
    shutil.rmtree(tmp_path / "first")
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    cut = [i for i, line in enumerate(lines) if json.loads(line)["event"] == "suggest"]
    for number in cut:
        shutil.rmtree(tmp_path / "whole")
        (tmp_path / "whole").mkdir()
        (tmp_path / "whole" / FILE_NAME).write_bytes(b"".join(lines[: number + 1]))
        again = run(state_of(whole, {"git_commit": "b"}))
        kill(again)
        assert events(tmp_path / "whole") == expected
        assert again.record.facts == {"git_commit": "b"} | facts


def test_later_drivers_keep_what_the_first_has_taken(storage: Path, tmp_path: Path) -> None:
    search = spec(tmp_path, warm_start=[f"{storage}/first"])
    facts = warm_start(search)
    (tmp_path / "small").mkdir()
    first = state_of(search, facts)
    assert first.next_trial() is not None
    first.close("interrupted")
    other = [facts["warm_start"][0] | {"search": "other"}]
    state = state_of(search, {"warm_start": other})
    assert state.record.facts == facts
    kill(state)


@pytest.mark.parametrize(
    "change",
    [
        {"search": 1},
        {"digest": None},
        {"model": ["a"]},
        {"trials": []},
        {"trials": [{"params": {}, "shares": [1.0], "values": [1.0, 2.0]}]},
        {"trials": [{"params": {}, "shares": [], "values": []}]},
        {"trials": [{"params": [], "shares": [1.0], "values": [1.0]}]},
        {"trials": [{"params": {}, "shares": [1.0], "values": ["high"]}]},
    ],
)
def test_a_damaged_part_of_the_journal_is_found(storage: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    search = spec(storage, warm_start=["first"])
    [found] = warm_start(search)["warm_start"]
    journal = Journal(tmp_path)
    facts = {"warm_start": [found | change]}
    journal.append("open", search=search.model_dump(mode="json"), digest=search.digest(), facts=facts)
    journal.close()
    with pytest.raises(UnreadableJournal, match=r"'open' has facts.warm_start of another type"):
        replay(tmp_path)


# ------------------------------------------------------------------------------------------------ the plan


def planned(search: SearchSpec) -> list[str]:
    return [line for line in plan(search) if line.startswith("warm start")]


def test_the_plan_says_what_is_taken(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage / "first", tmp_path / "first")
    assert planned(spec(tmp_path)) == []
    search = spec(tmp_path, warm_start=["first"])
    [line] = planned(search)
    assert line == f"warm start   {described(warm_start(search))[0]}"
    (tmp_path / "small").mkdir()
    state = state_of(search, warm_start(search))
    state.next_trial()
    kill(state)
    shutil.rmtree(tmp_path / "first")
    assert planned(search) == [line], "the search has begun, and needs no earlier one"
    with pytest.raises(FtaeError, match="there is no search 'first'"):
        plan(spec(tmp_path, name="other", warm_start=["first"]))
