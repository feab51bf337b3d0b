"""From the journal to a tracker: nothing is lost, nothing is sent twice, and no fault stops the search.

The tracker is the edge of the network and the only fake here: it notes what arrives.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec
from mlflow import MlflowClient

from ftae.errors import FtaeError
from ftae.search import tracking_sync
from ftae.search.tracking_sync import CURSOR, TrackingSync, publish, send_new, sync, unsent
from ftae.storage.backends import FolderStore
from ftae.storage.journal import Event, Journal
from ftae.tracking import Outcome, TrackingUnavailable, store_uri, tracker_for

SPEC = search_spec(name="made-up", **{"finetune.metrics": ["psnr"], "search": {}})


class Tracker:
    """Notes what arrives. ``failures``: what the next calls of ``send`` raise; None for a call that works."""

    def __init__(self, *failures: Exception | None, experiment: str = "made-up") -> None:
        self.destination = {"uri": "http://there", "experiment": experiment}
        self.arrived: list[Event] = []
        self.published = Outcome()
        self.failures = list(failures)
        self.failures_to_publish: list[Exception] = []
        self.calls = 0

    def check(self) -> None:
        raise AssertionError("only production runs check")

    def send(self, events: Sequence[Event]) -> None:
        self.calls += 1
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.arrived += events

    def publish(self, outcome: Outcome) -> None:
        if self.failures_to_publish:
            raise self.failures_to_publish.pop(0)
        self.published = outcome

    def page(self) -> str:
        raise AssertionError("a search asks for no page")

    def register(self, name: str) -> str:
        raise AssertionError("only production runs register")


class Messages(list[str]):
    def __call__(self, message: str) -> None:
        self.append(message)


def away() -> TrackingUnavailable:
    return TrackingUnavailable("MLflow at http://nowhere: ConnectionError")


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_sync, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(tracking_sync, "RETRY_SECONDS", 0.02)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    journal.append("open", search=SPEC.model_dump(mode="json"), digest=SPEC.digest(), versions={})
    yield journal
    journal.close()


def add(journal: Journal, trial: int, psnr: float = 20.0, end: str = "finished") -> None:
    """The three events of a trial."""
    kind = {0: "baseline", 1: "file"}.get(trial, "sampled")
    params = {} if trial == 0 else {"optimizer.lr": 1e-3 * trial}
    journal.append("suggest", trial=trial, params=params, kind=kind)
    journal.append(
        "report",
        trial=trial,
        step=12,
        value=psnr,
        metrics={"val/psnr": psnr, "train/loss": 0.5},
        timing={},
        checkpoint=f"trials/{trial:04d}/checkpoints/step-00000012",
        images=f"trials/{trial:04d}/images/step-00000012.png",
    )
    journal.append("end", trial=trial, status=end, reason=None, value=psnr, step=12)


def written(folder: Path) -> list[Event]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start(folder: Path, tracker: Tracker) -> tuple[TrackingSync, Messages]:
    said = Messages()
    thread = TrackingSync(FolderStore(folder), lambda: tracker, said)
    thread.start()
    return thread, said


# ------------------------------------------------------------------------------------ without a thread


def test_what_was_sent_is_not_sent_again(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker()
    add(journal, 0)
    assert unsent(FolderStore(tmp_path)) == 4
    assert send_new(FolderStore(tmp_path), tracker) == 4
    assert unsent(FolderStore(tmp_path)) == 0
    assert json.loads((tmp_path / CURSOR).read_text()) == {
        "offset": journal.path.stat().st_size,
        "uri": "http://there",
        "experiment": "made-up",
    }
    add(journal, 1)
    assert send_new(FolderStore(tmp_path), Tracker()) == 3  # another process continues there
    assert send_new(FolderStore(tmp_path), tracker) == 0
    assert tracker.arrived == written(tmp_path)[:4]


def test_another_destination_gets_everything(journal: Journal, tmp_path: Path) -> None:
    add(journal, 0)
    assert send_new(FolderStore(tmp_path), Tracker()) == 4
    other = Tracker(away(), experiment="other")
    with pytest.raises(TrackingUnavailable):
        send_new(FolderStore(tmp_path), other)
    assert send_new(FolderStore(tmp_path), other) == 4
    assert other.arrived == written(tmp_path)
    assert send_new(FolderStore(tmp_path), other) == 0


def test_a_long_journal_goes_in_batches_remembered_one_by_one(journal: Journal, tmp_path: Path) -> None:
    with journal.path.open("ab") as file:  # faster than a thousand appends, each on disk
        file.writelines(json.dumps({"event": "report", "n": n}).encode() + b"\n" for n in range(1100))
    tracker = Tracker(None, away())
    with pytest.raises(TrackingUnavailable):
        send_new(FolderStore(tmp_path), tracker)
    assert unsent(FolderStore(tmp_path)) == 601
    assert send_new(FolderStore(tmp_path), tracker) == 601
    assert tracker.arrived == written(tmp_path)
    assert tracker.calls == 4


def test_a_line_that_is_being_written_waits(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker()
    with journal.path.open("ab") as file:
        file.write(b'{"event": "close"')
        file.flush()
        assert send_new(FolderStore(tmp_path), tracker) == 1
        file.write(b"}\n")
    assert send_new(FolderStore(tmp_path), tracker) == 1
    assert tracker.arrived[-1] == {"event": "close"}


@pytest.mark.parametrize("written_since", [0, 1, 2])
def test_a_journal_that_lost_its_end_is_sent_anew(journal: Journal, tmp_path: Path, written_since: int) -> None:
    add(journal, 0)
    assert send_new(FolderStore(tmp_path), Tracker()) == 4
    journal.close()
    os.truncate(journal.path, journal.path.stat().st_size - 7)
    again, tracker = Journal(tmp_path), Tracker()
    again.take_up()
    for trial in range(written_since):
        add(again, trial + 1)
    assert send_new(FolderStore(tmp_path), tracker) == 3 + 3 * written_since
    assert tracker.arrived == written(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"offset": null}', "half a li"])
def test_a_damaged_cursor_is_an_error_that_names_it(journal: Journal, tmp_path: Path, content: str) -> None:
    (tmp_path / CURSOR).write_text(content)
    with pytest.raises(FtaeError, match=r"tracking\.json is damaged: run ftae sync"):
        unsent(FolderStore(tmp_path))
    with pytest.raises(FtaeError, match="damaged"):
        send_new(FolderStore(tmp_path), Tracker())


# ------------------------------------------------------------------------------------------ the thread


def test_the_journal_is_sent_while_it_grows(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker()
    thread, said = start(tmp_path, tracker)
    for trial in range(5):
        add(journal, trial)
        wait_until(lambda count=4 + 3 * trial: len(tracker.arrived) == count)  # type: ignore[misc]
    journal.append("close", status="complete", reason=None)
    assert thread.finish(10.0)
    assert not thread.is_alive()
    assert tracker.arrived == written(tmp_path)
    assert said == []


def test_after_an_outage_everything_is_there_once(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker(None, away(), away(), away())
    thread, said = start(tmp_path, tracker)
    for trial in range(3):
        add(journal, trial)
        wait_until(lambda calls=2 * trial: tracker.calls > calls)  # type: ignore[misc]
    wait_until(lambda: len(said) == 2)
    assert said == [
        f"{away()}; the search continues and sends the rest later",
        "tracking is back; everything missed was sent",
    ]
    assert thread.finish(10.0)
    assert tracker.arrived == written(tmp_path)


def test_a_second_outage_is_reported_again(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker(away(), away(), None, away())
    thread, said = start(tmp_path, tracker)
    wait_until(lambda: len(said) == 2)
    add(journal, 0)
    wait_until(lambda: len(said) == 4)
    assert [message.split(";")[0] for message in said] == [str(away()), "tracking is back"] * 2
    assert thread.finish(10.0)


def test_a_tracker_that_cannot_be_made_yet_is_made_later(journal: Journal, tmp_path: Path) -> None:
    tracker, attempts, said = Tracker(), iter([away(), None]), Messages()

    def make() -> Any:
        failure = next(attempts)
        if failure is not None:
            raise failure
        return tracker

    thread = TrackingSync(FolderStore(tmp_path), make, said)
    thread.start()
    wait_until(lambda: len(tracker.arrived) == 1)
    assert thread.finish(10.0)
    assert len(said) == 2


def test_what_an_unreachable_server_lacks_is_left_to_sync(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker(*[away()] * 1000)
    thread, said = start(tmp_path, tracker)
    add(journal, 0)
    assert not thread.finish(10.0)
    assert not thread.is_alive()
    assert said == [f"{away()}; the search continues and sends the rest later"]
    assert unsent(FolderStore(tmp_path)) == 4


def test_a_refusal_ends_the_thread_with_one_message(journal: Journal, tmp_path: Path) -> None:
    tracker = Tracker(TrackingUnavailable("MLflow at http://there: 403", permanent=True))
    thread, said = start(tmp_path, tracker)
    thread.join(10.0)
    assert not thread.is_alive()
    assert tracker.calls == 1
    assert said == ["MLflow at http://there: 403; the search continues without tracking"]
    assert not thread.finish(10.0)
    assert unsent(FolderStore(tmp_path)) == 1


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("trial"), FtaeError("tracking.json is damaged")])
def test_nothing_escapes_the_thread(
    journal: Journal, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    thread, said = start(tmp_path, Tracker(error))
    thread.join(10.0)
    assert escaped == []
    assert said == [f"tracking stopped: {type(error).__name__}: {error}; the search continues"]
    assert not thread.finish(10.0)


def test_finishing_tries_once_more(journal: Journal, tmp_path: Path) -> None:
    tracker, finished = Tracker(away()), list[bool]()
    finisher = threading.Thread(target=lambda: finished.append(thread.finish(10.0)))

    def notify(message: str) -> None:
        """End the search while the thread still reports that the server is unreachable."""
        if not finisher.ident:
            journal.append("close", status="complete", reason=None)
            finisher.start()
            wait_until(thread._finishing.is_set)

    thread = TrackingSync(FolderStore(tmp_path), lambda: tracker, notify)
    thread.start()
    wait_until(lambda: len(finished) == 1)
    assert finished == [True]
    assert tracker.arrived == written(tmp_path)


def test_not_even_an_import_escapes_the_thread(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ftae.tracking.mlflow_tracker", None)
    said, store = Messages(), FolderStore(tmp_path)
    thread = TrackingSync(store, lambda: tracker_for(SPEC, store), said)
    thread.start()
    assert not thread.finish(120.0)
    assert not thread.is_alive()
    assert said[0].startswith("tracking stopped: ModuleNotFoundError: ")


def test_finishing_waits_no_longer_than_the_timeout(journal: Journal, tmp_path: Path) -> None:
    release = threading.Event()

    class Slow(Tracker):
        def send(self, events: Sequence[Event]) -> None:
            release.wait(300.0)

    thread, _ = start(tmp_path, Slow())
    assert not thread.finish(0.2)
    assert thread.is_alive(), "it is still sending"
    assert thread.daemon, "or the process could not end"
    release.set()
    thread.join()


# ------------------------------------------------------------------------------------------ the outcome


def test_the_outcome_has_the_best_trial_and_the_baseline(journal: Journal, tmp_path: Path) -> None:
    for trial, psnr, end in ((0, 20.0, "finished"), (1, 21.0, "finished"), (2, 24.0, "finished"), (3, 25.0, "pruned")):
        add(journal, trial, psnr, end)
    tracker = Tracker()
    publish(FolderStore(tmp_path), tracker)
    outcome = tracker.published
    assert [(row["trial"], row["status"]) for row in outcome.leaderboard or ()] == [
        (2, "finished"),
        (1, "finished"),
        (0, "finished"),
        (3, "pruned"),
    ]
    assert "lr: 0.002" in str(outcome.best_config)
    assert outcome.model is not None
    assert (outcome.model.report["trial"], outcome.model.report["step"]) == (2, 12)
    assert outcome.model.params == {"optimizer.lr": 0.002}
    assert outcome.tags == {"ftae.best_trial": "2"}
    assert outcome.metrics["best/val/psnr"] == 24.0
    assert outcome.metrics["baseline/val/psnr"] == 20.0
    assert "best/train/loss" not in outcome.metrics


def test_without_a_full_trial_the_outcome_is_the_leaderboard(journal: Journal, tmp_path: Path) -> None:
    add(journal, 0)
    add(journal, 1, end="pruned")
    tracker = Tracker()
    publish(FolderStore(tmp_path), tracker)
    assert [row["trial"] for row in tracker.published.leaderboard or ()] == [0, 1]
    outcome = tracker.published
    assert (outcome.best_config, outcome.files, outcome.tags) == (None, {}, {})
    assert outcome.metrics == {"search/full_trainings": 1.0, "baseline/val/psnr": 20.0}
    assert str(outcome.description).startswith("**No trial has finished.**")


def test_the_outcome_is_sent_while_the_search_runs(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_sync, "OUTCOME_SECONDS", 0.0)
    tracker = Tracker()
    thread, _ = start(tmp_path, tracker)
    add(journal, 0)
    add(journal, 1, 24.0)
    wait_until(lambda: tracker.published.tags == {"ftae.best_trial": "1"})
    assert tracker.published.files == {}  # checkpoints are large, and the next trial may be better
    assert "\n\nRunning: 1/16 trials (1 finished), 1 full training.\n\n" in str(tracker.published.description)
    thread.finish(60.0)


def test_an_outcome_that_is_refused_for_now_is_sent_later(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_sync, "OUTCOME_SECONDS", 0.0)
    tracker = Tracker()
    tracker.failures_to_publish = [away()]
    thread, messages = start(tmp_path, tracker)
    add(journal, 0)
    wait_until(lambda: tracker.published.description is not None)
    thread.finish(60.0)
    assert len(messages) == 2


@pytest.mark.parametrize("cursor", ["kept", "damaged"])
def test_sync_sends_everything_to_a_server_that_may_be_empty(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cursor: str
) -> None:
    add(journal, 0)
    add(journal, 1, 21.0)
    send_new(FolderStore(tmp_path), Tracker())
    if cursor == "damaged":
        (tmp_path / CURSOR).write_text("half a li")
    add(journal, 2, 22.0)
    wiped = Tracker()
    monkeypatch.setattr(tracking_sync, "tracker_for", lambda *arguments: wiped)
    assert sync(FolderStore(tmp_path)) == 10
    assert wiped.arrived == written(tmp_path)
    assert wiped.published.tags == {"ftae.best_trial": "2"}
    assert unsent(FolderStore(tmp_path)) == 0


def test_sync_repairs_a_store_that_was_deleted(journal: Journal, tmp_path: Path) -> None:
    """On MLflow itself, with an unfinished search that has no winner."""
    storage, folder = tmp_path / "searches", tmp_path / "searches" / "made-up"
    storage.mkdir()
    add(journal, 0)
    add(journal, 1, end="pruned")
    journal.close()
    folder.mkdir()
    journal.path.rename(folder / "journal.jsonl")
    for _ in range(2):
        assert sync(FolderStore(folder)) == 7
        client = MlflowClient(store_uri(None, storage))
        found = client.get_experiment_by_name("made-up")
        assert found is not None
        runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
        assert set(runs) == {"made-up", "baseline: 20 dB", "trial-0001: 20 dB"}
        parent = runs["made-up"]
        assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["leaderboard.json"]
        assert parent.data.metrics["baseline/val/psnr"] == 20.0
        (storage / "mlflow.db").unlink()
