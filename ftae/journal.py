"""The durable log of a search: one JSON object a line, only ever appended to.

The journal is the truth. The sampler's study, the rungs, MLflow and every report are projections of
it and can be rebuilt from it. The events, each with ``time`` (seconds since the epoch):

    open      a driver took up the search: search (the whole spec), digest, facts (data, weights, versions)
    suggest   trial, params, kind (baseline | file | sampled)
    start     trial, node, pid, step: a worker took it up, at that step
    adapt     trial, changes (leaves of finetune, as params are), reason: it goes on with these settings
    note      trial, text: what befell it and was mended
    report    trial, step, value (the objective, or its first metric), metrics, timing,
              checkpoint, images (paths below the search folder)
    end       trial, status (finished | pruned | diverged | failed), reason, value, step
    preflight probe: what one step of the file's own configuration took on a worker
    close     the driver left: status (complete | interrupted | failed), reason
"""

import errno
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.record import Event, Kind, SearchRecord, Status
from ftae.specs.objective import read_objective
from ftae.storage import JOURNAL as FILE_NAME

logger = logging.getLogger(__name__)

LAST_TIME = 2.5e11  # of the calendar, in the year 9892
# What readers rely on; an event may hold more.
_FIELDS: dict[str, dict[str, Any]] = {
    "open": {"search": dict, "digest": str},
    "suggest": {"trial": int, "params": dict, "kind": str},
    "start": {"trial": int},
    "adapt": {"trial": int, "changes": dict},
    "note": {"trial": int, "text": str},
    "report": {
        "trial": int,
        "step": int,
        "value": float | int,
        "metrics": dict,
        "timing": dict,
        "checkpoint": str | None,
        "images": str | None,
    },
    "end": {"trial": int, "status": str, "reason": str | None},
    "preflight": {"probe": dict},
    "close": {"status": str, "reason": str | None},
}


class UnreadableJournal(FtaeError):
    """A journal tells of no search. ``state`` says in a word or two what is wrong with it."""

    def __init__(self, message: str, state: str = "damaged") -> None:
        self.state = state
        super().__init__(message)


