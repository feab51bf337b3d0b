"""From the journal to MLflow: a thread of the driver that never holds up the search.

What was sent is remembered as a byte offset of the journal, saved after each batch together with the
server and experiment it was sent to. A tracker's ``ship`` is idempotent, so what is sent again does no harm.
"""

import json
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import run_of, search_of
from ftae.specs.finetune.metrics import is_held_out
from ftae.specs.search.search import SearchSpec
from ftae.storage import journal
from ftae.storage.store import Store

if TYPE_CHECKING:
    from ftae.tracking import SearchTracker


BATCH_EVENTS = 500

INTERVAL_SECONDS = 2.0

RETRY_SECONDS = 10.0

CURSOR = "tracking.json"

SEARCH_FILE = "search.yaml"


def tracker_of(spec: SearchSpec, store: Store) -> "SearchTracker":
    """The tracker that a search's spec names."""
    from ftae.tracking import SearchTracker

    folder = store.folder
    return SearchTracker(
        spec.tracking.uri, storage=folder.parent, search_folder=folder, search=spec.model_dump(mode="json")
    )


def ship_new(store: Store, tracker: "SearchTracker") -> int:
    """Send what this tracker's destination was not sent yet; returns the number of events sent.

    Raises:
        TrackingUnavailable: the server is away; what was sent until then is remembered.
        OSError: the storage is away.
    """
    cursor = _cursor(store)
    offset: int = cursor.pop("offset")
    return _ship_from(offset if cursor == tracker.destination else 0, store, tracker)


def unsent(store: Store) -> int:
    """How many events of the journal have not been sent."""
    return sum(1 for _ in journal.read(store.folder, _cursor(store)["offset"]))


class TrackingSync(threading.Thread):
    """Ships in the background until ``finish``. ``notify`` is told, once each, when the server goes and comes."""

    def __init__(
        self, store: Store, make_tracker: Callable[[], "SearchTracker"], notify: Callable[[str], None]
    ) -> None:
        super().__init__(name="shipper", daemon=True)
        self._store, self._make_tracker, self._notify = store, make_tracker, notify
        self._finishing = threading.Event()
        self._away = False

    def run(self) -> None:
        """Ship what is new, over and over; once more after ``finish``. Never raises."""
        try:
            self._ship()
        except Exception as error:  # tracking must never end a search
            self._gone(f"tracking stopped: {type(error).__name__}: {error}; the search goes on")

    def _ship(self) -> None:
        tracker: SearchTracker | None = None
        while True:
            # Also before the first round: the driver has enough to import meanwhile.
            last_round = self._finishing.wait(RETRY_SECONDS if self._away else INTERVAL_SECONDS)
            from ftae.tracking import TrackingUnavailable

            try:
                tracker = tracker or self._make_tracker()
                ship_new(self._store, tracker)
                self._back()
            except TrackingUnavailable as error:
                self._gone(f"{error}; the search goes on {'without it' if error.permanent else 'and sends it later'}")
                if error.permanent:
                    return
            except OSError as error:
                self._gone(f"tracking waits for the storage: {error}")
            if last_round:
                return

    def finish(self, timeout_seconds: float) -> bool:
        """Send what is left, waiting at most ``timeout_seconds``; returns whether all was sent."""
        self._finishing.set()
        if self.ident is not None:  # it was started
            self.join(timeout_seconds)
        return not self.is_alive() and unsent(self._store) == 0

    def _gone(self, message: str) -> None:
        if not self._away:
            self._notify(message)
        self._away = True

    def _back(self) -> None:
        if self._away:
            self._notify("tracking is back; everything missed was sent")
        self._away = False


def publish(store: Store, tracker: "SearchTracker") -> None:
    """Put the outcome of a search onto its parent run: the leaderboard, and the best trial if there is one.

    Raises:
        TrackingUnavailable: the server is away.
    """
    from ftae.specs.files import dump

    record = replay(store.folder)
    best_config: str | None = None
    files: dict[str, Path] = {}
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    if record.baseline is not None:
        metrics |= {f"baseline/{name}": value for name, value in record.baseline.metrics.items()}
    if ranked := record.ranked():
        best = ranked[0]
        best_config = dump(run_of(record, best))
        if best.checkpoint is not None:
            # A folder of its own, or a later winner's files would mix with those of an earlier one.
            files[f"best_checkpoint/trial-{best.number:04d}"] = store.fetch(best.checkpoint)
        tags["ftae.best_trial"] = str(best.number)
        if record.objective.constraints:
            tags["ftae.feasible"] = json.dumps(record.is_feasible(best))
        if len(record.objective.goals) > 1:
            tags["ftae.front"] = ", ".join(str(trial.number) for trial in record.pareto_front())
        metrics |= {f"best/{name}": value for name, value in best.metrics.items() if is_held_out(name)}
    tracker.publish(leaderboard=record.leaderboard(), best_config=best_config, files=files, tags=tags, metrics=metrics)


def _ship_from(offset: int, store: Store, tracker: "SearchTracker") -> int:
    """Send the events from a byte offset of the journal on; returns their number."""
    sent = 0
    while batch := list(islice(journal.read(store.folder, offset), BATCH_EVENTS)):
        for event, _ in batch:
            if event["event"] == "open":
                store.release(SEARCH_FILE)  # an earlier open's
                store.fetch(SEARCH_FILE)
            if event.get("images"):
                store.fetch(event["images"])
        tracker.ship([event for event, _ in batch])
        offset = batch[-1][1]
        store.write(CURSOR, json.dumps({"offset": offset, **tracker.destination}).encode())
        sent += len(batch)
    return sent


def _cursor(store: Store) -> dict[str, Any]:
    """The ``offset`` up to which the journal was sent, and the ``uri`` and ``experiment`` it was sent to."""
    try:
        cursor: dict[str, Any] = json.loads(store.read(CURSOR) or '{"offset": 0}')
        offset = int(cursor["offset"])
        # What was sent of a journal that has lost its end since says nothing of the lines written there instead.
        return cursor | {"offset": offset if journal.ends_line(store.folder, offset) else 0}
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(f"{store}/{CURSOR} is damaged: run ftae sync, which sends everything and mends it") from error


def sync(store: Store) -> int:
    """Send the whole journal and the outcome, whatever was sent before; returns the number of events.

    So what MLflow lacks is there afterwards, even if the server was wiped or replaced by another.

    Raises:
        TrackingUnavailable: the server is away still.
    """
    tracker = tracker_of(search_of(replay(store.folder)), store)
    sent = _ship_from(0, store, tracker)
    publish(store, tracker)
    return sent
