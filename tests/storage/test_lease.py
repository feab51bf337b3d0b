"""One driver at a time: on one machine, between machines, and whatever happens to the driver that holds the search.

A lease knows a machine by its lock: in these tests, another lock file makes another machine.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ftae.errors import FtaeError
from ftae.storage import lease as module
from ftae.storage.backends import FolderStore
from ftae.storage.lease import FILE_NAME, Lease
from ftae.storage.store import Store

SHORT = {"RENEW_SECONDS": 0.1, "LEASE_SECONDS": 1.0, "SETTLE_SECONDS": 0.4}


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHORT.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "small").mkdir()
    return FolderStore(tmp_path / "small")


class SlowStore(FolderStore):
    """Writes arrive a little later, as over a network."""

    def write(self, path: str, data: bytes) -> None:
        time.sleep(0.1)
        super().write(path, data)


class Driver(Lease):
    """The lease of a driver on ``machine``, with its messages in ``notes``."""

    def __init__(self, store: Store, machine: str) -> None:
        self.notes: list[str] = []
        lock = store.folder.parent / f"lock-{machine}"
        lock.touch()
        super().__init__(store, lock, self.notes.append)

    def die(self) -> None:
        self._released.set()


def content(store: Store) -> dict[str, Any]:
    return json.loads(store.read(FILE_NAME) or b"{}")  # type: ignore[no-any-return]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lease_names_its_owner_and_is_renewed_until_it_is_released(store: Store) -> None:
    driver = Driver(store, "one")
    driver.take()
    first = content(store)
    assert (first["host"], first["pid"]) == (platform.node(), os.getpid())
    wait_until(lambda: content(store) != first)
    driver.check()
    driver.release()
    assert store.names("") == []
    other = Driver(store, "two")
    other.take()
    other.release()
    assert driver.notes == other.notes == []


def test_a_living_driver_keeps_its_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 60.0)  # the other driver sees the first renewal
    driver, other = Driver(store, "one"), Driver(store, "two")
    driver.take()
    with pytest.raises(FtaeError) as refusal:
        other.take()
    owner = f"{platform.node()} (process {os.getpid()})"
    assert str(refusal.value) == f"{store} is being run by {owner}; wait for it or stop it first"
    other.release()
    driver.check()
    assert content(store) != {}, "a driver without the lease does not remove it"
    driver.release()


@pytest.mark.parametrize(
    ("machine", "half", "owner"),
    [
        ("one", False, None),
        ("two", False, f"{platform.node()} (process {os.getpid()})"),
        ("one", True, "a driver that was killed (process None)"),
    ],
    ids=["the same machine", "another machine", "half-written"],
)
def test_a_dead_drivers_lease_is_taken_over(store: Store, machine: str, half: bool, owner: str | None) -> None:
    dead, heir = Driver(store, "one"), Driver(store, machine)
    dead.take()
    dead.die()
    if half:
        store.write(FILE_NAME, (store.read(FILE_NAME) or b"")[:20])
    before = time.monotonic()
    heir.take()
    assert owner is None or time.monotonic() - before > SHORT["LEASE_SECONDS"]
    assert heir.notes == ([f"{owner} held this search; watching for 1 s whether it is still alive"] if owner else [])
    heir.check()
    heir.release()


@pytest.mark.parametrize("left", [b"", b"[]", b"null", b"{}", b'{"owner": "x"}', b"\xff", b"[" * 100_000])
def test_an_unreadable_lease_belongs_to_no_driver(store: Store, left: bytes) -> None:
    store.write(FILE_NAME, left)
    heir = Driver(store, "two")
    heir.take()
    assert content(store)["pid"] == os.getpid()
    heir.check()
    heir.release()


def test_one_of_several_heirs_takes_over(store: Store) -> None:
    dead = Driver(store, "zero")
    dead.take()
    dead.die()
    heirs = [Driver(SlowStore(store.folder), machine) for machine in ("one", "two", "three")]
    with ThreadPoolExecutor() as pool:
        refusals = [future.exception() for future in [pool.submit(heir.take) for heir in heirs]]
    assert sorted("is being run by" in str(refusal) for refusal in refusals) == [False, True, True]
    assert refusals.count(None) == 1
    for heir in heirs:
        heir.release()
    assert store.names("") == []


def test_a_released_lease_is_not_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.001)
    driver = Driver(SlowStore(store.folder), "one")
    driver.take()
    time.sleep(0.05)  # a renewal is under way
    driver.release()
    time.sleep(0.2)
    assert store.read(FILE_NAME) is None


def test_a_missing_storage_is_an_error_and_does_not_block_the_release(tmp_path: Path, store: Store) -> None:
    driver = Driver(store, "one")
    driver.take()
    store.folder.rename(tmp_path / "away")
    store.folder.write_text("no folder any more")
    time.sleep(SHORT["LEASE_SECONDS"] * 0.7)
    with pytest.raises(OSError, match="Not a directory"):
        driver.check()
    driver.release()
    assert [message.split(" (")[0] for message in driver.notes] == ["the lease could not be given back"]
