"""What lies in the cache: how large it is, when it was last used, and whether a process uses it; and its removal.

A process that uses an entry holds a shared lock of one of its files. Whoever removes the entry needs the exclusive one.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

IMAGES, ON_DEMAND = "images", "images_on_demand"
ABOUT = "about.json"

# The folders of the cache, and the file that the users of an entry lock; entries without one are read at once.
KINDS: dict[str, str | None] = {
    IMAGES: ABOUT,
    ON_DEMAND: ABOUT,
    "frozen_features": "filled",
    "shards": None,
    "models": None,
    "contents": None,
    "datasets": None,
    "levels": None,
    "samples": None,
    "groups": None,
}
PARTIAL = ".partial"


@dataclass(frozen=True)
class Entry:
    """One folder of the cache. ``num_bytes``: what it takes on the disk. ``last_used``: seconds since the epoch.

    ``what``: what it holds, in words; empty where it does not say.
    """

    kind: str
    folder: Path
    num_bytes: int
    last_used: float
    what: str

    @property
    def in_use(self) -> bool:
        """Whether a process uses it now."""
        name = KINDS[self.kind]
        if name is None:
            return False
        locked = _locked(self.folder / name, fcntl.LOCK_EX)
        if locked is not None:
            os.close(locked)
        return locked is None and (self.folder / name).exists()


def hold(folder: Path) -> int:
    """Keep others from removing an entry; a file descriptor, which is closed to let go of it. Marks the last use.

    Raises:
        OSError: there is no such entry.
    """
    held = os.open(folder / ABOUT, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(held), os.stat(folder / ABOUT)):  # noqa: PTH116  # removed meanwhile
            raise FileNotFoundError(folder)
        os.utime(folder / ABOUT)
    except BaseException:
        os.close(held)
        raise
    return held


def entries(cache: Path, kinds: Sequence[str] = tuple(KINDS)) -> list[Entry]:
    """All entries, the least recently used first."""
    found = [_entry(kind, folder) for kind in kinds for folder in _folders(cache / kind)]
    return sorted(found, key=lambda entry: (entry.last_used, str(entry.folder)))


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_dir())


def _entry(kind: str, folder: Path) -> Entry:
    stats = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            stats.append(path.stat())
    used = max((stat.st_mtime for stat in stats), default=0.0)
    try:
        about = json.loads((folder / ABOUT).read_text())
        used, what = (folder / ABOUT).stat().st_mtime, str(about.get("what", ""))
    except (OSError, ValueError, AttributeError):
        what = ""
    return Entry(kind, folder, sum(stat.st_blocks * 512 for stat in stats), used, what)


def remove(entry: Entry) -> bool:
    """Remove an entry; False where a process uses or makes it."""
    folder = entry.folder
    making = FileLock(f"{folder.with_name(folder.name.removesuffix(PARTIAL))}.lock", timeout=0)
    if entry.kind == "frozen_features":
        making = FileLock(folder.parent / "lock", timeout=0)
    try:
        with making:
            name = KINDS[entry.kind]
            used = None if name is None else _locked(folder / name, fcntl.LOCK_EX)
            if used is None and name is not None and (folder / name).exists():
                return False
            try:
                aside = folder.with_name(f"{folder.name.removesuffix(PARTIAL)}{PARTIAL}")
                if aside != folder:
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)  # nobody finds half an entry
                shutil.rmtree(aside, ignore_errors=True)
            finally:
                if used is not None:
                    os.close(used)
    except Timeout:
        return False
    return True


def can_make_room(cache: Path, needed: int) -> bool:
    """Whether ``needed`` bytes of the disk are free, or can be by removing images that no process uses."""
    return needed <= _free(cache) or needed <= room(cache)


def room(cache: Path) -> int:
    """How many bytes of the disk are free, or can be by removing images that no process uses."""
    return _free(cache) + sum(entry.num_bytes for entry in _unused_images(cache))


def make_room(cache: Path, needed: int) -> bool:
    """Remove images that no process uses, the least recently used first, until ``needed`` bytes of the disk are free.

    Removes nothing, and returns False, where that would not be enough.
    """
    if not can_make_room(cache, needed):
        return False
    for entry in _unused_images(cache) if needed > _free(cache) else ():
        if needed > _free(cache):
            remove(entry)
    return needed <= _free(cache)


def _unused_images(cache: Path) -> list[Entry]:
    return [entry for entry in entries(cache, (IMAGES, ON_DEMAND)) if not entry.in_use]


def _free(cache: Path) -> int:
    return shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.is_dir())).free


def _locked(file: Path, kind: int) -> int | None:
    """A descriptor with the lock; None where there is no such file, or another process has it."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def clean(cache: Path, *, unused_days: float = 0.0, to_bytes: float = 0.0) -> list[Entry]:
    """Remove what no process uses, the least recently used first; returns what was removed.

    Args:
        unused_days: only what was not used for so many days.
        to_bytes: only until all entries together take no more than this.
    """
    removed, found = [], entries(cache)
    total, latest = sum(entry.num_bytes for entry in found), time.time() - unused_days * 86_400
    for entry in found:
        if total > to_bytes and entry.last_used <= latest and remove(entry):
            removed.append(entry)
            total -= entry.num_bytes
    return removed
