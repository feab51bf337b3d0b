"""Which checkpoints stay, in a folder and in an object store. The trials are made up, the files are there."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ftae.search.retention import Retention
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage import retry as patience
from ftae.storage.folder_store import FolderStore
from ftae.storage.store import open_store

SPEC = SearchSpec.model_validate(
    {
        "name": "made-up",
        "finetune": {
            "model": {"family": "conv_ae"},
            "data": {"source": "digits", "resolution": 16},
            "losses": {"mse": 1.0},
            "optimizer": {"lr": 1e-3},
            "max_steps": 12,
            "num_evals": 3,
            "metrics": ["psnr"],
        },
        "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}},
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "search": {"num_trials": 8, "scheduler": {"name": "fifo"}, "keep_checkpoints": 2},
    }
)


@pytest.fixture(params=["folder", "object store"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchState:
    """A search with all its trials handed out."""
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    storage = str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")
    store = open_store(storage, SPEC.name, "driver")
    store.folder.mkdir(parents=True, exist_ok=True)
    state = SearchState(SPEC, store)
    while state.next_trial() is not None:
        pass
    return state


def report(state: SearchState, number: int, step: int, psnr: float = 20.0) -> None:
    """A report of a worker that keeps the two newest checkpoints."""
    checkpoint = f"checkpoints/step-{step:08d}"
    made_up: dict[str, Any] = {"metrics": {"val/psnr": psnr}, "timing": {}, "images": f"images/{step}.png"}
    if step:
        for name in ("model.safetensors", "report.json"):
            state.store.write(f"trials/{number:04d}/{checkpoint}/{name}", b"x")
    state.report(number, made_up | {"step": step, "checkpoint": checkpoint if step else None})


def finish(state: SearchState, number: int, psnr: float) -> None:
    for step in (4, 8, 12) if number else (0,):
        report(state, number, step, psnr)


def end(retention: Retention, number: int) -> None:
    """Tell of the end of a trial, and wait until all of it is deleted that goes."""
    retention.trial_ended(number)
    retention._thread.submit(retention.check).result()


def kept(state: SearchState) -> dict[int, list[int]]:
    """The steps of the checkpoints of each trial."""
    found = {number: state.store.names(f"trials/{number:04d}/checkpoints") for number in state.record.trials}
    return {number: [int(name[5:]) for name in names] for number, names in found.items() if names}


def test_the_best_of_the_whole_search_keep_their_last(state: SearchState) -> None:
    retention = Retention(state)

    def come(number: int, psnr: float) -> dict[int, list[int]]:
        finish(state, number, psnr)
        end(retention, number)
        return kept(state)

    report(state, 8, 4)
    report(state, 8, 8)
    running = {8: [4, 8]}
    assert come(0, 99.0) == running  # no rival, though its value is the best
    assert come(3, 23.0) == {3: [12], **running}
    assert come(2, 22.0) == {2: [12], 3: [12], **running}
    assert come(5, 25.0) == {3: [12], 5: [12], **running}
    assert come(4, 21.0) == {3: [12], 5: [12], **running}
    for number, status in ((8, "pruned"), (7, "diverged")):
        state.end(number, status)  # type: ignore[arg-type]
        end(retention, number)
    assert kept(state) == {3: [12], 5: [12]}
    assert [trial.number for trial in state.record.ranked()] == [5, 3, 2, 4]


TWO = {"metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/mse", "direction": "minimize"}]}


def test_of_several_metrics_the_ends_of_the_front_are_kept(tmp_path: Path) -> None:
    changes = {"objective": TWO, "finetune": SPEC.finetune.model_dump() | {"metrics": ["psnr", "mse"]}}
    state = SearchState(SearchSpec.model_validate(SPEC.model_dump() | changes), FolderStore(tmp_path))
    retention = Retention(state)

    def come(psnr: float, mse: float) -> list[int]:
        trial = state.next_trial()
        assert trial is not None
        state.store.write(f"trials/{trial.number:04d}/checkpoints/step-00000012/model.safetensors", b"x")
        report: dict[str, Any] = {"step": 12, "timing": {}, "images": "none.png"}
        report |= {"metrics": {"val/psnr": psnr, "val/mse": mse}, "checkpoint": "checkpoints/step-00000012"}
        state.report(trial.number, report)
        end(retention, trial.number)
        return list(kept(state))

    assert come(99.0, 0.0) == []  # the baseline
    assert come(20.0, 0.5) == [1]
    assert come(30.0, 0.9) == [1, 2]
    assert come(25.0, 0.7) == [1, 2]  # between the two
    assert come(10.0, 0.1) == [2, 4]
    assert come(31.0, 0.05) == [2, 5]  # beats them all, and two checkpoints stay


def test_no_trial_waits_for_what_is_deleted(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    retention, may_delete, remove = Retention(state), threading.Event(), state.store.remove

    def slow(below: str) -> None:
        assert may_delete.wait(60.0)
        remove(below)

    monkeypatch.setattr(state.store, "remove", slow)
    for number, psnr in ((1, 21.0), (2, 22.0), (3, 23.0)):
        finish(state, number, psnr)
        retention.trial_ended(number)
    assert kept(state) == {1: [4, 8, 12], 2: [4, 8, 12], 3: [4, 8, 12]}
    threading.Timer(0.2, may_delete.set).start()
    retention.close()
    assert kept(state) == {2: [12], 3: [12]}, "the search ends when all of it is gone"
    retention.check()


def test_storage_that_stays_away_is_told_once(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.0)
    said, tried = list[str](), list[str]()
    retention = Retention(state, said.append)

    def away(below: str) -> None:
        tried.append(below)
        raise OSError("the storage is gone")

    monkeypatch.setattr(state.store, "remove", away)
    for number in (1, 2, 3):
        finish(state, number, 20.0 + number)
        retention.trial_ended(number)
    retention.close()
    with pytest.raises(OSError, match="the storage is gone"):
        retention.check()
    assert said == ["the storage fails: the storage is gone; trying again for 0 s"]
    assert tried == ["trials/0001/checkpoints/step-00000004"], "the search ends: nobody waits for the same fault again"


def test_a_fault_that_passes_is_borne(state: SearchState, monkeypatch: pytest.MonkeyPatch) -> None:
    said, remove = list[str](), state.store.remove
    retention = Retention(state, said.append)

    def once_away(below: str) -> None:
        monkeypatch.setattr(state.store, "remove", remove)
        raise OSError("away")

    monkeypatch.setattr(state.store, "remove", once_away)
    finish(state, 1, 21.0)
    end(retention, 1)
    assert kept(state) == {1: [12]}
    assert said == ["the storage fails: away; trying again for 60 s", "the storage works again"]


def test_what_a_killed_driver_left_is_sorted_out(state: SearchState) -> None:
    for number, psnr in ((1, 21.0), (2, 22.0), (3, 23.0)):
        finish(state, number, psnr)
    report(state, 4, 4)
    state.end(5, "failed")
    Retention(state)
    assert kept(state) == {2: [12], 3: [12], 4: [4]}


def test_a_trial_goes_on_where_the_journal_ends(state: SearchState) -> None:
    """The journal has lost its last lines, the checkpoints reported there are on disk."""
    for number, steps in ((1, (0, 4)), (2, (0,)), (3, ())):
        for step in steps:
            report(state, number, step)
        for step in (4, 8, 12):
            state.store.write(f"trials/{number:04d}/checkpoints/step-{step:08d}/report.json", b"x")
    Retention(state)
    assert kept(state) == {1: [4, 8], 2: [4]}
