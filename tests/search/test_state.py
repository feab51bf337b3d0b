"""The state of a search as a fold of its journal, driven by plain calls: no Ray, and reports that are made up."""

import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.search.state import Assignment, SearchState
from ftae.specs import SearchSpec
from ftae.storage import journal
from ftae.storage import retry as patience
from ftae.storage.folder_store import FolderStore
from ftae.storage.journal import FILE_NAME
from ftae.storage.object_store import ObjectStore

STEPS = (0, 4, 8, 12)


OBJECTIVES: dict[str, Any] = {
    "maximize": {"metric": "val/psnr", "direction": "maximize"},
    "minimize": {"metric": "val/mse", "direction": "minimize"},
    "constrained": {
        "metric": "val/psnr",
        "direction": "maximize",
        "constraints": ["val/mse >= 0.04", "val/psnr <= 90"],
    },
    "several": {
        "metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/ssim", "direction": "minimize"}]
    },
}


# What a trial has of these depends on the others.
CONDITIONAL: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "batch_size": {"low": 4, "high": 16, "step": 4},
    "losses.huber_delta": {"low": 0.01, "high": 1.0},
    "losses.huber": {"low": 0.1, "high": 1.0, "or_off": True},
    "max_grad_norm": {"low": 0.1, "high": 1.0, "or_off": True},
    "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
    "schedule.num_cycles": {"low": 2, "high": 5},
}


def conditional(**settings: Any) -> SearchSpec:
    return SearchSpec.model_validate(spec(**settings).model_dump() | {"search_space": CONDITIONAL})


def spec(objective: str = "maximize", **settings: Any) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": "made-up",
            "finetune": {
                "model": {"family": "conv_ae"},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
                "max_steps": 12,
                "num_evals": 3,
                "metrics": ["psnr", "mse", "ssim"],
            },
            "search_space": {
                "optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
                "optimizer.betas": {"choices": [[0.9, 0.999], [0.5, 0.9]]},
                "batch_size": {"low": 4, "high": 16, "step": 4},
                "max_grad_norm": {"choices": [0.1, 1.0, None]},
            },
            "objective": OBJECTIVES[objective],
            "search": {
                "num_trials": 8,
                "scheduler": {"name": "asha", "reduction_factor": 2.0, "grace_fraction": 0.33},
                "keep_checkpoints": 2,
                "seed": 3,
            }
            | settings,
        }
    )


def report(step: int, psnr: float) -> dict[str, Any]:
    return {
        "step": step,
        "metrics": {"val/psnr": psnr, "val/mse": 1.0 / psnr, "val/ssim": (psnr % 3.0) / 3.0},
        "timing": {"time/eval_seconds": 0.1},
        "checkpoint": f"checkpoints/step-{step:08d}" if step else None,
        "images": f"images/step-{step:08d}.png",
    }


def messages(state: SearchState, trial: Assignment) -> Iterator[int]:
    """One trial as a worker runs it: from its last report on, one message at a time, until it is ended.

    High rates diverge, one batch size fails; the others do the better the closer their rate is to 0.01.
    """
    lr, batch_size = trial.params.get("optimizer.lr", 0.01), trial.params.get("batch_size", 4)
    for step in STEPS:
        if step < state.record.trials[trial.number].step:
            continue
        if lr > 0.1 and step == 4:
            return state.end(trial.number, "diverged", "non-finite loss at step 2")
        if batch_size == 12 and step == 8:
            return state.end(trial.number, "failed", "no such thing")
        psnr = 20.0 + step * (1.0 - abs(math.log10(lr / 0.01)))
        if not state.report(trial.number, report(step, psnr)):
            return None
        yield step
    raise AssertionError("the budget is over and the trial goes on")


def run(state: SearchState, workers: int = 1, after_each: Callable[[], object] = lambda: None) -> SearchState:
    """All trials to their end, ``workers`` at a time, taking turns."""
    running: list[Iterator[int]] = []
    while True:
        while len(running) < workers and (trial := state.next_trial()) is not None:
            running.append(messages(state, trial))
            after_each()
        if not running:
            return state
        for worker in list(running):
            if next(worker, None) is None:
                running.remove(worker)
            after_each()


def kill(state: SearchState) -> None:
    """What stays of a driver that is killed: its lease, but not its lock."""
    state.journal.close()
    state._lease._released.set()


@pytest.fixture
def state(tmp_path: Path) -> SearchState:
    return SearchState(spec(), FolderStore(tmp_path))


