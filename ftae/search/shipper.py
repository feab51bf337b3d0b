"""From the journal to MLflow: a thread of the driver that never holds up the search.

What was sent is remembered as a byte offset of the journal, saved after each batch together with the
server and experiment it was sent to. A tracker's ``ship`` is idempotent, so what is sent again does no harm.
"""

import json
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from ftae import journal
from ftae.errors import FtaeError
from ftae.specs.search import SearchSpec
from ftae.tracking import SearchTracker, TrackingUnavailable

BATCH_EVENTS = 500
INTERVAL_SECONDS = 2.0
RETRY_SECONDS = 10.0
CURSOR = "tracking.json"


def tracker_of(spec: SearchSpec, folder: Path) -> SearchTracker:
    """The tracker that a search's spec names."""
    return SearchTracker(
        spec.tracking.uri, storage=folder.parent, search_folder=folder, search=spec.model_dump(mode="json")
    )


def ship_new(folder: Path, tracker: SearchTracker) -> int:
    """Send what this tracker's destination was not sent yet; returns the number of events sent.

    Raises:
        TrackingUnavailable: the server is away; what was sent until then is remembered.
    """
    cursor = _cursor(folder)
    offset: int = cursor.pop("offset")
    return _ship_from(offset if cursor == tracker.destination else 0, folder, tracker)


def unsent(folder: Path) -> int:
    """How many events of the journal have not been sent."""
    return sum(1 for _ in journal.read(folder, _cursor(folder)["offset"]))


class Shipper(threading.Thread):
    """Ships in the background until ``finish``. ``say`` is told, once each, when the server goes and comes."""

    def __init__(self, folder: Path, make_tracker: Callable[[], SearchTracker], say: Callable[[str], None]) -> None:
        super().__init__(name="shipper", daemon=True)
        self._folder, self._make_tracker, self._say = folder, make_tracker, say
        self._finishing = threading.Event()
        self._away = False

    def run(self) -> None:
        """Ship what is new, over and over; once more after ``finish``. Never raises."""
        tracker: SearchTracker | None = None
        last_round = False
        while True:
            try:
                tracker = tracker or self._make_tracker()
                ship_new(self._folder, tracker)
                self._back()
            except TrackingUnavailable as error:
                self._gone(f"{error}; the search goes on {'without it' if error.permanent else 'and sends it later'}")
                if error.permanent:
                    return
            except Exception as error:  # tracking must never end a search
                self._gone(f"tracking stopped: {type(error).__name__}: {error}; the search goes on")
                return
            if last_round:
                return
            last_round = self._finishing.wait(RETRY_SECONDS if self._away else INTERVAL_SECONDS)

    def finish(self, timeout_seconds: float) -> bool:
        """Send what is left, waiting at most ``timeout_seconds``; returns whether all was sent."""
        self._finishing.set()
        self.join(timeout_seconds)
        return not self.is_alive() and unsent(self._folder) == 0

    def _gone(self, message: str) -> None:
        if not self._away:
            self._say(message)
        self._away = True

    def _back(self) -> None:
        if self._away:
            self._say("tracking is back; everything missed was sent")
        self._away = False


def publish(folder: Path, tracker: SearchTracker) -> None:
    """Put the outcome of a search onto its parent run: the leaderboard, and the best trial if there is one.

    Raises:
        TrackingUnavailable: the server is away.
    """
    from ftae.specs.yamlfile import dump

    record = journal.replay(folder)
    best_config: str | None = None
    files: dict[str, Path] = {}
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    if record.baseline is not None:
        metrics |= {f"baseline/{name}": value for name, value in record.baseline.metrics.items()}
    if ranked := record.ranked():
        best = ranked[0]
        assert best.checkpoint is not None
        best_config = dump(SearchSpec.model_validate(record.search).trial_spec(best.params))
        # A folder of its own, or a later winner's files would mix with those of an earlier one.
        files[f"best_checkpoint/trial-{best.number:04d}"] = folder / best.checkpoint
        tags["ftae.best_trial"] = str(best.number)
        metrics |= {f"best/{name}": value for name, value in best.metrics.items() if name.startswith("val/")}
    tracker.publish(leaderboard=record.leaderboard(), best_config=best_config, files=files, tags=tags, metrics=metrics)


def _ship_from(offset: int, folder: Path, tracker: SearchTracker) -> int:
    """Send the events from a byte offset of the journal on; returns their number."""
    sent = 0
    while batch := list(islice(journal.read(folder, offset), BATCH_EVENTS)):
        tracker.ship([event for event, _ in batch])
        offset = batch[-1][1]
        _save_cursor(folder, {"offset": offset, **tracker.destination})
        sent += len(batch)
    return sent


def _cursor(folder: Path) -> dict[str, Any]:
    """The ``offset`` up to which the journal was sent, and the ``uri`` and ``experiment`` it was sent to."""
    try:
        cursor: dict[str, Any] = json.loads((folder / CURSOR).read_text())
        return cursor | {"offset": int(cursor["offset"])}
    except FileNotFoundError:
        return {"offset": 0}
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(f"{folder / CURSOR} is damaged: run ftae sync, which sends everything and mends it") from error


def _save_cursor(folder: Path, cursor: dict[str, Any]) -> None:
    temporary = folder / f".{CURSOR}.tmp"
    temporary.write_text(json.dumps(cursor))
    temporary.replace(folder / CURSOR)


def sync(folder: Path) -> int:
    """Send the whole journal and the outcome, whatever was sent before; returns the number of events.

    So what MLflow lacks is there afterwards, even if the server was wiped or replaced by another.

    Raises:
        TrackingUnavailable: the server is away still.
    """
    tracker = tracker_of(SearchSpec.model_validate(journal.replay(folder).search), folder)
    sent = _ship_from(0, folder, tracker)
    publish(folder, tracker)
    return sent
