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
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.record import Event, SearchRecord
from ftae.storage import JOURNAL as FILE_NAME


class Journal:
    """The journal of one search, open for appending by one driver at a time.

    ``replicate`` is given each line, and the byte it will begin at, before it is written; what it raises
    keeps it out.

    Raises:
        FtaeError: another driver on this machine has it open.
    """

    def __init__(self, folder: Path, replicate: Callable[[int, bytes], None] | None = None) -> None:
        self.path, self._replicate = folder / FILE_NAME, replicate
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FtaeError(f"{folder} is being run by another ftae process; wait for it or stop it first") from error
        self._end: int | None = None

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
            OSError: they could not be written (no space left, storage gone). Nothing half-written stays.
        """
        lines = [json.dumps(event, allow_nan=False).encode() + b"\n" for event in events]
        if self._end is None:
            self.take_up()
        if self._file.seek(0, os.SEEK_END) != self._end:
            raise FtaeError(f"{self.path.parent} was taken over by another ftae driver; this one ends")
        end = self._end
        for line in lines:
            if self._replicate is not None:
                self._replicate(end, line)
            end += len(line)
        try:
            if self._file.write(b"".join(lines)) != end - self._end:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end = end

    def close(self) -> None:
        self._file.close()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The events from byte ``offset`` on, each with the offset behind it; a half-written line ends it.

    Raises:
        FtaeError: a line in the middle is not JSON.
    """
    path = folder / FILE_NAME
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except ValueError as error:  # not JSON, or not even text
                raise FtaeError(f"{path}: the line before byte {offset} is damaged: {error}") from error


def ends_line(folder: Path, offset: int) -> bool:
    """Whether byte ``offset`` is behind an event, or the first."""
    with (folder / FILE_NAME).open("rb") as file:
        file.seek(max(0, offset - 1))
        return offset == 0 or file.read(1) == b"\n"


def replay(folder: Path) -> SearchRecord:
    """The whole journal, folded.

    Raises:
        FtaeError: there is no journal in ``folder``, or it is damaged.
    """
    if not (folder / FILE_NAME).is_file():
        raise FtaeError(f"{folder} holds no search (no {FILE_NAME})")
    record = fold(folder)
    if not record.search:
        raise FtaeError(f"{folder / FILE_NAME} is empty: the search never began; remove the folder and start again")
    return record


def fold(folder: Path) -> SearchRecord:
    """What the journal in ``folder`` holds, if only nothing yet."""
    record = SearchRecord(search={})
    for event, _ in read(folder):
        record.apply(event)
    return record


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
