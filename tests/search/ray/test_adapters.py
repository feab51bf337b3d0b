"""Between Tune and the state: nothing raises inside Tune's loop, and what goes wrong stops the search."""

import json
import pickle
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftae.errors import FtaeError
from ftae.search.ray.adapters import Coordinator, CoordinatorStopper, FailureCallback, StateScheduler, StateSearcher
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage import journal
from ftae.storage import retry as patience
from ftae.storage.folder_store import FolderStore


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SearchState]:
    spec = {
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
        "search": {"num_trials": 3},
    }
    state = SearchState(SearchSpec.model_validate(spec), FolderStore(tmp_path))
    yield state
    state._leave()


def coordinate(
    state: SearchState,
    on_change: Callable[[int], None] = lambda number: None,
    notify: Callable[[str], None] = lambda message: None,
    deadline: float | None = None,
) -> Coordinator:
    return Coordinator(state, deadline, on_change, notify)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.0)


def report(step: int, psnr: float = 20.0) -> dict[str, Any]:
    return {
        "report": {
            "step": step,
            "metrics": {"val/psnr": psnr},
            "timing": {},
            "checkpoint": f"checkpoints/step-{step:08d}" if step else None,
            "images": f"images/step-{step:08d}.png",
        }
    }


@contextmanager
def full_disk(state: SearchState, spare_bytes: int = 20) -> Iterator[None]:
    """No file can grow beyond the journal's size and a few bytes: the next event is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = state.journal.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tune_gets_the_trials_of_the_state(state: SearchState) -> None:
    changed: list[int] = []
    searcher = StateSearcher(coordinate(state, changed.append))
    assert searcher.suggest("a") == {"number": 0, "kind": "baseline", "params": {}, "changes": {}}
    assert searcher.suggest("b") == {"number": 1, "kind": "file", "params": {"optimizer.lr": 1e-3}, "changes": {}}
    assert [searcher.suggest("c")["number"], searcher.suggest("d")["number"]] == [2, 3]
    assert searcher.suggest("e") is None  # there may be one to hand out again
    assert changed == [0, 1, 2, 3]
    for number in range(4):
        state.end(number, "failed")
    assert searcher.suggest("e") == StateSearcher.FINISHED


def test_the_end_of_tunes_trial_is_not_that_of_the_states(state: SearchState) -> None:
    searcher = StateSearcher(coordinate(state))
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"message": "{}"})
    assert state.record.trials[0].status == "running"


def test_results_reach_the_state_and_stop_the_trials_that_it_ends(state: SearchState) -> None:
    changed: list[int] = []
    coordinator = coordinate(state, changed.append)
    scheduler = StateScheduler(coordinator)
    for _ in range(4):
        coordinator.assign()
    changed.clear()

    def result(number: int, message: dict[str, Any]) -> str:
        trial = SimpleNamespace(config={"number": number})
        return scheduler.on_trial_result(None, trial, {"message": json.dumps(message)})

    assert result(0, report(0)) == "STOP"
    assert result(1, report(0)) == "CONTINUE"
    assert result(1, report(4)) == "CONTINUE"
    assert result(2, report(4, 15.0)) == "STOP"
    assert result(3, {"diverged": "non-finite loss at step 3"}) == "STOP"
    assert result(1, {"failed": "freeze leaves nothing to train"}) == "STOP"
    statuses = [(trial.status, trial.reason) for trial in state.record.trials.values()]
    assert statuses == [
        ("finished", None),
        ("failed", "freeze leaves nothing to train"),
        ("pruned", None),
        ("diverged", "non-finite loss at step 3"),
    ]
    assert changed == [0, 1, 1, 2, 3, 1]


def test_what_befalls_a_trial_is_noted_and_told(state: SearchState, tmp_path: Path) -> None:
    said: list[str] = []
    coordinator = coordinate(state, notify=said.append)
    coordinator.assign()
    coordinator.assign()
    changes = {"batch_size": 4, "grad_accumulation": 2}
    messages: list[dict[str, Any]] = [
        {"start": {"node": "n", "pid": 17, "step": 0}},
        report(4),
        {"adapt": {"changes": changes, "reason": "out of memory at step 6"}},
        {"note": "the storage works again"},
    ]
    assert all(coordinator.message(1, message) for message in messages)
    errors = tmp_path / "error.txt"
    errors.write_text("Traceback ...\nThe actor died because its node died\n")
    info = SimpleNamespace(config={"number": 1}, error_file=str(errors))
    FailureCallback(coordinator).on_trial_recover(7, [], info)
    lost = "its worker was lost (The actor died because its node died); it goes on from its newest checkpoint"
    trial = state.record.trials[1]
    assert (trial.status, trial.changes, trial.step) == ("running", changes, 4)
    assert [start["pid"] for start in trial.starts] == [17]
    assert trial.notes == ["the storage works again", lost]
    assert said == [f"trial 1: {text}" for text in ("out of memory at step 6", "the storage works again", lost)]
    assert not coordinator.must_stop()


def test_a_trial_fails_when_tune_gives_it_up_and_not_before(state: SearchState, tmp_path: Path) -> None:
    coordinator = coordinate(state)
    coordinator.assign()
    coordinator.assign()
    coordinator.message(1, report(0))
    errors = tmp_path / "error.txt"
    errors.write_text("Failure # 3 (occurred at ...)\nTraceback ...\n  File x\nRuntimeError: boom\n\n")
    trial = SimpleNamespace(config={"number": 1}, error_file=str(errors))
    StateScheduler(coordinator).on_trial_error(None, trial)  # before every new attempt, too
    assert state.record.trials[1].status == "running"
    FailureCallback(coordinator).on_trial_error(7, [], trial)
    assert (state.record.trials[1].status, state.record.trials[1].reason) == ("failed", "RuntimeError: boom")
    assert state.sampler.trials[0].state.name == "FAIL"
    assert not coordinator.must_stop()


def test_a_trial_that_lost_its_worker_between_two_trials_is_handed_out_again(
    state: SearchState, tmp_path: Path
) -> None:
    """Tune tells such a loss twice, and gives the trial up however many failures it may have."""
    coordinator, errors = coordinate(state), tmp_path / "error.txt"
    searcher, failures = StateSearcher(coordinator), FailureCallback(coordinator)
    errors.write_text("The actor died\n")
    searcher.suggest("a")
    trial = SimpleNamespace(config=searcher.suggest("b"), error_file=str(errors))
    for _ in range(state.spec.search.max_failures):
        failures.on_trial_recover(7, [], trial)
        failures.on_trial_error(7, [], trial)
        assert state.record.trials[1].status == "running"
        assert searcher.suggest("c") == trial.config
    failures.on_trial_recover(7, [], trial)
    failures.on_trial_error(7, [], trial)
    assert (state.record.trials[1].status, state.record.trials[1].reason) == ("failed", "The actor died")
    assert searcher.suggest("d")["number"] == 2


@pytest.mark.usefixtures("impatient")
def test_a_journal_that_cannot_be_written_stops_the_search(state: SearchState) -> None:
    coordinator = coordinate(state)
    stopper = CoordinatorStopper(coordinator)
    faults: list[str] = []
    state._notify = faults.append
    coordinator.assign()
    coordinator.assign()
    content = state.journal.path.read_bytes()
    with full_disk(state):
        assert not stopper.stop_all()
        assert coordinator.message(1, report(0)) is False
        assert isinstance(coordinator.failure, OSError)
        assert stopper.stop_all()
        first = coordinator.failure
        assert StateSearcher(coordinator).suggest("c") == StateSearcher.FINISHED
        coordinator.given_up(1, __file__)
        assert coordinator.failure is first
        assert len(faults) == 1, "the storage is not tried again for every trial"
    assert state.journal.path.read_bytes() == content
    state.journal.close()
    again = SearchState(state.spec, state.store)
    assert [trial.status for trial in again.record.trials.values()] == ["running", "running"]
    assert again.record.trials[1].reports == []


@pytest.mark.usefixtures("impatient")
def test_leaving_with_a_full_disk_gives_the_journal_free(state: SearchState) -> None:
    with full_disk(state), pytest.raises(OSError, match=r"space|large"):
        state.close("complete")
    assert SearchState(state.spec, state.store).record.close is None


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe no text\n"])
def test_a_loss_that_tune_says_nothing_of_is_a_loss(state: SearchState, tmp_path: Path, content: bytes | None) -> None:
    errors = tmp_path / "error.txt"
    if content is not None:
        errors.write_bytes(content)
    coordinator = coordinate(state)
    coordinator.assign()
    coordinator.assign()
    coordinator.recovered(1, str(errors))
    coordinator.given_up(1, str(errors))
    assert coordinator.failure is None
    assert state.record.trials[1].notes[0].startswith("its worker was lost (")


@pytest.mark.parametrize("call", ["assign", "message", "given_up"])
def test_nothing_that_goes_wrong_is_raised(state: SearchState, call: str) -> None:
    def broken(number: int) -> None:
        raise RuntimeError("the display is gone")

    coordinator = coordinate(state, broken)
    if call == "assign":
        coordinator.assign()
    elif call == "message":
        coordinator.message(7, report(0))  # no such trial
    else:
        coordinator.given_up(1, None)  # no such trial
    expected = {"assign": RuntimeError, "message": KeyError, "given_up": KeyError}[call]
    assert isinstance(coordinator.failure, expected)
    assert coordinator.must_stop()


def test_a_storage_that_fails_stops_the_search_and_leaves_the_trial_unfinished(state: SearchState) -> None:
    coordinator = coordinate(state)
    coordinator.assign()
    coordinator.assign()
    assert coordinator.message(1, {"storage": "trial 1 cannot use its files: [Errno 28] No space left"}) is False
    assert isinstance(coordinator.failure, FtaeError)
    assert "No space left. Mend that, then go on with --resume" in str(coordinator.failure)
    assert coordinator.must_stop()
    assert state.record.trials[1].status == "running"


def test_a_message_that_is_no_message_stops_the_search(state: SearchState) -> None:
    coordinator = coordinate(state)
    coordinator.assign()
    assert coordinator.message(0, {"report": {"step": 0, "metrics": {}}}) is False
    assert isinstance(coordinator.failure, KeyError)


def test_the_deadline_ends_a_search(state: SearchState) -> None:
    coordinator = coordinate(state, deadline=time.monotonic() + 60.0)
    assert not coordinator.is_overdue()
    assert not CoordinatorStopper(coordinator).stop_all()
    coordinator.deadline = time.monotonic() - 0.1
    assert coordinator.is_overdue()
    assert CoordinatorStopper(coordinator).stop_all()


@pytest.mark.parametrize("message", [{"failed": "its weights cannot be used"}, {"diverged": "out of memory at step 0"}])
def test_a_search_without_a_baseline_is_stopped(state: SearchState, message: dict[str, Any]) -> None:
    coordinator = coordinate(state)
    coordinator.assign()
    coordinator.assign()
    coordinator.message(1, {"failed": "one trial does not matter"})
    assert not coordinator.must_stop()
    coordinator.message(0, message)
    assert coordinator.must_stop()
    assert coordinator.failure is None


def test_tunes_snapshots_hold_nothing_of_the_search(state: SearchState) -> None:
    coordinator = coordinate(state)
    for part in (StateSearcher(coordinator), StateScheduler(coordinator), CoordinatorStopper(coordinator)):
        assert len(pickle.dumps(part)) < 200
    searcher = StateSearcher(coordinator)
    searcher.save(str(state.store.folder / "searcher"))
    assert not (state.store.folder / "searcher").exists()
    with pytest.raises(AssertionError, match="from its journal"):
        searcher.restore("anything")
    assert [event["event"] for event, _ in journal.read(state.store.folder)] == ["open"]


def test_three_failures_in_a_row_end_the_search(state: SearchState) -> None:
    coordinator = coordinate(state)
    for number in range(4):
        coordinator.assign()
        if number > 0:
            assert not coordinator.must_stop()
            coordinator.message(number, {"failed": f"the weights are gone: {number}"})
    assert coordinator.must_stop()
    assert "3 trials in a row failed, the last one: the weights are gone: 3. Mend that" in str(coordinator.failure)


def test_failures_with_others_between_do_not(state: SearchState) -> None:
    coordinator = coordinate(state)
    for number, message in ((0, report(0)), (1, {"failed": "x"}), (2, {"diverged": "x"}), (3, {"failed": "x"})):
        coordinator.assign()
        coordinator.message(number, message)
    assert not coordinator.must_stop()
