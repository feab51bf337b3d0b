"""From the journal to a tracker: sends what is new, and never holds up or ends a search.

What was sent is remembered as a byte offset of the journal, saved after each batch together with the destination.
``Tracker.send`` is idempotent, so sending something again does no harm.
"""

import json
import threading
import time
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.results.outcome import outcome_of
from ftae.results.replay import replay
from ftae.results.stored_spec import spec_of
from ftae.storage import journal
from ftae.storage.store import Store
from ftae.tracking import Tracker, TrackingUnavailable, tracker_for

BATCH_EVENTS = 500
INTERVAL_SECONDS = 2.0
RETRY_SECONDS = 10.0
OUTCOME_SECONDS = 30.0  # at least, between two outcomes of a search that runs
OUTCOME_SHARE = 0.05  # of the time, at most, is spent on them
CURSOR = "tracking.json"
SEARCH_FILE = "search.yaml"


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
        has_news: whether something was sent since the last outcome.
        is_stopped: whether further attempts are useless.
    """

    def __init__(
        self, store: Store, make_tracker: Callable[[], Tracker], notify: Callable[[str], None], what: str = "the search"
    ) -> None:
        self._store, self._make_tracker, self._notify, self._what = store, make_tracker, notify, what
        self.failure: Exception | None = None
        self.has_news = False
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
        self._attempt(self._send_new)

    def send_outcome(self) -> None:
        """Send what the search has led to until now. Never raises."""
        self._attempt(lambda: publish(self._store, self.tracker, is_final=False))
        self.has_news = self.failure is not None

    def send_all(self) -> bool:
        """Send what is new, and the outcome; returns whether everything arrived. Never raises."""
        self.send()
        if self.failure is None:
            self._attempt(lambda: publish(self._store, self.tracker))
        return self.failure is None

    def _send_new(self) -> None:
        if send_new(self._store, self.tracker):
            self.has_news = True

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
        """Send what is new, again and again, and now and then the outcome; what is new once more after ``finish``.

        Never raises.
        """
        sender, is_last_round, outcome_is_due = self._sender, False, time.monotonic() + OUTCOME_SECONDS
        while not is_last_round and not sender.is_stopped:
            # Also before the first round: the driver has enough to import meanwhile.
            is_last_round = self._finishing.wait(RETRY_SECONDS if sender.failure else INTERVAL_SECONDS)
            sender.send()
            began = time.monotonic()
            if sender.has_news and not sender.failure and not is_last_round and began >= outcome_is_due:
                sender.send_outcome()
                now = time.monotonic()
                outcome_is_due = now + max(OUTCOME_SECONDS, (now - began) / OUTCOME_SHARE)

    def finish(self, timeout_seconds: float) -> bool:
        """Send what is left, waiting at most ``timeout_seconds``; returns whether everything was sent."""
        self._finishing.set()
        if self.ident is not None:  # it was started
            self.join(timeout_seconds)
        return not self.is_alive() and unsent(self._store) == 0


def publish(store: Store, tracker: Tracker, *, is_final: bool = True) -> None:
    """Publish the outcome: of a search the leaderboard and the best trial, of a production run the model.

    ``is_final`` false: the search still runs, and the checkpoint of its best trial waits for the end.

    Raises:
        TrackingUnavailable: the tracker is unreachable, or refuses.
    """
    record = replay(store.folder)
    tracker.publish(outcome_of(record, store, is_final=is_final))


def sync(store: Store) -> int:
    """Send the whole journal and the outcome, whatever was sent before; returns the number of events.

    Afterwards the tracker has everything, even if it was wiped or replaced by another one.

    Raises:
        TrackingUnavailable: the tracker is still unreachable, or refuses.
    """
    tracker = tracker_of(store)
    sent = _send_from(0, store, tracker)
    publish(store, tracker)
    return sent


def page_address(store: Store, trial: int | None = None, embedded: str = "") -> str:
    """The address of the page of a search, or of one of its trials, in its tracker.

    ``embedded``: where the embedded store is served, for a search that is not tracked on a server.

    Raises:
        FtaeError: as ``tracker_of``; or the tracker does not have it.
    """
    tracker = tracker_of(store)
    uri = tracker.destination["uri"]
    return f"{(uri if uri.startswith(('http:', 'https:')) else embedded).rstrip('/')}/{tracker.page(trial)}"


def tracker_of(store: Store) -> Tracker:
    """The tracker of the search or the production run in ``store``, as its journal names it.

    Raises:
        FtaeError: the journal cannot be read, or another version of ftae wrote the spec, with other fields.
    """
    record = replay(store.folder)
    # The embedded store of a production run lies beside the searches, not beside the run.
    folder = record.search["search"].get("storage") if record.kind == "production" else None
    return tracker_for(spec_of(record), store, Path(folder) if isinstance(folder, str) else None)


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