def sampled(state: SearchState, count: int) -> list[int]:
    """Start baseline, the file's own and more; returns the numbers of the sampled ones."""
    numbers = []
    for _ in range(2 + count):
        trial = state.next_trial()
        assert trial is not None
        numbers.append(trial.number)
    return numbers[2:]


# ------------------------------------------------------------------------------------- handing out


def test_the_baseline_comes_first_then_the_files_own_config_then_the_sampler(tmp_path: Path) -> None:
    search = spec(num_trials=5)
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


def test_more_trials_can_be_asked_for_later(tmp_path: Path) -> None:
    run(SearchState(spec(num_trials=3), FolderStore(tmp_path))).close("complete")
    state = run(SearchState(spec(num_trials=5), FolderStore(tmp_path)))
    assert list(state.record.trials) == [0, 1, 2, 3, 4, 5]
    state.close("complete")
    fewer = SearchState(spec(num_trials=2), FolderStore(tmp_path))
    assert fewer.is_complete
    assert fewer.next_trial() is None


def test_params_are_the_same_when_read_back(state: SearchState) -> None:
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


def test_what_befell_a_trial_is_in_its_record_and_its_changes_stay(tmp_path: Path) -> None:
    state = SearchState(spec(), FolderStore(tmp_path))
    [number] = sampled(state, 1)
    state.preflight({"step_seconds": 0.5})
    state.start(number, "node", 4711, 0)
    state.adapt(number, {"batch_size": 2, "grad_accumulation": 2}, "out of memory")
    state.note(number, "its worker was lost")
    kill(state)
    again = SearchState(spec(), FolderStore(tmp_path))
    trial = again.record.trials[number]
    assert [(start["node"], start["pid"], start["step"]) for start in trial.starts] == [("node", 4711, 0)]
    assert trial.notes == ["its worker was lost"]
    assert trial.settings == trial.params | {"batch_size": 2, "grad_accumulation": 2}
    assert snapshot(again) == snapshot(state)  # the sampler learns what it proposed
    handed_out = {t.number: t.changes for t in (again.next_trial() for _ in range(3)) if t}
    assert handed_out == {0: {}, 1: {}, number: {"batch_size": 2, "grad_accumulation": 2}}


def test_one_driver_at_a_time(state: SearchState) -> None:
    with pytest.raises(FtaeError, match="is being run by another ftae process"):
        SearchState(state.spec, state.store)
    state.close("interrupted")
    SearchState(state.spec, state.store)


# ----------------------------------------------------------------------------------- taking reports


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
    assert state.sampler.trials == []


def test_a_trial_ends_with_its_budget_and_counts_with_its_last_value(state: SearchState) -> None:
    [number] = sampled(state, 1)
    assert [state.report(number, report(step, 20.0 + step)) for step in STEPS] == [True, True, True, False]
    assert state.record.trials[number].status == "finished"
    assert state.sampler.trials[-1].value == 32.0


def test_a_report_that_is_made_again_changes_nothing(state: SearchState) -> None:
    first, second = sampled(state, 2)
    for step in (0, 0, 4, 4, 0):
        assert state.report(first, report(step, 22.0))
    assert [r["step"] for r in state.record.trials[first].reports] == [0, 4]
    assert state.scheduler.recorded()[4] == {first: 22.0}
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
    assert state.sampler.trials[-1].state.name == "FAIL"


@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.0), ("minimize", 1.0)])
def test_a_diverged_trial_scores_the_worst_value_and_is_not_ranked(
    tmp_path: Path, direction: str, worst: float
) -> None:
    state = SearchState(spec(direction), FolderStore(tmp_path))
    [number] = sampled(state, 1)
    state.report(number, report(0, 20.0))
    state.end(number, "diverged", "non-finite loss at step 2")
    *_, (event, _) = journal.read(tmp_path)
    assert (event["status"], event["value"], event["reason"]) == ("diverged", worst, "non-finite loss at step 2")
    trial = state.sampler.trials[-1]
    assert (trial.state.name, trial.value) == ("COMPLETE", worst)
    assert state.record.ranked() == []


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_pruned_trial_keeps_its_intermediate_values_in_the_study(tmp_path: Path, direction: str) -> None:
    state = SearchState(spec(direction), FolderStore(tmp_path))
    first, second = sampled(state, 2)
    assert state.report(first, report(4, 25.0))
    assert state.report(second, report(0, 20.0))
    assert not state.report(second, report(4, 21.0))  # a lower psnr, a higher mse
    assert state.record.trials[second].status == "pruned"
    trial = state.sampler.trials[-1]
    values = {0: 20.0, 4: 21.0} if direction == "maximize" else {0: 1 / 20.0, 4: 1 / 21.0}
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", values)


