"""Who runs a search: one driver at a time, whatever machines the drivers are on.

A lock of the operating system decides between drivers of one machine. Between machines it is a lease: an
object below the search that names its owner, and that the owner renews. No clocks are compared: whoever
finds a lease watches whether it changes. One that stays the same for ``LEASE_SECONDS`` is taken over.
"""

import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.storage.store import Store

FILE_NAME = "lease.json"

RENEW_SECONDS = 4.0

LEASE_SECONDS = 20.0

SETTLE_SECONDS = 1.0  # longer than two writers of one object take to overwrite each other


class Lease:
    """Held from ``take`` to ``release``; renewed by a thread.

    ``lock`` is the search's journal, which the caller has locked on this machine.
    """

    def __init__(self, store: Store, lock: Path, notify: Callable[[str], None]) -> None:
        self._store, self._notify = store, notify
        stat = lock.stat()
        kernel = Path("/proc/sys/kernel/random/boot_id")
        self._me = {
            "owner": uuid.uuid4().hex,
            "host": platform.node(),
            "pid": os.getpid(),
            # Whoever holds this lock of this kernel is the only driver on it.
            "lock": [kernel.read_text().strip() if kernel.exists() else platform.node(), stat.st_dev, stat.st_ino],
        }
        self._beat = 0
        self._renewed = 0.0
        self._released = threading.Event()
        self._renewing = threading.Lock()

    def take(self) -> None:
        """Wait until the lease is this driver's.

        Raises:
            FtaeError: a living driver has it.
            OSError: the storage cannot be read or written.
        """
        while not self._store.create(FILE_NAME, self._content()):
            found = self._read()
            if found is not None and found["lock"] != self._me["lock"]:
                self._outwait(found)
            self._store.write(FILE_NAME, self._content())
            if found is not None and found["lock"] == self._me["lock"]:
                break
            time.sleep(SETTLE_SECONDS)
            if self._is_mine():
                break
        self._renewed = time.monotonic()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Make sure that nobody has taken the search over, as may happen to a process that was suspended.

        Raises:
            FtaeError: somebody has.
            OSError: the storage cannot be read.
        """
        if time.monotonic() - self._renewed > LEASE_SECONDS / 2:
            self._renew()

    def release(self) -> None:
        """Let others have it at once. The storage being away is no fault: the lease runs out by itself."""
        self._released.set()
        try:
            with self._renewing:
                if self._is_mine():
                    self._store.remove(FILE_NAME)
        except OSError as error:
            self._notify(f"the lease could not be given back ({error}); it runs out in {LEASE_SECONDS:g} s")

    def _outwait(self, found: dict[str, Any]) -> None:
        self._notify(f"{_named(found)} held this search; watching for {LEASE_SECONDS:g} s whether it still lives")
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
                continue  # ``check`` says so as soon as it matters
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
        except (ValueError, TypeError, RecursionError):  # its writer was killed: nobody's
            found = {"owner": None, "lock": None, "host": "a driver that was killed", "pid": None}
        return found

    def _is_mine(self) -> bool:
        found = self._read()
        return found is not None and found["owner"] == self._me["owner"]


def _named(lease: dict[str, Any]) -> str:
    return f"{lease['host']} (process {lease['pid']})"
