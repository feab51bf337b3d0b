"""Decoded images of a set in a file of limited size, which processes share; the least recently used make room.

    state         a byte for each image: not there, decoded, or unreadable
    places        int64 (N,), the row of each decoded image
    rows          some of the images, as they lie in memory; it takes room on the disk as it is filled
    owners        int64 (rows,), the image of each row, counted from 1; 0 for none
    used          int64 (rows,), when each row was last used, in nanoseconds
    unreadable    a line for each unreadable image: its name and the reason

A row is on the disk before its image is said to be there: a process that is killed while it writes, or a machine that
crashes, leaves images to be decoded again. What a row holds does not depend on who decodes it.
"""

import errno
import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import Array
from ftae.engine.data.stores.entries import make_room
from ftae.errors import FtaeError

STATE, PLACES, ROWS, OWNERS, USED, UNREADABLE = "state", "places", "rows", "owners", "used", "unreadable"
MISSING, DECODED, BAD = 0, 1, 2
Numbers = npt.NDArray[np.int64]
FULL = (errno.ENOSPC, errno.EDQUOT)
BATCHES = 64  # for which rows to be taken are looked for at a time

logger = logging.getLogger(__name__)


def write_empty(folder: Path, number: int, row_bytes: int, num_rows: int) -> None:
    """Files for ``number`` images, ``num_rows`` of which are kept, none yet.

    Raises:
        OSError: there is not even room for what is noted of each image and row.
    """
    sizes = {STATE: number, PLACES: 8 * number, OWNERS: 8 * num_rows, USED: 8 * num_rows}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            if size:  # memory that is mapped must be on the disk: what it lacks later kills the process
                os.posix_fallocate(file.fileno(), 0, size)
    with (folder / ROWS).open("wb") as file:
        file.truncate(num_rows * row_bytes)
    (folder / UNREADABLE).touch()


