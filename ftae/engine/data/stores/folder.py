"""The folder of the cache: where it is, how entries are named, and how one process makes an entry for all."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ftae.errors import FtaeError


def digest(value: Any) -> str:
    """32 hexadecimal digits that depend on every part of a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def digest_of_all(values: Iterable[Any]) -> str:
    """``digest(list(values))``, without the list: there may be millions."""
    state, before = hashlib.blake2b(digest_size=16), "["
    for value in values:
        state.update(f"{before}{json.dumps(value)}".encode())
        before = ", "
    state.update(b"]" if before == ", " else b"[]")
    return state.hexdigest()


def cache_folder() -> Path:
    """``$FTAE_CACHE``, or its default."""
    return Path(os.environ.get("FTAE_CACHE") or "~/.cache/ftae").expanduser()


def make_once(
    folder: Path, num_bytes: int, write: Callable[[Path], None], is_sound: Callable[[Path], bool] = Path.exists
) -> None:
    """Let exactly one process make ``folder`` if it is missing or not sound; the others wait.

    ``write`` fills an empty folder, and raises FtaeError for whatever is not the cache's fault. ``num_bytes``: the
    room that it needs.

    Raises:
        FtaeError: the cache cannot be written.
    """
    if is_sound(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_sound(folder):
                _make(folder, num_bytes, write)
    except OSError as error:
        raise FtaeError(
            f"cannot write {num_bytes:,} bytes to the image cache {cache_folder()}: {error.strerror or error}. "
            "Free some space there, or set FTAE_CACHE to a folder that has enough"
        ) from error


def _make(folder: Path, num_bytes: int, write: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        if shutil.disk_usage(partial).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(partial)
        for path in partial.iterdir():
            _flush_to_disk(path)
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush_to_disk(path: Path) -> None:
    """Some disks and networks report only now that they are full; and a crash must not leave a hollow file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
