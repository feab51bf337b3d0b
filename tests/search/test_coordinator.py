"""The driver's side of every message: nothing is raised, and what goes wrong stops the search."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from simulated import state_spec

from ftae.errors import FtaeError
from ftae.search.coordinator import StateCoordinator
from ftae.search.ray.messages import Adapted, Diverged, Failed, Message, Note, Report, Start, StorageFailed
from ftae.search.sampler import OptunaSampler
from ftae.search.state import SearchState
from ftae.storage import store as retry
from ftae.storage.backends import FolderStore


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SearchState]:
    state = SearchState(state_spec(num_trials=3), FolderStore(tmp_path))
    yield state
    state.writer.close()


@pytest.fixture
def without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)


def coordinate(
    state: SearchState,
    on_change: Callable[[int], None] = lambda number: None,
    notify: Callable[[str], None] = lambda message: None,
    deadline: float | None = None,
    num_assigned: int = 0,
) -> StateCoordinator:
    coordinator = StateCoordinator(state, deadline, on_change, notify)
    for _ in range(num_assigned):
        assert coordinator.assign() is not None
    return coordinator


def report(step: int, psnr: float = 20.0) -> Report:
    return Report(step, {"val/psnr": psnr}, {}, f"checkpoints/step-{step:08d}" if step else None, "images/a.png")


@contextmanager
def full_disk(state: SearchState, spare_bytes: int = 20) -> Iterator[None]:
    """No file can grow beyond the journal's size and a few bytes, so that the next event is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = state.writer.journal.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_trials_are_those_of_the_state(state: SearchState) -> None:
    changed: list[int] = []
    coordinator = coordinate(state, changed.append)
    assigned = [coordinator.assign() for _ in range(4)]
    assert [(trial.number, trial.kind) for trial in assigned if trial] == [
        (0, "baseline"),
        (1, "file"),
        (2, "sampled"),
        (3, "sampled"),
    ]
    assert changed == [0, 1, 2, 3]
    assert coordinator.assign() is None
    assert coordinator.may_assign_more(), "a running trial may have to start again"
    coordinator.take_back(2)
    again = coordinator.assign()
    assert again is not None
    assert again.number == 2
    for number in range(4):
        state.end(number, "failed")
    assert not coordinator.may_assign_more()


def test_a_trial_continues_until_the_state_ends_it(state: SearchState) -> None:
    changed: list[int] = []
    coordinator = coordinate(state, changed.append, num_assigned=4)
    changed.clear()
    messages: list[tuple[int, Message, bool]] = [
        (0, report(0), False),
        (1, report(0), True),
        (1, report(4), True),
        (2, report(4, 15.0), False),
        (3, Diverged("non-finite loss at step 3"), False),
        (1, Failed("freeze leaves nothing to train"), False),
    ]
    for number, message, goes_on in messages:
        assert coordinator.receive(number, message) is goes_on
    assert [(trial.status, trial.reason) for trial in state.record.trials.values()] == [
        ("finished", None),
        ("failed", "freeze leaves nothing to train"),
        ("pruned", "15 is not among the best 50% at step 4, which begin at 20"),
        ("diverged", "non-finite loss at step 3"),
    ]
    assert changed == [number for number, _, _ in messages]


def test_starts_changes_and_notes_are_recorded_and_shown(state: SearchState) -> None:
    notes: list[str] = []
    coordinator = coordinate(state, notify=notes.append, num_assigned=2)
    changes = {"batch_size": 4, "grad_accumulation": 2}
    messages = [Start("n", 17, 0), report(4), Adapted(changes, "out of memory at step 6"), Note("the storage works")]
    assert all(coordinator.receive(1, message) for message in messages)
    coordinator.note(1, "its worker was lost")
    trial = state.record.trials[1]
    assert (trial.status, trial.changes, trial.step) == ("running", changes, 4)
    assert [start["pid"] for start in trial.starts] == [17]
    assert trial.notes == ["the storage works", "its worker was lost"]
    assert notes == [f"trial 1: {text}" for text in ("out of memory at step 6", *trial.notes)]
    assert not coordinator.must_stop()


def test_a_trial_that_is_given_up_has_failed(state: SearchState) -> None:
    coordinator = coordinate(state, num_assigned=2)
    coordinator.receive(1, report(0))
    coordinator.give_up(1, "RuntimeError: boom")
    assert (state.record.trials[1].status, state.record.trials[1].reason) == ("failed", "RuntimeError: boom")
    assert isinstance(state.sampler, OptunaSampler)
    assert state.sampler.trials[0].state.name == "FAIL"
    assert not coordinator.must_stop()