class Journal:
    """The journal of one search, open for appending by one driver at a time.

    ``replicate`` is given each line, and the byte it will begin at, before it is written, and says whether it lasts
    elsewhere now; what it raises keeps it out.

    Raises:
        FtaeError: another driver on this machine has it open.
    """

    def __init__(self, folder: Path, replicate: Callable[[int, bytes], bool] | None = None) -> None:
        self.path, self._replicate = folder / FILE_NAME, replicate
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FtaeError(f"{folder} is being run by another ftae process; wait for it or stop it first") from error
        self._end: int | None = None
        self._ahead = b""  # what was replicated from ``_end`` on and could not be written here yet

    def take_up(self) -> None:
        """Only this driver may write from here on; a line that the one before it left half-written is cut off."""
        self._end = self._file.truncate(_complete_length(self.path))

    def append(self, event: str, **fields: Any) -> Event:
        """``append_all`` of one event. Raises as that."""
        record = {"event": event, "time": time.time(), **fields}
        self.append_all([record])
        return record

    def append_all(self, events: Sequence[Event]) -> None:
        """Write events and wait until they are on disk: all of them, or none.

        Raises:
            FtaeError: somebody else, on another machine, has written to it.
            OSError: they could not be written (no space left, storage gone). Nothing half-written stays; what was
                replicated all the same is written before anything else.
        """
        lines = [json.dumps(event, allow_nan=False).encode() + b"\n" for event in events]
        if self._end is None:
            self.take_up()
        if self._file.seek(0, os.SEEK_END) != self._end:
            raise FtaeError(f"{self.path.parent} was taken over by another ftae driver; this one ends")
        data = b"".join(lines)
        if not data.startswith(self._ahead):  # this is no other try of the same
            self._write(self._ahead)
        end = self._end
        for line in lines:
            if self._replicate is not None and self._replicate(end, line):
                self._ahead = data[: end + len(line) - self._end]
            end += len(line)
        self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._end is not None
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end, self._ahead = self._end + len(data), b""

    def close(self) -> None:
        self._file.close()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The events from byte ``offset`` on, each with the offset behind it; a half-written line ends it.

    Raises:
        UnreadableJournal: a line in the middle is no event.
    """
    path = folder / FILE_NAME
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError) as error:  # not JSON, or not even text
                raise UnreadableJournal(f"{path}: the line before byte {offset} is damaged: {error}") from error
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise UnreadableJournal(f"{path}: the line before byte {offset} is damaged: it is no event")
            yield event, offset


def ends_line(folder: Path, offset: int) -> bool:
    """Whether byte ``offset`` is behind an event, or the first."""
    with (folder / FILE_NAME).open("rb") as file:
        file.seek(max(0, offset - 1))
        return offset == 0 or file.read(1) == b"\n"


def replay(folder: Path) -> SearchRecord:
    """The whole journal, folded.

    Raises:
        FtaeError: there is no journal in ``folder``.
        UnreadableJournal: it is damaged, by another version of ftae, or empty.
    """
    if not (folder / FILE_NAME).exists():
        raise FtaeError(f"{folder} holds no search (no {FILE_NAME})")
    record = fold(folder)
    if not record.search:
        raise UnreadableJournal(
            f"{folder / FILE_NAME} is empty: the search never began; remove the folder and start again", "never began"
        )
    return record


def fold(folder: Path) -> SearchRecord:
    """What the journal in ``folder`` holds, if only nothing yet. Events of kinds that this version lacks are logged.

    Raises:
        UnreadableJournal: it is damaged, or by another version of ftae.
    """
    record, unknown = SearchRecord(search={}), dict[str, int]()
    for event, offset in read(folder):
        if event["event"] not in _FIELDS:
            unknown[event["event"]] = unknown.get(event["event"], 0) + 1
            continue
        if wrong := _wrong(event, record):
            place = f"{folder / FILE_NAME}: the event before byte {offset}"
            raise UnreadableJournal(f"{place} is damaged, or by another version of ftae: {wrong}")
        record.apply(event)
    if unknown:
        told = ", ".join(f"{count} of {kind!r}" for kind, count in unknown.items())
        logger.warning("%s: events of a kind that this version of ftae lacks are left out: %s", folder, told)
    return record


def _wrong(event: Event, record: SearchRecord) -> str | None:
    """Why an event cannot be folded into ``record``; None if it can."""
    kind, at = event["event"], event.get("time", -1)
    if not _is(at, float | int) or not 0 <= at < LAST_TIME:
        return f"{kind!r} has no time"
    for name, wanted in _FIELDS[kind].items():
        if name not in event or not _is(event[name], wanted):
            return f"{kind!r} has no {name}" if name not in event else f"{kind!r} has a {name} of another type"
    if kind == "open":
        has_facts = isinstance(event.get("facts", {}), dict)
        return _wrong_search(event["search"]) if has_facts else "'open' has facts of another type"
    if not record.search:
        return f"{kind!r} comes before any 'open'"
    return _wrong_trial(event, record) if "trial" in event else None


def _wrong_search(search: Mapping[str, Any]) -> str | None:
    if not isinstance(search.get("name"), str) or not isinstance(search.get("search_space"), dict):
        return "'open' holds no search"
    settings = search.get("search")
    if not isinstance(settings, dict) or not _is(settings.get("num_trials"), int):
        return "'open' holds no search.num_trials"
    try:
        read_objective(search.get("objective") or {})
    except ValidationError:
        return "'open' holds no objective of this version"
    return None


def _wrong_trial(event: Event, record: SearchRecord) -> str | None:
    kind, number = event["event"], event["trial"]
    if kind == "suggest":
        has_kind = event["kind"] in get_args(Kind)
        return None if has_kind and number not in record.trials else f"it suggests trial {number} in an unknown way"
    if number not in (record.running if kind == "end" else record.trials):
        return f"{kind!r} is of trial {number}, which is not {'running' if kind == 'end' else 'known'}"
    trial, metrics = record.trials[number], record.objective.shown_metrics
    if kind == "report" and not all(_is(event["metrics"].get(name), float | int) for name in metrics):
        return f"a report without {', '.join(metrics)}"
    if kind == "report" and event["checkpoint"] and not event["images"]:
        return "a report with a checkpoint and no images"
    if kind == "end" and event["status"] not in get_args(Status):
        return f"trial {number} ends as {event['status']!r}"
    if kind == "end" and event["status"] == "finished" and not trial.reports:
        return f"trial {number} is finished, but never reported"
    return None


def _is(value: Any, wanted: Any) -> bool:
    """Whether it is of a type, where true is no number, and a number is finite."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, wanted)


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
