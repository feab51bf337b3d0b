"""The folder of a run: names and counts of what it holds, and folders that appear whole or not at all."""

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

CHECKPOINTS = "checkpoints"

KEPT = 2  # of them: the newest, and the one before it in case that is damaged

GRID_IMAGES = 12  # of a picture, in two columns of three cells each: a square, which MLflow shows best

GRID_MIN_SIDE = 96  # pixels; smaller images are enlarged so that the picture can be looked at


ASIDE = ".old"

THREADS = 4  # they wait for the disk, most of the time


class AtomicFolder:
    """Files of ``folder`` under another name, until ``complete`` gives it its own.

    Left before that, as a context, nothing of it stays.
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
        """Begin to write a file, in place of one of the same name; that it fails is raised by ``complete``."""
        if name in self._written:
            self._written[name].result()
        self._hashes[name] = self._pool.submit(lambda: hashlib.sha256(content).hexdigest())
        self._written[name] = self._pool.submit(_write, self._parts / name, content)

    def complete(self, hashes: str) -> None:
        """Put the folder, with a file ``hashes`` of the SHA-256 of every other, in place of what is there of its name.

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
    """Give the folders in ``parent`` whose names match theirs again, where the one to replace them never came."""
    for aside in parent.glob(f".{pattern}.*{ASIDE}"):
        folder = parent / aside.name[1:].partition(".")[0]
        if not folder.exists():
            with suppress(OSError):  # it has come now; or nobody may write here
                aside.rename(folder)


def _write(file: Path, content: bytes) -> None:
    """To the disk itself."""
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