# ------------------------------------------------------------------------------- the end of the search


@pytest.mark.usefixtures("without_retries")
def test_a_journal_that_cannot_be_written_stops_the_search(state: SearchState) -> None:
    coordinator = coordinate(state, num_assigned=2)
    faults: list[str] = []
    state.writer.notify = faults.append
    content = state.writer.journal.path.read_bytes()
    with full_disk(state):
        assert not coordinator.must_stop()
        assert coordinator.receive(1, report(0)) is False
        assert isinstance(coordinator.failure, OSError)
        assert coordinator.must_stop()
        first = coordinator.failure
        assert coordinator.assign() is None
        assert not coordinator.may_assign_more()
        coordinator.give_up(1, "anything")
        coordinator.fail(RuntimeError("a later error"))
        assert coordinator.failure is first
        assert len(faults) == 1, "the storage is not tried again for every trial"
    assert state.writer.journal.path.read_bytes() == content
    state.writer.journal.close()
    again = SearchState(state.spec, state.store)
    assert [trial.status for trial in again.record.trials.values()] == ["running", "running"]
    assert again.record.trials[1].reports == []
    again.writer.close()


@pytest.mark.usefixtures("without_retries")
def test_closing_with_a_full_disk_releases_the_journal(state: SearchState) -> None:
    with full_disk(state), pytest.raises(OSError, match=r"space|large"):
        state.close("complete")
    again = SearchState(state.spec, state.store)
    assert again.record.close is None
    again.writer.close()


@pytest.mark.parametrize("call", ["assign", "receive", "give_up"])
def test_no_error_is_raised(state: SearchState, call: str) -> None:
    def broken(number: int) -> None:
        raise RuntimeError("the display is gone")

    coordinator = coordinate(state, broken)
    if call == "assign":
        coordinator.assign()
    elif call == "receive":
        coordinator.receive(7, report(0))  # no such trial
    else:
        coordinator.give_up(1, "anything")  # no such trial
    expected = {"assign": RuntimeError, "receive": KeyError, "give_up": KeyError}[call]
    assert isinstance(coordinator.failure, expected)
    assert coordinator.must_stop()


def test_a_storage_that_fails_stops_the_search_and_leaves_the_trial_unfinished(state: SearchState) -> None:
    coordinator = coordinate(state, num_assigned=2)
    assert coordinator.receive(1, StorageFailed("trial 1 cannot use its files: [Errno 28] No space left")) is False
    assert isinstance(coordinator.failure, FtaeError)
    assert "No space left. Fix the cause, then continue with --resume" in str(coordinator.failure)
    assert coordinator.must_stop()
    assert state.record.trials[1].status == "running"


def test_the_deadline_ends_a_search(state: SearchState) -> None:
    coordinator = coordinate(state, deadline=time.monotonic() + 600.0)
    assert not coordinator.is_overdue()
    assert not coordinator.must_stop()
    coordinator.deadline = time.monotonic() - 0.1
    assert coordinator.is_overdue()
    assert coordinator.must_stop()


@pytest.mark.parametrize("message", [Failed("its weights cannot be used"), Diverged("out of memory at step 0")])
def test_a_search_without_a_baseline_is_stopped(state: SearchState, message: Message) -> None:
    coordinator = coordinate(state, num_assigned=2)
    coordinator.receive(1, Failed("one trial does not matter"))
    assert not coordinator.must_stop()
    coordinator.receive(0, message)
    assert coordinator.must_stop()
    assert coordinator.failure is None


def test_three_failures_in_a_row_end_the_search(state: SearchState) -> None:
    coordinator = coordinate(state, num_assigned=4)
    for number in (1, 2, 3):
        assert not coordinator.must_stop()
        coordinator.receive(number, Failed(f"the weights are gone: {number}"))
    assert coordinator.must_stop()
    assert str(coordinator.failure) == (
        "3 trials in a row failed, the last one: the weights are gone: 3. Fix the cause, then continue with --resume"
    )


def test_failures_with_another_end_between_them_do_not(state: SearchState) -> None:
    coordinator = coordinate(state, num_assigned=4)
    for number, message in ((0, report(0)), (1, Failed("x")), (2, Diverged("x")), (3, Failed("x"))):
        coordinator.receive(number, message)
    assert not coordinator.must_stop()
