"""The state of a search, driven by plain calls: no Ray, and reports that follow a formula."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial
from simulated import STEPS, events, kill, on_rungs, report, run, sampled, snapshot, state_spec

from ftae.engine.training.checkpoint import EvalReport
from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.search.sampler import SAMPLERS, OptunaSampler
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage import journal
from ftae.storage import store as retry
from ftae.storage.backends import FolderStore, ObjectStore
from ftae.storage.journal import FILE_NAME


@pytest.fixture
def state(tmp_path: Path) -> SearchState:
    return SearchState(state_spec(), FolderStore(tmp_path))


def learned(state: SearchState) -> list[FrozenTrial]:
    """What Optuna knows."""
    assert isinstance(state.sampler, OptunaSampler)
    return state.sampler.trials


# --------------------------------------------------------------------------------- assigning trials


def test_the_baseline_comes_first_then_the_files_own_config_then_the_sampler(tmp_path: Path) -> None:
    search = state_spec(num_trials=5)
    state = SearchState(search, FolderStore(tmp_path))
    trials = [state.next_trial() for _ in range(6)]
    assert [t and (t.number, t.kind) for t in trials] == [
        (0, "baseline"),
        (1, "file"),
        *((n, "sampled") for n in range(2, 6)),
    ]
    assert trials[0] is not None
    assert trials[0].params == {}
    assert trials[1] is not None
    assert search.trial_spec(trials[1].params) == search.finetune.model_copy(update={"num_threads": 1, "device": "cpu"})
    assert state.next_trial() is None
    assert state.next_trial() is None


def test_a_search_is_complete_when_all_its_trials_have_ended(state: SearchState) -> None:
    assert not state.is_complete
    sampled(state, 7)
    for number in range(9):
        assert not state.is_complete
        state.end(number, "failed")
    assert state.is_complete


def test_a_search_can_be_extended(tmp_path: Path) -> None:
    run(SearchState(state_spec(num_trials=3), FolderStore(tmp_path))).close("complete")
    state = run(SearchState(state_spec(num_trials=5), FolderStore(tmp_path)))
    assert list(state.record.trials) == [0, 1, 2, 3, 4, 5]
    state.close("complete")
    fewer = SearchState(state_spec(num_trials=2), FolderStore(tmp_path))
    assert fewer.is_complete
    assert fewer.next_trial() is None


def test_params_are_the_same_after_a_replay(state: SearchState) -> None:
    given: dict[int, dict[str, Any]] = {}
    while (trial := state.next_trial()) is not None:
        given[trial.number] = trial.params
    state.close("interrupted")
    again = SearchState(state.spec, state.store)
    for number, params in given.items():
        trial = again.next_trial()
        assert trial is not None
        assert trial.number == number
        assert json.dumps(trial.params) == json.dumps(params)  # 4 is not 4.0 here
        assert again.spec.trial_spec(trial.params) == state.spec.trial_spec(params)


def test_starts_notes_and_changes_of_a_trial_are_kept(tmp_path: Path) -> None:
    state = SearchState(state_spec(), FolderStore(tmp_path))
    [number] = sampled(state, 1)
    state.preflight({"step_seconds": 0.5})
    state.start(number, "node", 4711, 0)
    state.adapt(number, {"batch_size": 2, "grad_accumulation": 2}, "out of memory")
    state.note(number, "its worker was lost")
    kill(state)
    again = SearchState(state_spec(), FolderStore(tmp_path))
    trial = again.record.trials[number]
    assert [(start["node"], start["pid"], start["step"]) for start in trial.starts] == [("node", 4711, 0)]
    assert trial.notes == ["its worker was lost"]
    assert trial.settings == trial.params | {"batch_size": 2, "grad_accumulation": 2}
    assert snapshot(again) == snapshot(state)  # the sampler learns from the params that it proposed
    assigned = {t.number: t.changes for t in (again.next_trial() for _ in range(3)) if t}
    assert assigned == {0: {}, 1: {}, number: {"batch_size": 2, "grad_accumulation": 2}}


def test_one_driver_at_a_time(state: SearchState) -> None:
    with pytest.raises(FtaeError, match="is being run by another ftae process"):
        SearchState(state.spec, state.store)
    state.close("interrupted")
    SearchState(state.spec, state.store)


# ------------------------------------------------------------------------------------------ reports


def test_a_report_is_in_the_journal_with_paths_below_the_search_folder(state: SearchState) -> None:
    [number] = sampled(state, 1)
    assert state.report(number, report(0, 20.0))
    assert state.report(number, report(4, 21.0))
    *_, (first, _), (second, _) = journal.read(state.store.folder)
    assert (first["checkpoint"], first["images"]) == (None, "trials/0002/images/step-00000000.png")
    assert second["checkpoint"] == "trials/0002/checkpoints/step-00000004"
    assert {key: second[key] for key in ("event", "trial", "step", "value", "metrics", "timing")} == {
        "event": "report",
        "trial": number,
        "step": 4,
        "value": 21.0,
        "metrics": {"val/psnr": 21.0, "val/mse": 1.0 / 21.0, "val/ssim": 0.0},
        "timing": {"time/eval_seconds": 0.1},
    }


def test_the_baseline_ends_with_its_first_report(state: SearchState) -> None:
    state.next_trial()
    assert not state.report(0, report(0, 20.0))
    assert state.record.baseline is not None
    assert state.record.baseline.value == 20.0
    assert learned(state) == []


def test_a_trial_ends_with_its_budget_and_its_last_value_counts(state: SearchState) -> None:
    [number] = sampled(state, 1)
    assert [state.report(number, report(step, 20.0 + step)) for step in STEPS] == [True, True, True, False]
    assert state.record.trials[number].status == "finished"
    assert learned(state)[-1].value == 32.0


def test_a_repeated_report_changes_nothing(state: SearchState) -> None:
    first, second = sampled(state, 2)
    for step in (0, 0, 4, 4, 0):
        assert state.report(first, report(step, 22.0))
    assert [r["step"] for r in state.record.trials[first].reports] == [0, 4]
    assert on_rungs(state.scheduler)[4] == {first: 22.0}
    assert not state.report(second, report(4, 21.0))  # behind the one trial before it
    size = (state.store.folder / FILE_NAME).stat().st_size
    assert state.report(first, report(4, 22.0))
    assert (state.store.folder / FILE_NAME).stat().st_size == size


def test_a_trial_that_has_ended_is_not_changed_by_reports_or_ends(state: SearchState) -> None:
    [number] = sampled(state, 1)
    state.report(number, report(0, 20.0))
    state.end(number, "failed", "first reason")
    size = (state.store.folder / FILE_NAME).stat().st_size
    assert not state.report(number, report(4, 25.0))
    state.end(number, "diverged", "second reason")
    assert (state.store.folder / FILE_NAME).stat().st_size == size
    trial = state.record.trials[number]
    assert (trial.status, trial.reason, trial.value) == ("failed", "first reason", 20.0)
    assert learned(state)[-1].state.name == "FAIL"


@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.0), ("minimize", 1.0)])
def test_a_diverged_trial_scores_the_worst_value_and_is_not_ranked(
    tmp_path: Path, direction: str, worst: float
) -> None:
    state = SearchState(state_spec(direction), FolderStore(tmp_path))
    [number] = sampled(state, 1)
    state.report(number, report(0, 20.0))
    state.end(number, "diverged", "non-finite loss at step 2")
    *_, (event, _) = journal.read(tmp_path)
    assert (event["status"], event["value"], event["reason"]) == ("diverged", worst, "non-finite loss at step 2")
    trial = learned(state)[-1]
    assert (trial.state.name, trial.value) == ("COMPLETE", worst)
    assert state.record.ranked() == []


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_sampler_keeps_the_intermediate_values_of_a_pruned_trial(tmp_path: Path, direction: str) -> None:
    state = SearchState(state_spec(direction), FolderStore(tmp_path))
    first, second = sampled(state, 2)
    assert state.report(first, report(4, 25.0))
    assert state.report(second, report(0, 20.0))
    assert not state.report(second, report(4, 21.0))  # a lower psnr, a higher mse
    assert state.record.trials[second].status == "pruned"
    trial = learned(state)[-1]
    values = {0: 20.0, 4: 21.0} if direction == "maximize" else {0: 1 / 20.0, 4: 1 / 21.0}
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", values)


def test_random_search_without_stopping_runs_every_trial_to_its_end(tmp_path: Path) -> None:
    state = SearchState(state_spec(sampler="random", scheduler="fifo"), FolderStore(tmp_path))
    for number in [0, 1, *sampled(state, 7)]:
        while state.record.trials[number].status == "running":
            step = state.record.trials[number].step + 4 if number else 0
            state.report(number, report(step, 30.0 - number))
    assert {trial.status for trial in state.record.trials.values()} == {"finished"}
    assert [trial.number for trial in state.record.ranked()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_closing_releases_the_journal(state: SearchState) -> None:
    state.close("interrupted", "stopped by the user")
    record = replay(state.store.folder)
    assert record.close is not None
    assert (record.close.status, record.close.reason) == ("interrupted", "stopped by the user")
    assert replay(SearchState(state.spec, state.store).store.folder).close is None


def last_report(state: SearchState) -> EvalReport:
    """A report that ends trial 2, because trial 1 has a better one at the same rung."""
    sampled(state, 1)
    state.report(1, report(4, 30.0))
    return report(4, 20.0)


def test_a_report_and_the_end_that_follows_are_one_write(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    last, lines = last_report(state), list[int]()
    monkeypatch.setattr("os.fsync", lambda file: lines.append(len(events(state.store.folder))))
    before = len(events(state.store.folder))
    assert not state.report(2, last)
    assert lines == [before + 2]
    written = [(event["event"], event["trial"]) for event in events(state.store.folder)[before:]]
    assert written == [("report", 2), ("end", 2)]
    assert state.record.trials[2].status == "pruned"


def test_neither_a_report_nor_its_end_counts_if_the_end_cannot_be_written(
    state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)
    last = last_report(state)
    before = snapshot(state), events(state.store.folder)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(OSError, match="full"):
            state.report(2, last)
    assert (snapshot(state), events(state.store.folder)) == before
    assert (state.record.trials[2].status, state.record.trials[2].reports) == ("running", [])
    assert not state.report(2, last)
    assert state.record.trials[2].status == "pruned"


def test_an_object_store_gets_one_event_at_a_time(bucket: str, tmp_path: Path) -> None:
    store = ObjectStore(f"{bucket}/made-up", tmp_path)
    state, away = SearchState(state_spec(), store), list[str]()
    last, replicate = last_report(state), store.replicate

    def fails_once(offset: int, line: bytes) -> None:
        if b'"event": "end"' in line and not away:
            away.append(events(tmp_path)[-1]["event"])
            raise OSError("away")
        replicate(offset, line)

    state.writer.journal._replicate = fails_once
    assert not state.report(2, last)
    assert away == ["report"], "the mirror has the events of the store, also when the next one fails"
    state.close("interrupted")
    assert [event["event"] for event in events(tmp_path)[-3:]] == ["report", "report", "end"]
    again = ObjectStore(store.url, tmp_path / "again")
    again.refresh()
    assert (again.folder / FILE_NAME).read_bytes() == (tmp_path / FILE_NAME).read_bytes()


# -------------------------------------------------------------------- the model of the curves travels


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_journal_says_what_was_expected_and_why_a_trial_was_stopped(tmp_path: Path, sampler: str) -> None:
    """Whoever proposes: the scheduler decides by the newest model of the journal."""
    search = state_spec("minimize", "forecast", sampler=sampler)
    state = run(SearchState(search, FolderStore(tmp_path)))
    written = events(tmp_path)
    last = [event for event in written if event["event"] == "suggest"][-1]
    assert last["model"] == state.record.model
    assert len(last["model"]) == state.forecaster.cube.num_columns + 6
    assert last["noise"] == state.record.noise > 0.0
    assert last["forecast"].keys() == {"mean", "sd"}
    stopped = [event for event in written if event.get("status") == "pruned"]
    assert stopped
    for event in stopped:
        forecast = event["forecast"]
        assert forecast.keys() == {"mean", "sd", "chance", "best"}
        assert 0.0 <= forecast["chance"] < 0.25
        assert forecast["mean"] > forecast["best"], "a larger error"
        said = re.fullmatch(
            r"its end is expected at (\S+) ± \S+, and the chance to beat (\S+) is \d+%", event["reason"]
        )
        assert said is not None
        assert [float(number) for number in said.groups()] == pytest.approx([forecast["mean"], forecast["best"]], 1e-3)
        trial = state.record.trials[event["trial"]]
        assert (trial.forecast, trial.reason) == (forecast, event["reason"])
    state.close("complete")
    assert replay(tmp_path).model == state.record.model


def with_model(folder: Path, model: list[float]) -> None:
    """Replace the model in the journal."""
    lines = [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]
    for event in lines:
        if "model" in event:
            event["model"] = model
    (folder / FILE_NAME).write_text("".join(json.dumps(event) + "\n" for event in lines))


@pytest.mark.parametrize("is_reported", [False, True])
def test_a_model_of_another_space_is_refused(tmp_path: Path, is_reported: bool) -> None:
    """Either at once, where the last report has to be judged, or by the next one."""
    search = state_spec(scheduler="forecast")
    state = SearchState(search, FolderStore(tmp_path))
    for number in range(6):
        state.next_trial()
        for step in STEPS:
            state.report(number, report(step, 20.0 + step + number))
    last = state.next_trial()
    assert last is not None
    assert state.record.model is not None
    if is_reported:
        state.report(last.number, report(4, 40.0))
    kill(state)
    with_model(tmp_path, [0.5, 0.5])
    message = r"the journal of small has a model of 2 numbers, and this search space needs \d+: the journal is damaged"
    with pytest.raises(FtaeError, match=message):
        SearchState(search, FolderStore(tmp_path)).report(last.number, report(4, 40.0))


# ------------------------------------------------------------------------ the end of a small space


def end(state: SearchState, number: int, status: str = "finished") -> None:
    """Report until the trial ends, or let its machine fail."""
    if status == "failed":
        state.end(number, "failed", "its machine was lost")
        return
    for step in STEPS:
        state.report(number, report(step, 20.0 + number))


def choice_of_two(num_trials: int = 9) -> SearchSpec:
    return state_spec(scheduler="fifo", space={"data.flip": {"choices": [False, True]}}, num_trials=num_trials)


def test_a_search_ends_when_all_configurations_have_been_tried(tmp_path: Path) -> None:
    state = SearchState(choice_of_two(), FolderStore(tmp_path))
    assigned = []
    while (trial := state.next_trial()) is not None:
        assert not state.is_complete
        assigned.append((trial.kind, trial.params))
        end(state, trial.number)
    assert assigned == [("baseline", {}), ("file", {"data.flip": False}), ("sampled", {"data.flip": True})]
    assert state.is_complete
    assert state.ended_early == "all configurations of the search space have been tried: 2 trials instead of 9"
    state.close("complete")
    extended = SearchState(choice_of_two(20), FolderStore(tmp_path))  # more trials find no new configuration
    assert extended.is_complete
    assert extended.next_trial() is None
    extended.close("complete")


def test_a_search_with_running_trials_is_not_complete(tmp_path: Path) -> None:
    """The configuration of a trial that its machine fails is tried again."""
    state = SearchState(choice_of_two(), FolderStore(tmp_path))
    for _ in range(3):
        assert state.next_trial() is not None
    end(state, 0)
    end(state, 1)
    assert state.next_trial() is None
    assert not state.is_complete
    state.close("interrupted")
    resumed = SearchState(choice_of_two(), FolderStore(tmp_path))
    again = resumed.next_trial()
    assert (again is not None and again.number) == 2
    end(resumed, 2, "failed")
    assert not resumed.is_complete
    repeated = resumed.next_trial()
    assert repeated is not None
    assert (repeated.number, repeated.params) == (3, {"data.flip": True})
    end(resumed, 3)
    assert resumed.is_complete
    resumed.close("complete")


def test_a_search_that_has_all_its_trials_did_not_end_early(tmp_path: Path) -> None:
    state = SearchState(choice_of_two(2), FolderStore(tmp_path))
    while (trial := state.next_trial()) is not None:
        end(state, trial.number)
    assert state.is_complete
    assert state.ended_early is None
    state.close("complete")
