"""The folder of a run: names and counts of its contents, and folders that are written whole or not at all."""

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

CHECKPOINTS = "checkpoints"
KEPT = 2  # checkpoints: the newest, and the one before in case the newest is damaged
GRID_IMAGES = 12  # in a picture, in two columns of three cells each (of pairs, four): a square, which MLflow shows best
CELLS, CELLS_OF_PAIRS = 3, 4  # of one image in a picture; with two domains, four where the true image is known
GRID_SAMPLES, GRID_SAMPLE_COLUMNS = 36, 6  # of a generator, whose pictures have one cell each
GRID_MIN_SIDE = 96  # pixels; smaller images are enlarged, to be visible
GRID_MAX_WIDTH = 2048  # to which vectors and series, one pixel high, are enlarged
ASIDE = ".old"  # suffix of a folder that is being replaced
THREADS = 4  # they mostly wait for the disk


class AtomicFolder:
    """Writes the files of ``folder`` under a temporary name, until ``complete`` renames it.

    As a context, it removes everything if it is left before that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir(parents=True)
        self._pool = ThreadPoolExecutor(THREADS, "folder")
        self._hashes: dict[str, Future[str]] = {}
        self._written: dict[str, Future[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._parts, ignore_errors=True)

    def add(self, name: str, content: bytes) -> None:
        """Start to write a file, replacing one of the same name; ``complete`` raises if that fails."""
        if name in self._written:
            self._written[name].result()
        self._hashes[name] = self._pool.submit(lambda: hashlib.sha256(content).hexdigest())
        self._written[name] = self._pool.submit(_write, self._parts / name, content)

    def complete(self, hashes: str) -> None:
        """Add a file ``hashes`` with the SHA-256 of every other, and put the folder in the place of its predecessor.

        Raises:
            OSError: a file could not be written.
        """
        found = {name: self._hashes[name].result() for name in sorted(self._hashes)}
        self.add(hashes, json.dumps(found).encode())
        for written in self._written.values():
            written.result()
        aside = self._parts.with_suffix(ASIDE)
        with suppress(FileNotFoundError):
            self._folder.rename(aside)
        self._parts.rename(self._folder)
        shutil.rmtree(aside, ignore_errors=True)


def put_back(parent: Path, pattern: str) -> None:
    """Restore folders in ``parent`` that match ``pattern`` and were set aside for a replacement that never came."""
    for aside in parent.glob(f".{pattern}.*{ASIDE}"):
        folder = parent / aside.name[1:].partition(".")[0]
        if not folder.exists():
            with suppress(OSError):  # the replacement has just come, or nobody may write here
                aside.rename(folder)


def _write(file: Path, content: bytes) -> None:
    """Write a file through to the disk."""
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