def test_a_search_by_random_without_stopping_runs_every_trial_to_its_end(tmp_path: Path) -> None:
    state = SearchState(spec(sampler="random", scheduler={"name": "fifo"}), FolderStore(tmp_path))
    for number in [0, 1, *sampled(state, 7)]:
        while state.record.trials[number].status == "running":
            step = state.record.trials[number].step + 4 if number else 0
            state.report(number, report(step, 30.0 - number))
    assert {trial.status for trial in state.record.trials.values()} == {"finished"}
    assert [trial.number for trial in state.record.ranked()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_closing_gives_the_journal_free(state: SearchState) -> None:
    state.close("interrupted", "stopped by the user")
    record = replay(state.store.folder)
    assert record.close is not None
    assert (record.close["status"], record.close["reason"]) == ("interrupted", "stopped by the user")
    assert replay(SearchState(state.spec, state.store).store.folder).close is None


def ending(state: SearchState) -> dict[str, Any]:
    """A report that ends trial 2, behind a better one of trial 1 on the same rung."""
    sampled(state, 1)
    state.report(1, report(4, 30.0))
    return report(4, 20.0)


def test_a_report_and_the_end_it_brings_are_one_write(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    last, lines = ending(state), list[int]()
    monkeypatch.setattr("os.fsync", lambda file: lines.append(len(events(state.store.folder))))
    before = len(events(state.store.folder))
    assert not state.report(2, last)
    assert lines == [before + 2]
    written = [(event["event"], event["trial"]) for event in events(state.store.folder)[before:]]
    assert written == [("report", 2), ("end", 2)]
    assert state.record.trials[2].status == "pruned"


def test_an_end_that_cannot_be_written_does_not_count_nor_its_report(
    state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.0)
    last = ending(state)
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


def test_an_object_store_is_given_one_event_at_a_time(bucket: str, tmp_path: Path) -> None:
    store = ObjectStore(f"{bucket}/made-up", tmp_path)
    state, away = SearchState(spec(), store), list[str]()
    last, replicate = ending(state), store.replicate

    def once_away(offset: int, line: bytes) -> None:
        if b'"event": "end"' in line and not away:
            away.append(events(tmp_path)[-1]["event"])
            raise OSError("away")
        replicate(offset, line)

    state.journal._replicate = once_away
    assert not state.report(2, last)
    assert away == ["report"], "what the store has is in the mirror, too, when the next is refused"
    state.close("interrupted")
    assert [event["event"] for event in events(tmp_path)[-3:]] == ["report", "report", "end"]
    again = ObjectStore(store.url, tmp_path / "again")
    again.refresh()
    assert (again.folder / FILE_NAME).read_bytes() == (tmp_path / FILE_NAME).read_bytes()


# ------------------------------------------------------------------------------------- taken up again

Snapshot = tuple[list[Any], dict[int, dict[int, float]]]


def snapshot(state: SearchState) -> Snapshot:
    """What the sampler and the rungs know."""
    study = [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.constraints) for t in state.sampler.trials
    ]
    return study, state.scheduler.recorded()


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of trials, without their times."""
    found = [event for event, _ in journal.read(folder) if event["event"] in ("suggest", "report", "end")]
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def outcome(state: SearchState) -> list[Any]:
    trials = state.record.trials.values()
    fold = [(t.number, t.kind, t.params, t.status, t.reason, [r["metrics"] for r in t.reports]) for t in trials]
    ranking = [trial.number for trial in state.record.ranked()]
    return [*json.loads(json.dumps([fold, ranking])), snapshot(state)]


class Recorded:
    """A search that was never disturbed, with what it knew after every number of trial events."""

    def __init__(self, search: SearchSpec, folder: Path, workers: int = 1) -> None:
        self.spec, self.snapshots = search, dict[int, Snapshot]()
        folder.mkdir()
        state = SearchState(search, FolderStore(folder))

        def note() -> None:
            self.snapshots[len(events(folder))] = snapshot(state)

        note()
        run(state, workers, note)
        kill(state)
        self.outcome, self.events = outcome(state), events(folder)
        self.lines = (folder / FILE_NAME).read_bytes().splitlines(keepends=True)

    def cut(self, folder: Path, num_lines: int, rest: bytes = b"") -> SearchState:
        """The search as a driver left it that was killed after ``num_lines`` events, opened again."""
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(self.lines[:num_lines]) + rest)
        return SearchState(self.spec, FolderStore(folder))


@pytest.fixture(
    scope="module", params=["tpe", "random", "minimize", "constrained", "several", "conditional", "three at a time"]
)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded") / "whole"
    if request.param == "three at a time":
        return Recorded(spec(num_trials=10), folder, workers=3)
    if request.param == "conditional":
        return Recorded(conditional(num_trials=14), folder, workers=2)
    if request.param in OBJECTIVES:
        return Recorded(spec(request.param, num_trials=12), folder)
    return Recorded(spec(sampler=request.param), folder)


def test_the_recorded_searches_hold_every_way_to_end(recorded: Recorded) -> None:
    ended = {event["status"] for event in recorded.events if event["event"] == "end"}
    assert ended == {"finished", "pruned", "diverged", "failed"}
    assert len(recorded.lines) == len(recorded.events) + 1


def test_after_any_event_a_search_is_taken_up_as_it_was(
    recorded: Recorded, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for num_lines in range(len(recorded.lines) + 1):
        with subtests.test(num_lines=num_lines):
            state = recorded.cut(tmp_path / str(num_lines), num_lines)
            known = events(state.store.folder)
            assert known[: num_lines - 1] == recorded.events[: max(0, num_lines - 1)]
            # A report that ends its trial is followed by the end that the journal lacks.
            assert known == recorded.events[: len(known)]
            assert snapshot(state) == recorded.snapshots[len(known)]
            unfinished = [n for n, trial in state.record.trials.items() if trial.status == "running"]
            handed_out = [trial.number for trial in (state.next_trial() for _ in range(len(unfinished) + 1)) if trial]
            new = [len(state.record.trials) - 1] if len(handed_out) > len(unfinished) else []
            assert handed_out == unfinished + new
            # The next proposal is the one of the undisturbed search, where that made one here.
            if new and len(known) < len(recorded.events) and recorded.events[len(known)]["event"] == "suggest":
                assert events(state.store.folder)[-1] == recorded.events[len(known)]
            kill(state)


def test_a_line_cut_in_half_counts_as_not_written(
    recorded: Recorded, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for num_lines, line in enumerate(recorded.lines):
        with subtests.test(num_lines=num_lines):
            rest = line[: len(line) // 2] if num_lines % 2 else line[:-1]
            state = recorded.cut(tmp_path / str(num_lines), num_lines, rest)
            written = (state.store.folder / FILE_NAME).read_bytes()
            assert written.startswith(b"".join(recorded.lines[:num_lines]) + b'{"event": "open"')
            assert snapshot(state) == recorded.snapshots[len(events(state.store.folder))]
            kill(state)


@pytest.mark.parametrize(
    "search",
    [spec(), spec(sampler="random"), spec("constrained"), spec("several"), conditional(num_trials=12)],
    ids=["tpe", "random", "constrained", "several", "conditional"],
)
def test_an_interrupted_search_ends_like_one_that_never_stopped(
    search: SearchSpec, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    recorded = Recorded(search, tmp_path / "whole")
    for num_lines in range(len(recorded.lines) + 1):
        with subtests.test(num_lines=num_lines):
            state = run(recorded.cut(tmp_path / str(num_lines), num_lines))
            assert state.is_complete
            assert outcome(state) == recorded.outcome
            assert events(state.store.folder) == recorded.events
            kill(state)


def test_a_search_whose_drivers_all_die_young_ends_the_same(tmp_path: Path) -> None:
    recorded = Recorded(spec(), tmp_path / "whole")
    folder = tmp_path / "again"
    folder.mkdir()
    drivers = 0
    while True:
        drivers += 1
        state = SearchState(recorded.spec, FolderStore(folder))
        try:
            run(state, after_each=killed_at(3))  # a trial, its last report again, and one new message
            break
        except KeyboardInterrupt:
            kill(state)
    assert outcome(state) == recorded.outcome
    assert drivers > len(recorded.outcome[0])


def killed_at(number: int) -> Callable[[], None]:
    calls = iter(range(1, number))

    def count() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return count
