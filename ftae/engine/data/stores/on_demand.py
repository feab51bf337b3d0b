"""Images that are decoded when they are first needed, by whichever process needs them, in a store of limited size.

    images_on_demand/<key>/about.json     shape and type of the images, class names, the values of black and white
    images_on_demand/<key>/rows           some of the images, as they lie in memory; nothing where none has been written
    images_on_demand/<key>/state          a byte for each image: not there, decoded, or unreadable
    images_on_demand/<key>/places         int64 (N,), the row of each decoded image
    images_on_demand/<key>/owners         int64 (rows,), the image of each row, counted from 1; 0 for none
    images_on_demand/<key>/used           int64 (rows,), when each row was last used, in nanoseconds
    images_on_demand/<key>/unreadable     a line for each unreadable image: its name and the reason
    images_on_demand/<key>/labels.npy     and factors.npy: as for images that are decoded at once

Where all rows are taken, the least recently used ones are taken for others. A row is on the disk before its image is
said to be there: a process that is killed while it writes leaves images to be decoded again. What a row holds does not
depend on who decodes it.
"""

import errno
import fcntl
import math
import os
import time
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

ROWS, STATE, PLACES, OWNERS, USED, UNREADABLE = "rows", "state", "places", "owners", "used", "unreadable"
MISSING, DECODED, BAD = 0, 1, 2
Numbers = npt.NDArray[np.int64]
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = 2**30  # bytes made free at a time


