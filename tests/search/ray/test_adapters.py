"""Between Tune and the coordinator: nothing raises inside Tune's loop, and a lost worker is not a failed trial."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated import state_spec

from ftae.search.coordinator import StateCoordinator
from ftae.search.ray.adapters import (
    CoordinatorScheduler,
    CoordinatorSearcher,
    CoordinatorStopper,
    FailureCallback,
    Workers,
)
from ftae.search.ray.messages import Message, Note, Report, Start, to_json
from ftae.search.state import SearchState
from ftae.storage import journal
from ftae.storage.backends import FolderStore


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SearchState]:
    (tmp_path / "small").mkdir()
    state = SearchState(state_spec(num_trials=3), FolderStore(tmp_path / "small"))
    yield state
    state.writer.close()


@pytest.fixture
def coordinator(state: SearchState) -> StateCoordinator:
    return StateCoordinator(state, None, lambda number: None, lambda message: None)


@pytest.fixture
def workers(coordinator: StateCoordinator) -> Workers:
    return Workers(coordinator, coordinator.state.spec.search.max_failures, report_seconds=1.0)


@pytest.fixture
def searcher(coordinator: StateCoordinator) -> CoordinatorSearcher:
    return CoordinatorSearcher(coordinator)


def result(workers: Workers, number: int, message: Message) -> str:
    """What Tune is to do after a result of a trial."""
    trial = SimpleNamespace(config={"number": number})
    return CoordinatorScheduler(workers).on_trial_result(None, trial, {"message": to_json(message)})


def report(step: int) -> Report:
    return Report(step, {"val/psnr": 20.0}, {}, f"checkpoints/step-{step:08d}" if step else None, "images/a.png")


def test_tune_gets_the_trials_of_the_coordinator(searcher: CoordinatorSearcher, state: SearchState) -> None:
    assert searcher.suggest("a") == {"number": 0, "kind": "baseline", "params": {}, "changes": {}}
    file = {"number": 1, "kind": "file", "params": state.spec.file_params(), "changes": {}}
    assert searcher.suggest("b") == file
    assert [searcher.suggest("c")["number"], searcher.suggest("d")["number"]] == [2, 3]
    assert searcher.suggest("e") is None, "a running trial may have to start again"
    for number in range(4):
        state.end(number, "failed")
    assert searcher.suggest("e") == CoordinatorSearcher.FINISHED


def test_the_end_of_tunes_trial_does_not_end_the_trial(searcher: CoordinatorSearcher, state: SearchState) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"message": "{}"})
    assert state.record.trials[0].status == "running"


def test_results_stop_the_trials_that_the_coordinator_ends(searcher: CoordinatorSearcher, workers: Workers) -> None:
    searcher.suggest("a")
    searcher.suggest("b")
    assert result(workers, 0, report(0)) == "STOP"
    assert result(workers, 1, Start("node", 17, 0)) == "CONTINUE"
    assert result(workers, 1, report(0)) == "CONTINUE"


def test_a_result_that_is_no_message_stops_the_search(workers: Workers, coordinator: StateCoordinator) -> None:
    coordinator.assign()
    assert workers.receive(0, '{"type": "Tomorrow"}') is False
    assert isinstance(coordinator.failure, KeyError)
    assert CoordinatorStopper(workers).stop_all()


def test_an_error_while_hung_workers_are_killed_stops_the_search(
    workers: Workers, coordinator: StateCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("Ray is gone")

    monkeypatch.setattr(workers._hangs, "kill_hung", broken)
    assert CoordinatorStopper(workers).stop_all()
    assert str(coordinator.failure) == "Ray is gone"


def lost(trial: Any, workers: Workers) -> None:
    FailureCallback(workers).on_trial_recover(7, [], trial)


def given_up(trial: Any, workers: Workers) -> None:
    FailureCallback(workers).on_trial_error(7, [], trial)


@pytest.fixture
def errors(tmp_path: Path) -> str:
    (tmp_path / "error.txt").write_text("Traceback ...\nThe actor died\n")
    return str(tmp_path / "error.txt")


def test_a_lost_worker_is_noted(
    searcher: CoordinatorSearcher, workers: Workers, state: SearchState, errors: str
) -> None:
    searcher.suggest("a")
    lost(SimpleNamespace(config=searcher.suggest("b"), error_file=errors), workers)
    trial = state.record.trials[1]
    assert trial.status == "running"
    assert trial.notes == ["its worker was lost (The actor died); it continues from its newest checkpoint"]


def test_a_trial_fails_when_tune_gives_it_up_and_not_before(
    searcher: CoordinatorSearcher, workers: Workers, state: SearchState, errors: str
) -> None:
    searcher.suggest("a")
    trial = SimpleNamespace(config=searcher.suggest("b"), error_file=errors)
    result(workers, 1, report(0))
    CoordinatorScheduler(workers).on_trial_error(None, trial)  # Tune calls this before every new attempt, too
    assert state.record.trials[1].status == "running"
    given_up(trial, workers)
    assert (state.record.trials[1].status, state.record.trials[1].reason) == ("failed", "The actor died")


def test_a_trial_that_lost_its_worker_before_it_began_is_assigned_again(
    searcher: CoordinatorSearcher, workers: Workers, state: SearchState, errors: str
) -> None:
    """Tune counts such a loss twice, and gives the trial up however many failures are allowed."""
    searcher.suggest("a")
    trial = SimpleNamespace(config=searcher.suggest("b"), error_file=errors)
    for _ in range(state.spec.search.max_failures):
        lost(trial, workers)
        given_up(trial, workers)
        assert state.record.trials[1].status == "running"
        assert searcher.suggest("c") == trial.config
    lost(trial, workers)
    given_up(trial, workers)
    assert (state.record.trials[1].status, state.record.trials[1].reason) == ("failed", "The actor died")
    assert searcher.suggest("d")["number"] == 2


def test_a_trial_that_sent_a_message_after_a_loss_has_begun(
    searcher: CoordinatorSearcher, workers: Workers, state: SearchState, errors: str
) -> None:
    searcher.suggest("a")
    trial = SimpleNamespace(config=searcher.suggest("b"), error_file=errors)
    lost(trial, workers)
    result(workers, 1, Note("here again"))
    given_up(trial, workers)
    assert state.record.trials[1].status == "failed"


def test_tunes_snapshots_hold_nothing_of_the_search(
    searcher: CoordinatorSearcher, workers: Workers, state: SearchState
) -> None:
    for part in (searcher, CoordinatorScheduler(workers), CoordinatorStopper(workers), FailureCallback(workers)):
        assert len(pickle.dumps(part)) < 200
    searcher.save(str(state.store.folder / "searcher"))
    assert not (state.store.folder / "searcher").exists()
    with pytest.raises(AssertionError, match="from its journal"):
        searcher.restore("anything")
    assert [event["event"] for event, _ in journal.read(state.store.folder)] == ["open"]
