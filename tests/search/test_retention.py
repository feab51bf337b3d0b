"""Which checkpoints are kept, in a folder and in an object store. The trials are simulated; the files exist."""

import threading
from pathlib import Path

import pytest
from builders import eval_report
from simulated import TWO, sampler_spec, state_spec

from ftae.search.retention import Retention
from ftae.search.state import SearchState
from ftae.storage import store as retry
from ftae.storage.backends import FolderStore
from ftae.storage.store import open_store

SPEC = state_spec(scheduler="fifo")


@pytest.fixture(params=["folder", "object store"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchState:
    """A search with all its trials assigned."""
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    storage = str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")
    store = open_store(storage, SPEC.name, "driver")
    store.folder.mkdir(parents=True, exist_ok=True)
    state = SearchState(SPEC, store)
    while state.next_trial() is not None:
        pass
    return state


def report(state: SearchState, number: int, step: int, psnr: float = 20.0) -> None:
    """Write a checkpoint and report it."""
    found = eval_report(step, psnr)
    if step:
        for name in ("model.safetensors", "report.json"):
            state.store.write(f"trials/{number:04d}/{found.checkpoint}/{name}", b"x")
    state.report(number, found)


def finish(state: SearchState, number: int, psnr: float) -> None:
    for step in (4, 8, 12) if number else (0,):
        report(state, number, step, psnr)


def end(retention: Retention, number: int) -> None:
    """End a trial, and wait until its files are deleted."""
    retention.trial_ended(number)
    retention._thread.submit(retention.check).result()


def kept(state: SearchState) -> dict[int, list[int]]:
    """The steps of the checkpoints of each trial."""
    found = {number: state.store.names(f"trials/{number:04d}/checkpoints") for number in state.record.trials}
    return {number: [int(name[5:]) for name in names] for number, names in found.items() if names}


def test_the_best_trials_of_the_search_keep_their_last_checkpoint(state: SearchState) -> None:
    retention = Retention(state)

    def come(number: int, psnr: float) -> dict[int, list[int]]:
        finish(state, number, psnr)
        end(retention, number)
        return kept(state)

    report(state, 8, 4)
    report(state, 8, 8)
    running = {8: [4, 8]}
    assert come(0, 99.0) == running  # the baseline does not compete, though its value is the best
    assert come(3, 23.0) == {3: [12], **running}
    assert come(2, 22.0) == {2: [12], 3: [12], **running}
    assert come(5, 25.0) == {3: [12], 5: [12], **running}
    assert come(4, 21.0) == {3: [12], 5: [12], **running}
    for number, status in ((8, "pruned"), (7, "diverged")):
        state.end(number, status)  # type: ignore[arg-type]
        end(retention, number)
    assert kept(state) == {3: [12], 5: [12]}
    assert [trial.number for trial in state.record.ranked()] == [5, 3, 2, 4]


def test_with_several_metrics_the_ends_of_the_front_are_kept(tmp_path: Path) -> None:
    search = sampler_spec(objective=TWO, num_trials=8, scheduler={"name": "fifo"}, keep_checkpoints=2)
    state = SearchState(search, FolderStore(tmp_path))
    retention = Retention(state)

    def come(psnr: float, mse: float) -> list[int]:
        trial = state.next_trial()
        assert trial is not None
        state.store.write(f"trials/{trial.number:04d}/checkpoints/step-00000012/model.safetensors", b"x")
        state.report(trial.number, eval_report(12, psnr, metrics={"val/psnr": psnr, "val/mse": mse}))
        end(retention, trial.number)
        return list(kept(state))

    assert come(99.0, 0.0) == []  # the baseline
    assert come(20.0, 0.5) == [1]
    assert come(30.0, 0.9) == [1, 2]
    assert come(25.0, 0.7) == [1, 2]  # between the two
    assert come(10.0, 0.1) == [2, 4]
    assert come(31.0, 0.05) == [2, 5]  # better than all others, and two checkpoints are kept


def test_no_trial_waits_for_a_deletion(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    retention, may_delete, remove = Retention(state), threading.Event(), state.store.remove

    def slow(path: str) -> None:
        assert may_delete.wait(60.0)
        remove(path)

    monkeypatch.setattr(state.store, "remove", slow)
    for number, psnr in ((1, 21.0), (2, 22.0), (3, 23.0)):
        finish(state, number, psnr)
        retention.trial_ended(number)
    assert kept(state) == {1: [4, 8, 12], 2: [4, 8, 12], 3: [4, 8, 12]}
    threading.Timer(0.2, may_delete.set).start()
    retention.close()
    assert kept(state) == {2: [12], 3: [12]}, "the search ends when everything is deleted"
    retention.check()


def test_a_lasting_fault_is_reported_once(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)
    notes, tried = list[str](), list[str]()
    retention = Retention(state, notes.append)

    def away(path: str) -> None:
        tried.append(path)
        raise OSError("the storage is gone")

    monkeypatch.setattr(state.store, "remove", away)
    for number in (1, 2, 3):
        finish(state, number, 20.0 + number)
        retention.trial_ended(number)
    retention.close()
    with pytest.raises(OSError, match="the storage is gone"):
        retention.check()
    assert notes == ["the storage fails: the storage is gone; trying again for 0 s"]
    assert tried == ["trials/0001/checkpoints/step-00000004"], "the search ends after the first fault"


def test_a_passing_fault_is_retried(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, remove = list[str](), state.store.remove
    retention = Retention(state, notes.append)

    def once_away(path: str) -> None:
        monkeypatch.setattr(state.store, "remove", remove)
        raise OSError("away")

    monkeypatch.setattr(state.store, "remove", once_away)
    finish(state, 1, 21.0)
    end(retention, 1)
    assert kept(state) == {1: [12]}
    assert notes == ["the storage fails: away; trying again for 60 s", "the storage works again"]


def test_files_that_a_killed_driver_left_are_deleted(state: SearchState) -> None:
    for number, psnr in ((1, 21.0), (2, 22.0), (3, 23.0)):
        finish(state, number, psnr)
    report(state, 4, 4)
    state.end(5, "failed")
    Retention(state)
    assert kept(state) == {2: [12], 3: [12], 4: [4]}


def test_a_trial_continues_where_the_journal_ends(state: SearchState) -> None:
    """The journal has lost its last lines; the checkpoints that they report are on disk."""
    for number, steps in ((1, (0, 4)), (2, (0,)), (3, ())):
        for step in steps:
            report(state, number, step)
        for step in (4, 8, 12):
            state.store.write(f"trials/{number:04d}/checkpoints/step-{step:08d}/report.json", b"x")
    Retention(state)
    assert kept(state) == {1: [4, 8], 2: [4]}