class Decodable(Protocol):
    """What ``ListedImages`` is, as far as it matters here."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def decode(self) -> Callable[[int], Array]: ...
    @property
    def reading_order(self) -> Numbers | None: ...
    @property
    def reads_at_once(self) -> int | None: ...


def write_empty(folder: Path, number: int, row_bytes: int, num_rows: int) -> None:
    """Files of a store of ``num_rows`` rows in which no image is decoded yet; they take no room."""
    sizes = {ROWS: num_rows * row_bytes, OWNERS: 8 * num_rows, USED: 8 * num_rows}
    sizes |= {STATE: number, PLACES: 8 * number, UNREADABLE: 0}
    for name, size in sizes.items():
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
        num_rows = (folder / OWNERS).stat().st_size // 8
        if (folder / ROWS).stat().st_size != num_rows * self._row_bytes or (
            folder / PLACES
        ).stat().st_size != 8 * number:
            raise ValueError(f"{folder} does not have the size that it was made with")
        self._state = np.memmap(folder / STATE, dtype=np.uint8, mode="r+")
        self._places = np.memmap(folder / PLACES, dtype=np.int64, mode="r+")
        self._owners, self._used = (_mapped(folder / name, np.dtype(np.int64), (num_rows,)) for name in (OWNERS, USED))
        self._rows = _mapped(folder / ROWS, dtype, (num_rows, *shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> "ImagesOnDemand":
        first, stop, step = part.indices(len(self))
        assert step == 1
        chosen = ImagesOnDemand.__new__(ImagesOnDemand)
        vars(chosen).update(vars(self), _first=self._first + first, shape=(max(stop - first, 0), *self.shape[1:]))
        return chosen

    def take(self, images: Numbers) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Some images, and which of them are readable; the others are black.

        Raises:
            FtaeError: files cannot be read, or the disk is full.
        """
        wanted, places = np.unique(images + self._first, return_inverse=True)
        found = np.zeros((len(wanted), *self.shape[1:]), dtype=self.dtype)
        with self._locked(fcntl.LOCK_SH):
            state = np.array(self._state[wanted])
            is_there = state == DECODED
            rows = self._places[wanted[is_there]]
            found[is_there], self._used[rows] = self._rows[rows], time.time_ns()
        missing = np.flatnonzero(state == MISSING)
        if len(missing):
            bad = self._decode(wanted[missing], found, missing)
            state[missing] = np.where(bad, BAD, DECODED)
        return found[places], (state == DECODED)[places]

    @property
    def held(self) -> object:
        """Lives as long as any part of these images."""
        return self._state

    def num_decoded(self) -> int:
        """How many images are decoded, of all in the folder."""
        return int((self._state == DECODED).sum())

    def states(self) -> npt.NDArray[np.uint8]:
        """Of every image of the part: ``MISSING``, ``DECODED`` or ``BAD``."""
        return np.array(self._state[self._first : self._first + len(self)])

    def unreadable(self) -> list[str]:
        """The images that were found to be unreadable, each as "name: reason"."""
        lines = (self._folder / UNREADABLE).read_text().splitlines()
        return sorted(set(lines))

    def _decode(self, images: Numbers, into: Array, places: Numbers) -> npt.NDArray[np.bool_]:
        """Decode ``images`` into the ``places`` of an array, and keep them; returns which are unreadable."""
        listed = self._listed()
        assert len(listed.names) == len(self._state)
        place, reasons = dict(zip(images.tolist(), places.tolist(), strict=True)), {}

        def decode(image: int) -> tuple[int, Array | UnreadableImage]:
            try:
                return image, listed.decode(image)
            except UnreadableImage as unreadable:
                return image, unreadable

        with quiet_pillow():
            for image, decoded in in_order(decode, self._in_reading_order(images), threads=listed.reads_at_once):
                if isinstance(decoded, UnreadableImage):
                    reasons[image] = legible(f"{listed.names[image]}: {decoded}")
                else:
                    assert decoded.shape == self.shape[1:]
                    assert decoded.dtype == self.dtype
                    into[place[image]] = decoded
        bad = np.isin(images, list(reasons))
        with self._locked(fcntl.LOCK_EX):
            self._keep(images[~bad], into[places[~bad]])
            with (self._folder / UNREADABLE).open("a") as log:
                log.writelines(f"{line}\n" for line in reasons.values())
            self._state[images[bad]] = BAD
        return bad

    def _in_reading_order(self, images: Numbers) -> list[int]:
        order = self._listed().reading_order
        if order is not None:
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            images = images[np.argsort(rank[images])]
        return [int(image) for image in images]

    def _keep(self, images: Numbers, pixels: Array) -> None:
        """Write images in place of those that were not used for longest; the caller has the lock."""
        is_new = self._state[images] == MISSING  # another process may have kept them meanwhile
        number = min(int(is_new.sum()), len(self._owners))
        if number == 0:
            return
        images, pixels = images[is_new][:number], pixels[is_new][:number]
        rows = np.argpartition(self._used, number - 1)[:number]
        owners = self._owners[rows]
        self._state[owners[owners > 0] - 1] = MISSING
        self._owners[rows] = 0
        self._state.flush()  # before their rows are written over: see below
        with (self._folder / ROWS).open("r+b", buffering=0) as file:
            for row, image in zip(rows.tolist(), pixels, strict=True):
                self._write(file.fileno(), row, np.ascontiguousarray(image))
            os.fdatasync(file.fileno())  # a crash of the machine must not leave a row that is only said to be there
        self._places[images], self._owners[rows], self._used[rows] = rows, images + 1, time.time_ns()
        self._state[images] = DECODED

    def _write(self, file: int, row: int, image: Array) -> None:
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
                f"{error.strerror or error}. Free some space there (ftae cache --clean), set FTAE_CACHE to a folder "
                "that has enough, or data.cache_gb to less; what is decoded already is kept"
            ) from error

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Nobody writes while others read: whoever sees an image marked as decoded also sees its row."""
        with (self._folder / STATE).open("rb") as file:
            fcntl.flock(file, kind)
            yield


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """An array in a file, which may be empty, unlike with numpy."""
    return np.memmap(file, dtype=dtype, mode="r+", shape=shape) if shape[0] else np.empty(shape, dtype=dtype)


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
