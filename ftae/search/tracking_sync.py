"""From the journal to a tracker: sends what is new, and never holds up or ends a search.

What was sent is remembered as a byte offset of the journal, saved after each batch together with the destination.
``Tracker.send`` is idempotent, so sending something again does no harm.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ftae.engine.training.loop import process_state_kept
from ftae.errors import FtaeError, one_message
from ftae.results.export import MODEL, PRODUCTION, export
from ftae.results.replay import replay
from ftae.results.search_record import PRODUCTION_TRIAL, SearchRecord, TrialRecord
from ftae.results.stored_spec import run_of, spec_of
from ftae.results.summary import choose, leaderboard
from ftae.specs.files import dump
from ftae.specs.finetune.metrics import is_held_out
from ftae.storage import journal
from ftae.storage.store import Store
from ftae.tracking import Outcome, OutcomeModel, Tracker, TrackingUnavailable, tracker_for
from ftae.tracking.mlflow_model_folder import make_mlflow_model

BATCH_EVENTS = 500
INTERVAL_SECONDS = 2.0
RETRY_SECONDS = 10.0
CURSOR = "tracking.json"
SEARCH_FILE = "search.yaml"
REPORT = "report.html"


def send_new(store: Store, tracker: Tracker) -> int:
    """Send what this tracker's destination does not have yet; returns the number of events sent.

    Raises:
        TrackingUnavailable: the tracker is unreachable, or refuses; what was sent until then is remembered.
        OSError: the storage cannot be read or written.
    """
    cursor = _cursor(store)
    offset: int = cursor.pop("offset")
    return _send_from(offset if cursor == tracker.destination else 0, store, tracker)


def unsent(store: Store) -> int:
    """Count the events of the journal that have not been sent."""
    return sum(1 for _ in journal.read(store.folder, _cursor(store)["offset"]))


class Sender:
    """Sends what is new whenever it is asked to.

    Calls ``notify`` once when the tracker becomes unreachable, and once when it is back. ``what``, the search or the
    run, continues meanwhile, as the messages say.

    Attributes:
        failure: why the last attempt failed; None if it did not.
        is_stopped: whether further attempts are useless.
    """

    def __init__(
        self, store: Store, make_tracker: Callable[[], Tracker], notify: Callable[[str], None], what: str = "the search"
    ) -> None:
        self._store, self._make_tracker, self._notify, self._what = store, make_tracker, notify, what
        self.failure: Exception | None = None
        self.is_stopped = False

    @cached_property
    def tracker(self) -> Tracker:
        """The tracker, made at the first use and after a failure to make it."""
        return self._make_tracker()

    def check(self) -> None:
        """Ask whether the tracker takes this search.

        Raises:
            TrackingUnavailable: the tracker refuses; that it is unreachable is only reported.
        """
        try:
            self.tracker.check()
        except TrackingUnavailable as error:
            if error.permanent:
                raise
            self._unavailable(error)

    def send(self) -> None:
        """Send what is new. Never raises."""
        self._attempt(lambda: send_new(self._store, self.tracker))

    def send_all(self) -> bool:
        """Send what is new, and the outcome; returns whether everything arrived. Never raises."""
        self.send()
        if self.failure is None:
            self._attempt(lambda: publish(self._store, self.tracker))
        return self.failure is None

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except TrackingUnavailable as error:
            self._unavailable(error)
        except OSError as error:
            self._failed(error, f"tracking waits for the storage: {error}")
        except Exception as error:  # tracking must never end a search
            message = f"tracking stopped: {type(error).__name__}: {error}; {self._what} continues"
            self._failed(error, message, is_final=True)
        else:
            if self.failure is not None:
                self._notify("tracking is back; everything missed was sent")
            self.failure = None

    def _unavailable(self, error: TrackingUnavailable) -> None:
        later = "without tracking" if error.permanent else "and sends the rest later"
        self._failed(error, f"{error}; {self._what} continues {later}", is_final=error.permanent)

    def _failed(self, error: Exception, message: str, *, is_final: bool = False) -> None:
        if self.failure is None:
            self._notify(message)
        self.failure, self.is_stopped = error, is_final


class TrackingSync(threading.Thread):
    """Sends in the background until ``finish``, with the messages of ``Sender``."""

    def __init__(self, store: Store, make_tracker: Callable[[], Tracker], notify: Callable[[str], None]) -> None:
        super().__init__(name="tracking", daemon=True)
        self._store, self._sender = store, Sender(store, make_tracker, notify)
        self._finishing = threading.Event()

    def run(self) -> None:
        """Send what is new, again and again; once more after ``finish``. Never raises."""
        is_last_round = False
        while not is_last_round and not self._sender.is_stopped:
            # Also before the first round: the driver has enough to import meanwhile.
            is_last_round = self._finishing.wait(RETRY_SECONDS if self._sender.failure else INTERVAL_SECONDS)
            self._sender.send()

    def finish(self, timeout_seconds: float) -> bool:
        """Send what is left, waiting at most ``timeout_seconds``; returns whether everything was sent."""
        self._finishing.set()
        if self.ident is not None:  # it was started
            self.join(timeout_seconds)
        return not self.is_alive() and unsent(self._store) == 0


def publish(store: Store, tracker: Tracker) -> None:
    """Publish the outcome: of a search the leaderboard and the best trial, of a production run the model.

    Raises:
        TrackingUnavailable: the tracker is unreachable, or refuses.
    """
    record = replay(store.folder)
    tracker.publish(_outcome(record, store) if record.kind == "search" else _model(record, store))


def _outcome(record: SearchRecord, store: Store) -> Outcome:
    metrics = {"search/full_trainings": record.used_budget}
    if record.baseline is not None:
        metrics |= {f"baseline/{name}": value for name, value in record.baseline.metrics.items()}
    rows, files = leaderboard(record), _report(store)
    if not record.ranked():
        return Outcome(rows, files=files, metrics=metrics)
    best = choose(record)
    tags = {"ftae.best_trial": str(best.number)}
    if record.objective.constraints:
        tags["ftae.feasible"] = json.dumps(record.is_feasible(best))
    if len(record.objective.goals) > 1:
        tags["ftae.front"] = ", ".join(str(trial.number) for trial in record.pareto_front())
    metrics |= {f"best/{name}": value for name, value in best.metrics.items() if is_held_out(name)}
    model = None if best.checkpoint is None else OutcomeModel(best.reports[-1], best.settings, _exported(store, best))
    return Outcome(rows, dump(run_of(record, best)), files, tags, metrics, model)


def _exported(store: Store, trial: TrialRecord) -> Callable[[Path], None]:
    """Writes what ``ftae export`` writes of a trial."""

    def write(folder: Path) -> None:
        # Whatever goes wrong, the rest of the outcome has arrived, and a search does not end with a traceback.
        with one_message("the best trial cannot be exported"), process_state_kept():
            export(store, folder, trial.number)

    return write


def _report(store: Store) -> dict[str, Path]:
    """The newest report, if there is one: by the folder that it is uploaded to, which is the top."""
    store.release(REPORT)  # the mirror's may be an earlier one
    file = store.fetch(REPORT)
    return {"": file} if file.is_file() else {}


def _model(record: SearchRecord, store: Store) -> Outcome:
    """The model of a production run; nothing before the run has written it."""
    source, trial = store.folder / MODEL, record.trials.get(PRODUCTION_TRIAL)
    if not source.is_dir() or trial is None or not trial.reports:
        return Outcome()

    def write(folder: Path) -> None:
        folder.mkdir()
        shutil.copyfile(store.folder / PRODUCTION, folder / PRODUCTION)
        shutil.copytree(source.absolute(), folder / MODEL, copy_function=os.symlink)  # weights are large
        make_mlflow_model(folder, spec_of(record).finetune)

    return Outcome(model=OutcomeModel(trial.reports[-1], {}, write))


def sync(store: Store) -> int:
    """Send the whole journal and the outcome, whatever was sent before; returns the number of events.

    Afterwards the tracker has everything, even if it was wiped or replaced by another one.

    Raises:
        TrackingUnavailable: the tracker is still unreachable, or refuses.
    """
    record = replay(store.folder)
    tracker = tracker_for(spec_of(record), store, _storage(record))
    sent = _send_from(0, store, tracker)
    publish(store, tracker)
    return sent


def _storage(record: SearchRecord) -> Path | None:
    """The folder that the embedded tracking store is in; None for that of the search itself."""
    folder = record.search["search"].get("storage")
    return Path(folder) if record.kind == "production" and isinstance(folder, str) else None


def _send_from(offset: int, store: Store, tracker: Tracker) -> int:
    """Send the events from a byte offset of the journal on; returns their number."""
    sent = 0
    while batch := list(islice(journal.read(store.folder, offset), BATCH_EVENTS)):
        for event, _ in batch:
            if event["event"] == "open":
                store.release(SEARCH_FILE)  # the mirror's may be of an earlier driver
                store.fetch(SEARCH_FILE)
            if event.get("images"):
                store.fetch(event["images"])
        tracker.send([event for event, _ in batch])
        offset = batch[-1][1]
        store.write(CURSOR, json.dumps({"offset": offset, **tracker.destination}).encode())
        sent += len(batch)
    return sent


def _cursor(store: Store) -> dict[str, Any]:
    """The ``offset`` up to which the journal was sent, and the destination that it was sent to."""
    try:
        cursor: dict[str, Any] = json.loads(store.read(CURSOR) or '{"offset": 0}')
        offset = int(cursor["offset"])
        # A journal that has lost its end since may have other lines in place of the sent ones.
        return cursor | {"offset": offset if journal.ends_line(store.folder, offset) else 0}
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(f"{store}/{CURSOR} is damaged: run ftae sync, which sends everything and repairs it") from error
