"""Images that are decoded when they are first needed, by whichever process needs them: a sparse array on the disk.

    images_on_demand/<key>/about.json     shape and type of the images, class names, the values of black and white
    images_on_demand/<key>/rows           the images, as they lie in memory; nothing where none has been written
    images_on_demand/<key>/state          a byte for each image: not decoded, decoded, or unreadable
    images_on_demand/<key>/unreadable     a line for each unreadable image: its name and the reason
    images_on_demand/<key>/labels.npy     and factors.npy: as for images that are decoded at once

A row is on the disk before its state says so: a process that is killed while it decodes leaves a row to be decoded
again. What a row holds does not depend on who decodes it.
"""

import errno
import fcntl
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import Array, UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.stores.entries import make_room
from ftae.errors import FtaeError

ROWS, STATE, UNREADABLE = "rows", "state", "unreadable"
MISSING, DECODED, BAD = 0, 1, 2
Rows = npt.NDArray[np.int64]
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = 2**30  # bytes made free at a time


class Decodable(Protocol):
    """What ``ListedImages`` is, as far as it matters here."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def decode(self) -> Callable[[int], Array]: ...
    @property
    def reading_order(self) -> Rows | None: ...
    @property
    def reads_at_once(self) -> int | None: ...


def write_empty(folder: Path, number: int, row_bytes: int) -> None:
    """Files of a store in which no image is decoded yet; they take no room."""
    for name, size in ((ROWS, number * row_bytes), (STATE, number), (UNREADABLE, 0)):
        with (folder / name).open("wb") as file:
            file.truncate(size)


class ImagesOnDemand:
    """Images (N, H, W, channels) of which each is decoded when it is first taken. A slice is a part of them.

    ``list_images`` is called when an image must be decoded, not before.

    Raises:
        OSError, ValueError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], list_images: Callable[[], Decodable]
    ) -> None:
        self.dtype, self._folder, self._listed = dtype, folder, cache(list_images)
        self._first, number = 0, (folder / STATE).stat().st_size
        self.shape = (number, *shape)
        self._row_bytes = math.prod(shape) * dtype.itemsize
        if (folder / ROWS).stat().st_size != number * self._row_bytes:
            raise ValueError(f"{folder} does not have the size that it was made with")
        self._state = np.memmap(folder / STATE, dtype=np.uint8, mode="r+")
        self._rows = np.memmap(folder / ROWS, dtype=dtype, mode="r", shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> "ImagesOnDemand":
        first, stop, step = part.indices(len(self))
        assert step == 1
        chosen = ImagesOnDemand.__new__(ImagesOnDemand)
        vars(chosen).update(vars(self), _first=self._first + first, shape=(max(stop - first, 0), *self.shape[1:]))
        return chosen

    def take(self, rows: Rows) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Some images, and which of them are readable; the others are black.

        Raises:
            FtaeError: files cannot be read, or the disk is full.
        """
        rows = rows + self._first
        missing = np.unique(rows[self._states(rows) == MISSING])
        if len(missing):
            self._decode(missing)
        return np.array(self._rows[rows]), self._states(rows) == DECODED

    @property
    def held(self) -> object:
        """Lives as long as any part of these images."""
        return self._state

    def num_decoded(self) -> int:
        """How many images are decoded, of all in the folder."""
        return int((self._state == DECODED).sum())

    def unreadable(self) -> list[str]:
        """The images that were found to be unreadable, each as "name: reason"."""
        lines = (self._folder / UNREADABLE).read_text().splitlines()
        return sorted(set(lines))

    def _decode(self, rows: Rows) -> None:
        listed, bad = self._listed(), {}
        assert len(listed.names) == len(self._state)

        def decode(row: int) -> tuple[int, Array | UnreadableImage]:
            try:
                return row, listed.decode(row)
            except UnreadableImage as unreadable:
                return row, unreadable

        with quiet_pillow(), (self._folder / ROWS).open("r+b", buffering=0) as file:
            for row, decoded in in_order(decode, self._in_reading_order(rows), threads=listed.reads_at_once):
                if isinstance(decoded, UnreadableImage):
                    bad[row] = legible(f"{listed.names[row]}: {decoded}")
                else:
                    self._write(file.fileno(), row, np.ascontiguousarray(decoded))
            os.fdatasync(file.fileno())  # a crash of the machine must not leave a row that is only said to be there
        with (self._folder / UNREADABLE).open("a") as log:
            log.writelines(f"{line}\n" for line in bad.values())
        with self._in_turn():
            self._state[rows] = [BAD if row in bad else DECODED for row in rows.tolist()]

    def _in_reading_order(self, rows: Rows) -> list[int]:
        order = self._listed().reading_order
        if order is not None:
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            rows = rows[np.argsort(rank[rows])]
        return [int(row) for row in rows]

    def _write(self, file: int, row: int, image: Array) -> None:
        assert image.shape == self.shape[1:]
        assert image.dtype == self.dtype
        try:
            try:
                _write_all(file, image.data.cast("B"), row * self._row_bytes)
            except OSError as error:
                if error.errno not in FULL or not make_room(self._folder.parents[1], ROOM):
                    raise
                _write_all(file, image.data.cast("B"), row * self._row_bytes)
        except OSError as error:
            raise FtaeError(
                f"cannot write a decoded image to the image cache {self._folder.parents[1]}: "
                f"{error.strerror or error}. Free some space there (ftae cache --clean), or set FTAE_CACHE to a folder "
                "that has enough; what is decoded already is kept"
            ) from error

    def _states(self, rows: Rows) -> npt.NDArray[np.uint8]:
        with self._in_turn():
            return np.array(self._state[rows])

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Lets one process at a time in: one that then sees a row marked as decoded also sees the row."""
        with (self._folder / STATE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
