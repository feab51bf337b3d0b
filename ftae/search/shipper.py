"""From the journal to MLflow: a thread of the driver that never holds up the search.

What was sent is remembered as a byte offset of the journal, saved after each batch. A tracker's
``ship`` is idempotent, so a batch that was sent but not remembered is sent again without harm.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path

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
    """Send everything the journal holds and MLflow does not; returns the number of events sent.

    Raises:
        TrackingUnavailable: the server is away; what was sent until then is remembered.
    """
    sent = 0
    while batch := list(_next_batch(folder)):
        tracker.ship([event for event, _ in batch])
        _save_offset(folder, batch[-1][1])
        sent += len(batch)
    return sent


def unsent(folder: Path) -> int:
    """How many events of the journal have not been sent."""
    return sum(1 for _ in journal.read(folder, _offset(folder)))


class Shipper(threading.Thread):
    """Ships in the background until ``finish``. ``say`` is told, once each, when the server goes and comes."""

    def __init__(self, folder: Path, make_tracker: Callable[[], SearchTracker], say: Callable[[str], None]) -> None:
        super().__init__(name="shipper", daemon=True)
        self._folder, self._make_tracker, self._say = folder, make_tracker, say
        self._finishing = threading.Event()
        self._away = False

    def run(self) -> None:
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
    """Put the outcome of a search onto its parent run: leaderboard, best config and best checkpoint.

    Raises:
        TrackingUnavailable: the server is away.
    """
    from ftae.specs.yamlfile import dump

    record = journal.replay(folder)
    ranked, baseline = record.ranked(), record.baseline
    if not ranked:
        return
    best, spec = ranked[0], SearchSpec.model_validate(record.search)
    metrics = {f"best/{name}": value for name, value in best.metrics.items() if name.startswith("val/")}
    if baseline is not None:
        metrics |= {f"baseline/{name}": value for name, value in baseline.metrics.items()}
    assert best.checkpoint is not None
    tracker.publish(
        leaderboard=record.leaderboard(),
        best_config=dump(spec.trial_spec(best.params)),
        files={"best_checkpoint": folder / best.checkpoint},
        tags={"ftae.best_trial": str(best.number)},
        metrics=metrics,
    )


def _next_batch(folder: Path) -> list[tuple[journal.Event, int]]:
    batch = []
    for item in journal.read(folder, _offset(folder)):
        batch.append(item)
        if len(batch) == BATCH_EVENTS:
            break
    return batch


def _offset(folder: Path) -> int:
    try:
        return int(json.loads((folder / CURSOR).read_text())["offset"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise FtaeError(f"{folder / CURSOR} is damaged: remove it and run ftae sync (nothing is sent twice)") from error


def _save_offset(folder: Path, offset: int) -> None:
    temporary = folder / f".{CURSOR}.tmp"
    temporary.write_text(json.dumps({"offset": offset}))
    temporary.replace(folder / CURSOR)


def sync(folder: Path) -> int:
    """Send everything a search's MLflow runs lack; returns the number of events sent.

    Raises:
        TrackingUnavailable: the server is away still.
    """
    tracker = tracker_of(SearchSpec.model_validate(journal.replay(folder).search), folder)
    sent = ship_new(folder, tracker)
    publish(folder, tracker)
    return sent
