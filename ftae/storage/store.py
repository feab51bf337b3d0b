"""Opening the place of a search, a folder or an object store, and retrying while it refuses."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from ftae.storage.backends import JOURNAL_PIECES, FolderStore, ObjectStore, filesystem, os_errors
from ftae.storage.journal import FILE_NAME as JOURNAL

T = TypeVar("T")
Role = Literal["driver", "worker", "reader"]

RETRY_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.5  # doubled after every try
LONGEST_WAIT_SECONDS = 8.0


class Store(Protocol):
    """The files of one search. Every ``path`` is relative to the search, and names a file or a folder.

    ``folder``: where the files are, or are mirrored, on this machine. ``appends_atomically``: whether the storage
    takes several lines of the journal in one write, all or none.

    Raises:
        OSError: (all methods) the storage cannot be read or written.
    """

    folder: Path
    appends_atomically: bool

    @property
    def name(self) -> str:
        """The name of the search."""

    def exists(self) -> bool:
        """Whether a search ever began here."""

    def refresh(self) -> None:
        """Bring the journal in ``folder`` up to date."""

    def replicate(self, offset: int, line: bytes) -> bool:
        """Store the journal's line that begins at byte ``offset``, if ``folder`` is only a mirror.

        Returns whether the line was stored outside ``folder``.
        """

    def push(self, path: str) -> None:
        """Store what lies at ``path`` in ``folder``; the files of a folder go in the order of their names."""

    def fetch(self, path: str) -> Path:
        """Bring ``path`` to this machine, as far as it exists; returns its place in ``folder``."""

    def release(self, path: str) -> None:
        """Drop this machine's copy of ``path``."""

    def remove(self, path: str) -> None:
        """Delete ``path`` everywhere."""

    def names(self, path: str) -> list[str]:
        """The names of the files and folders directly in ``path``, sorted."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that does not exist yet; returns False, and writes nothing, where it does."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file, or replace it as a whole."""

    def read(self, path: str) -> bytes | None:
        """The content of a file; None if it does not exist."""


def is_url(storage: str) -> bool:
    """Whether searches are kept in an object store, not in a folder."""
    return "://" in storage


def open_store(storage: str, name: str, role: Role) -> Store:
    """The store of the search ``name`` below ``storage``, a folder or the URL of an object store.

    Each ``role`` has its own mirror on a machine, because each writes other parts of it.

    Raises:
        FtaeError: an object store of this kind cannot hold searches, or its package is missing.
    """
    if not is_url(storage):
        return FolderStore(Path(storage).expanduser().absolute() / name)
    url = f"{storage.rstrip('/')}/{name}"
    cache = Path(os.environ.get("FTAE_CACHE") or "~/.cache/ftae").expanduser()
    return ObjectStore(url, cache / "searches" / hashlib.blake2b(url.encode(), digest_size=8).hexdigest() / role)


def searches_in(storage: str) -> list[str]:
    """The names of the searches below ``storage``."""
    if not is_url(storage):
        return sorted(path.parent.name for path in Path(storage).expanduser().glob(f"*/{JOURNAL}"))
    fs, root = filesystem(storage.rstrip("/"))
    with os_errors():
        found = fs.glob(f"{root}/*/{JOURNAL_PIECES}/{0:015d}")
    return sorted(key.split("/")[-3] for key in found)


class StorageRetry:
    """Waits between retries, for ``RETRY_SECONDS`` in all. Calls ``notify`` at the first fault and at the recovery."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._first_fault: float | None = None  # time of the first of the faults in a row
        self._wait = FIRST_WAIT_SECONDS

    def failed(self, error: OSError) -> None:
        """Wait before the next try.

        Raises:
            OSError: ``error`` itself, if the storage has failed for too long.
        """
        now = time.monotonic()
        if self._first_fault is None:
            self._first_fault = now
            self._notify(f"the storage fails: {error}; trying again for {RETRY_SECONDS:g} s")
        if now - self._first_fault + self._wait > RETRY_SECONDS:
            raise error
        time.sleep(self._wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)

    def succeeded(self) -> None:
        """A try succeeded: the next fault begins a new series of retries."""
        if self._first_fault is not None:
            self._notify("the storage works again")
        self._first_fault, self._wait = None, FIRST_WAIT_SECONDS


def with_retries(action: Callable[[], T], notify: Callable[[str], None]) -> T:
    """Call ``action`` until the storage takes it; returns its result.

    Raises:
        OSError: the storage failed for ``RETRY_SECONDS``.
    """
    retry = StorageRetry(notify)
    while True:
        try:
            result = action()
        except OSError as error:
            retry.failed(error)
        else:
            retry.succeeded()
            return result