class Rows:
    """The files of ``write_empty`` in ``folder``; ``shape`` and ``dtype`` are those of an image.

    Raises:
        OSError, ValueError: they cannot be used.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self._folder, self._row_bytes = folder, math.prod(shape) * dtype.itemsize
        number, num_rows = (folder / STATE).stat().st_size, (folder / OWNERS).stat().st_size // 8
        sizes = {ROWS: num_rows * self._row_bytes, USED: 8 * num_rows, PLACES: 8 * number}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            raise ValueError(f"{folder} does not have the size that it was made with")
        self.state = np.memmap(folder / STATE, dtype=np.uint8, mode="r+")
        self._places = np.memmap(folder / PLACES, dtype=np.int64, mode="r+")
        self._owners, self._used = (_mapped(folder / name, np.dtype(np.int64), (num_rows,)) for name in (OWNERS, USED))
        self._rows = _mapped(folder / ROWS, dtype, (num_rows, *shape))
        self._next: list[tuple[int, int]] = []  # rows to be taken, and when they were used last, the latest first

    def read(self, images: Numbers, into: Array) -> npt.NDArray[np.uint8]:
        """Copy those that are decoded to their places ``into`` an array of all; returns the states of all."""
        with self._locked(fcntl.LOCK_SH):
            state = np.array(self.state[images])
            is_there = state == DECODED
            rows = self._places[images[is_there]]
            into[is_there], self._used[rows] = self._rows[rows], time.time_ns()
        return state

    def add(self, images: Numbers, pixels: Array, unreadable: dict[int, str]) -> None:
        """Keep decoded images, as many as fit; and note which cannot be read, and why.

        Where the disk is full, they take the place of others, or else they are not kept.

        Raises:
            FtaeError: the files cannot be written for another reason.
        """
        with self._locked(fcntl.LOCK_EX):
            is_new = self.state[images] == MISSING  # another process may have kept them meanwhile
            self._keep(images[is_new], pixels[is_new])
            with (self._folder / UNREADABLE).open("a") as log:
                log.writelines(f"{line}\n" for line in unreadable.values())
            self.state[list(unreadable)] = BAD

    def unreadable(self) -> list[str]:
        """A line for each image that was found to be unreadable."""
        return sorted(set((self._folder / UNREADABLE).read_text().splitlines()))

    def _keep(self, images: Numbers, pixels: Array) -> None:
        wanted, cache = min(len(images), len(self._owners)), self._folder.parents[1]
        if wanted == 0:
            return
        kept = self._replace(self._least_used(wanted), images, pixels)
        if kept < wanted and make_room(cache, 2 * pixels.nbytes):
            kept += self._replace(self._least_used(wanted - kept), images[kept:], pixels[kept:])
        if kept < wanted:
            rows = self._least_used_of_those_written(wanted - kept)
            kept += self._replace(rows, images[kept:], pixels[kept:])
        if not kept:
            _warn_of_full_disk(cache)

    def _least_used(self, number: int) -> Numbers:
        """The rows that were not used for longest, free ones first."""
        chosen: set[int] = set()
        while len(chosen) < number:
            if not self._next:
                many = min(len(self._used), BATCHES * number)
                found = np.argpartition(self._used, many - 1)[:many]
                found = found[np.argsort(-self._used[found], kind="stable")]
                self._next = list(zip(found.tolist(), self._used[found].tolist(), strict=True))
            row, used = self._next.pop()
            if self._used[row] == used and row not in chosen:  # nobody has used or taken it since
                chosen.add(row)
        return np.array(sorted(chosen), dtype=np.int64)

    def _least_used_of_those_written(self, number: int) -> Numbers:
        written = np.flatnonzero(self._owners)
        return written[np.argsort(self._used[written], kind="stable")[:number]]

    def _replace(self, rows: Numbers, images: Numbers, pixels: Array) -> int:
        """Write an image to each row, whose own one is no longer there; returns how many, until the disk was full."""
        owners = self._owners[rows]
        if owners.any():
            self.state[owners[owners > 0] - 1] = MISSING
            self._owners[rows] = 0
            self.state.flush()
        number = self._write(rows, pixels)
        rows, images = rows[:number], images[:number]
        self._places[images], self._owners[rows], self._used[rows] = rows, images + 1, time.time_ns()
        for noted in (self._places, self._owners):
            if isinstance(noted, np.memmap):
                noted.flush()
        self.state[images] = DECODED
        return number

    def _write(self, rows: Numbers, pixels: Array) -> int:
        number = 0
        try:
            with (self._folder / ROWS).open("r+b", buffering=0) as file:
                for row, image in zip(rows.tolist(), pixels, strict=False):
                    data = np.ascontiguousarray(image).data.cast("B")
                    if not _write_all(file.fileno(), data, row * self._row_bytes):
                        break
                    number += 1
                os.fdatasync(file.fileno())
        except OSError as error:
            cache = self._folder.parents[1]
            raise FtaeError(
                f"cannot write decoded images to the image cache {cache}: {error.strerror or error}"
            ) from error
        return number

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Nobody writes while others read: whoever sees an image marked as decoded also sees its row."""
        with (self._folder / STATE).open("r+b") as file:
            fcntl.flock(file, kind)
            yield


@lru_cache(maxsize=16)  # once
def _warn_of_full_disk(cache: Path) -> None:
    logger.warning(
        "the disk of the image cache %s is full: images are decoded again whenever they are needed and not kept. Free "
        "some space there (ftae cache --clean), or set FTAE_CACHE to a folder that has more",
        cache,
    )


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """An array in a file, which may be empty, unlike with numpy."""
    return np.memmap(file, dtype=dtype, mode="r+", shape=shape) if shape[0] else np.empty(shape, dtype=dtype)


def _write_all(file: int, data: memoryview, offset: int) -> bool:
    """Write all of ``data``; False where the disk is full."""
    try:
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    return True
