"""The durable log of a search: one JSON object a line, only ever appended to.

The journal is the truth. The state of the sampler and of the scheduler, MLflow and every report are projections of the
journal, and can be rebuilt from it. The events, each with ``time`` (seconds since the epoch):

    open      a driver opened the search: format, search (the whole spec), digest, facts (data, weights, versions),
              kind (search | production; left out for a search). facts.warm_start has the trials that the search learns
              from, of each earlier search: search, digest, trials (params, shares of the budget, values), model
    suggest   a trial begins: trial, params, kind (baseline | file | sampled | confirmation). A confirmation also has
              of (the trial that it repeats) and changes (with another seed). Where the search models its curves: model
              (the hyperparameters that the next decisions take), noise (the standard deviation of an end, in units of
              the objective), forecast (mean and sd of the trial's end)
    start     a worker started the trial, or continued it: trial, node, pid, step. A production run may continue with
              other settings: what it reported behind that step, and its end, are void
    adapt     the trial continues with other settings: trial, changes (leaves of finetune, like params), reason
    note      the trial recovered from a fault: trial, text
    report    trial, step, value (the objective, or its first metric), metrics, timing,
              checkpoint, images (paths below the search folder)
    end       trial, status (finished | pruned | diverged | failed), reason, value, step; of a pruned trial also
              forecast, where there is one: mean and sd of its end, the chance to beat the best, and that best
    preflight probe: time and memory that one step of the file's own configuration took on a worker
    close     the driver left: status (complete | interrupted | failed), reason, by (user, if a person stopped it)

A production run (``ftae train``) is a search of one trial, number 1, without a baseline: the untuned model is the
trial's report at step 0. Its spec has an empty ``search_space``.
"""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.specs.reading.format_versions import migrate

FILE_NAME = "journal.jsonl"
Event = dict[str, Any]

logger = logging.getLogger(__name__)


class UnreadableJournal(FtaeError):
    """A journal does not describe a search.

    Attributes:
        state: a short name of the fault, for tables.
        intact_bytes: the length of the readable part, up to the damaged event.
    """

    def __init__(self, message: str, state: str = "damaged", intact_bytes: int = 0) -> None:
        self.state, self.intact_bytes = state, intact_bytes
        super().__init__(message)


class Journal:
    """The journal of one search, open for appending by one driver at a time.

    ``replicate(offset, line)`` is called before a line is written at byte ``offset``, and returns whether it stored the
    line somewhere else. If it raises, the line is not written.

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
        self._ahead = b""  # lines from ``_end`` on that were replicated, but could not be written here yet

    def take_up(self) -> None:
        """Make this driver the only writer, and cut off a line that the driver before it left half-written."""
        self._end = self._file.truncate(_complete_length(self.path))

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event; raises what ``append_all`` raises."""
        record = new_event(event, **fields)
        self.append_all([record])
        return record

    def append_all(self, events: Sequence[Event]) -> None:
        """Write events and wait until they are on disk: all of them, or none.

        Raises:
            FtaeError: a driver on another machine has written to the journal.
            OSError: the events could not be written (no space left, storage gone). The file holds no part of them.
                Lines that were replicated before the error are written here first by the next call.
        """
        lines = [json.dumps(event, allow_nan=False).encode() + b"\n" for event in events]
        if self._end is None:
            self.take_up()
        if self._file.seek(0, os.SEEK_END) != self._end:
            raise FtaeError(f"{self.path.parent} was taken over by another ftae driver; this one ends")
        data = b"".join(lines)
        if not data.startswith(self._ahead):  # this call does not repeat the one that failed
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


def new_event(event: str, **fields: Any) -> Event:
    """An event of now.

    The time is set once, before any retry: an object store may hold the line of an attempt that seemed to fail.
    """
    return {"event": event, "time": time.time(), **fields}


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The events from byte ``offset`` on, in the current format, each with the offset of the next one.

    A half-written line ends the journal.

    Raises:
        UnreadableJournal: a complete line is not an event.
        FtaeError: a newer ftae wrote the journal.
    """
    path = folder / FILE_NAME
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            begin, offset = offset, offset + len(line)
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                    raise ValueError("it is not an event")
            except (ValueError, RecursionError) as error:  # neither JSON nor even text
                message = f"{path}: the line before byte {offset} is damaged: {error}"
                raise UnreadableJournal(message, intact_bytes=begin) from error
            yield migrate(event, "journal", str(path)), offset


def ends_line(folder: Path, offset: int) -> bool:
    """Whether an event ends just before byte ``offset``, or the journal begins there."""
    with (folder / FILE_NAME).open("rb") as file:
        file.seek(max(0, offset - 1))
        return offset == 0 or file.read(1) == b"\n"


def _complete_length(path: Path) -> int:
    """Number of bytes up to the end of the last complete line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
