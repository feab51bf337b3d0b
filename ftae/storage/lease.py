"""A search has one driver at a time, on whatever machine; only that driver writes to its journal.

Between drivers on one machine a lock of the operating system decides. Between machines a lease decides: a file of the
search that names its owner, and that the owner rewrites every ``RENEW_SECONDS``. No clocks are compared: a driver that
finds a lease watches whether it changes, and takes over a lease that stays the same for ``LEASE_SECONDS``.
"""

import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.storage.journal import Event, Journal, read
from ftae.storage.store import Store, with_retries

FILE_NAME = "lease.json"
RENEW_SECONDS = 4.0
LEASE_SECONDS = 20.0
SETTLE_SECONDS = 1.0  # two drivers that write the lease at the same time have overwritten each other by then


def seems_driven(store: Store) -> bool:
    """Whether a driver seems to run the search in ``store``. Only ``Lease.take`` finds out, which takes a while.

    A lease in a folder must have been renewed lately by this machine's clock; one in an object store must exist.
    """
    file = store.folder / FILE_NAME
    if store.appends_atomically:  # a folder
        return file.exists() and time.time() - file.stat().st_mtime < LEASE_SECONDS
    return store.read(FILE_NAME) is not None


class Lease:
    """The lease of one driver, held from ``take`` to ``release`` and renewed by a thread.

    ``lock`` is the search's journal, which the caller has locked on this machine. ``notify`` receives what the user
    should know.
    """

    def __init__(self, store: Store, lock: Path, notify: Callable[[str], None]) -> None:
        self._store, self._notify = store, notify
        stat = lock.stat()
        kernel = Path("/proc/sys/kernel/random/boot_id")
        self._me = {
            "owner": uuid.uuid4().hex,
            "host": platform.node(),
            "pid": os.getpid(),
            # A driver that holds this lock of this kernel is the only driver of the search on this machine.
            "lock": [kernel.read_text().strip() if kernel.exists() else platform.node(), stat.st_dev, stat.st_ino],
        }
        self._beat = 0
        self._renewed = 0.0
        self._released = threading.Event()
        self._renewing = threading.Lock()

    def take(self) -> None:
        """Take the lease, if need be after waiting for ``LEASE_SECONDS``.

        Raises:
            FtaeError: another driver holds the lease and is alive.
            OSError: the storage cannot be read or written.
        """
        while not self._store.create(FILE_NAME, self._content()):
            found = self._read()
            if found is not None and found["lock"] != self._me["lock"]:
                self._wait_for_silence(found)
            self._store.write(FILE_NAME, self._content())
            if found is not None and found["lock"] == self._me["lock"]:
                break
            time.sleep(SETTLE_SECONDS)
            if self._is_mine():
                break
        self._renewed = time.monotonic()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Make sure that no other driver has taken over, as happens when this process was suspended for a while.

        Raises:
            FtaeError: another driver has taken over.
            OSError: the storage cannot be read.
        """
        if time.monotonic() - self._renewed > LEASE_SECONDS / 2:
            self._renew()

    def release(self) -> None:
        """Give the lease back, so that the next driver need not wait. If the storage fails, the lease runs out."""
        self._released.set()
        try:
            with self._renewing:
                if self._is_mine():
                    self._store.remove(FILE_NAME)
        except OSError as error:
            self._notify(f"the lease could not be given back ({error}); it runs out in {LEASE_SECONDS:g} s")

    def _wait_for_silence(self, found: dict[str, Any]) -> None:
        self._notify(f"{_named(found)} held this search; watching for {LEASE_SECONDS:g} s whether it is still alive")
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(RENEW_SECONDS / 4)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise FtaeError(f"{self._store} is being run by {_named(now)}; wait for it or stop it first")

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                self._renew()
            except OSError:
                continue  # ``check`` raises it once the lease may have run out
            except FtaeError:
                return

    def _renew(self) -> None:
        with self._renewing:
            if not self._is_mine():
                self._renewed = -math.inf
                raise FtaeError(f"{self._store} was taken over by another ftae driver; this one ends")
            self._beat += 1
            self._store.write(FILE_NAME, self._content())
            self._renewed = time.monotonic()

    def _content(self) -> bytes:
        return json.dumps(self._me | {"beat": self._beat}).encode()

    def _read(self) -> dict[str, Any] | None:
        data = self._store.read(FILE_NAME)
        try:
            found: dict[str, Any] | None = None if data is None else dict(json.loads(data))
            if found is not None and not self._me.keys() <= found.keys():
                raise ValueError(found)
        except (ValueError, TypeError, RecursionError):  # half-written: the lease belongs to no driver
            found = {"owner": None, "lock": None, "host": "a driver that was killed", "pid": None}
        return found

    def _is_mine(self) -> bool:
        found = self._read()
        return found is not None and found["owner"] == self._me["owner"]


def _named(lease: dict[str, Any]) -> str:
    return f"{lease['host']} (process {lease['pid']})"


class JournalWriter:
    """Appends to the journal of one search while no other driver can, and retries while the storage fails.

    ``notify`` receives messages about faults of the storage.

    Raises:
        FtaeError: another driver holds the search.
        OSError: the storage fails for too long.
    """

    def __init__(self, store: Store, notify: Callable[[str], None]) -> None:
        self._store, self.notify = store, notify
        self.journal = Journal(store.folder, store.replicate)
        self.lease = Lease(store, self.journal.path, notify)
        try:
            self.lease.take()
        except BaseException:
            self.close()
            raise

    def take_up(self) -> list[Event]:
        """Bring the journal up to date, cut off a half-written line, and return the events so far."""
        self._store.refresh()
        self.journal.take_up()
        return [event for event, _ in read(self._store.folder)]

    def append(self, events: Sequence[Event], apply: Callable[[Event], None]) -> None:
        """Append events, in one write if the storage allows it; calls ``apply`` with each once it is stored."""
        for batch in [events] if self._store.appends_atomically else [[event] for event in events]:
            with_retries(partial(self._write, batch), self.notify)
            for event in batch:
                apply(event)

    def _write(self, events: Sequence[Event]) -> None:
        self.lease.check()
        self.journal.append_all(events)

    def close(self) -> None:
        """Leave the journal to other drivers."""
        self.lease.release()
        self.journal.close()
