"""One driver at a time: on one machine, between machines, and whatever becomes of the driver that has the search.

A machine is told from another by its lock: another machine is here one with a lock file of its own.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftae.errors import FtaeError
from ftae.search import lease as module
from ftae.search.lease import FILE_NAME, Lease
from ftae.storage import Store

PATIENT = {"RENEW_SECONDS": 0.1, "LEASE_SECONDS": 1.0, "SETTLE_SECONDS": 0.4}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "small").mkdir()
    return Store(tmp_path / "small")


class Driver(Lease):
    """A lease on the machine ``machine``, and what was said."""

    def __init__(self, store: Store, machine: str) -> None:
        self.said: list[str] = []
        lock = store.folder.parent / f"lock-{machine}"
        lock.touch()
        super().__init__(store, lock, self.said.append)

    def die(self) -> None:
        self._released.set()


def content(store: Store) -> dict[str, object]:
    found: dict[str, object] = json.loads(store.read(FILE_NAME) or b"{}")
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lease_names_its_owner_and_is_renewed_until_it_is_given_back(store: Store) -> None:
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
    assert driver.said == other.said == []


def test_a_living_driver_keeps_it(store: Store) -> None:
    driver, other = Driver(store, "one"), Driver(store, "two")
    driver.take()
    with pytest.raises(FtaeError) as refusal:
        other.take()
    assert str(refusal.value) == (
        f"{store} is being run by {platform.node()} (process {os.getpid()}); wait for it or stop it first"
    )
    other.release()
    driver.check()
    assert content(store) != {}, "who never had it does not give it back"
    driver.release()


@pytest.mark.parametrize(("machine", "waits"), [("one", False), ("two", True)])
def test_a_dead_drivers_lease_is_taken_over(store: Store, machine: str, waits: bool) -> None:
    dead, heir = Driver(store, "one"), Driver(store, machine)
    dead.take()
    dead.die()
    before = time.monotonic()
    heir.take()
    assert (time.monotonic() - before > PATIENT["LEASE_SECONDS"]) is waits
    assert heir.said == waits * [
        f"{platform.node()} (process {os.getpid()}) held this search; watching for 1 s whether it still lives"
    ]
    heir.check()
    heir.release()


def test_a_lease_that_was_never_written_whole_is_nobodys(store: Store) -> None:
    store.write(FILE_NAME, b'{"owner": "x')
    driver = Driver(store, "one")
    driver.take()
    assert "a driver that was killed" in driver.said[0]
    driver.release()


def test_of_several_heirs_one_takes_over(store: Store) -> None:
    dead = Driver(store, "zero")
    dead.take()
    dead.die()
    heirs = [Driver(store, machine) for machine in ("one", "two", "three")]
    with ThreadPoolExecutor() as pool:
        refusals = [future.exception() for future in [pool.submit(heir.take) for heir in heirs]]
    assert sorted("is being run by" in str(refusal) for refusal in refusals) == [False, True, True]
    assert refusals.count(None) == 1
    for heir in heirs:
        heir.release()
    assert store.names("") == []


def test_nothing_is_renewed_once_it_is_given_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.0005)
    for _ in range(50):
        driver = Driver(store, "one")
        driver.take()
        time.sleep(0.002)
        driver.release()
        time.sleep(0.001)
        assert store.read(FILE_NAME) is None


def test_a_storage_that_is_away_is_told_and_lets_go_in_the_end(tmp_path: Path, store: Store) -> None:
    driver = Driver(store, "one")
    driver.take()
    store.folder.rename(tmp_path / "away")
    store.folder.write_text("no folder any more")
    time.sleep(PATIENT["LEASE_SECONDS"] * 0.7)
    with pytest.raises(OSError, match="Not a directory"):
        driver.check()
    driver.release()
    assert [message.split(" (")[0] for message in driver.said] == ["the lease could not be given back"]


# ------------------------------------------------------------------------------------------ two processes


@pytest.fixture
def process(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A driver on another machine that has the search, and adds to a file for as long as it may."""
    code = f"""
        import time
        from pathlib import Path
        from ftae.search import lease
        from ftae.storage import Store

        vars(lease).update({PATIENT})
        folder = Path({str(store.folder)!r})
        lock = folder.parent / "lock-other"
        lock.touch()
        held = lease.Lease(Store(folder), lock, print)
        held.take()
        while True:
            held.check()
            with (folder / "work").open("a") as file:
                file.write("x")
            time.sleep(0.2)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: "work" in store.names("") or process.poll() is not None)
    yield process
    process.kill()
    process.communicate()


def test_a_killed_process_is_outwaited(store: Store, process: subprocess.Popen[str]) -> None:
    with pytest.raises(FtaeError, match=rf"is being run by .* \(process {process.pid}\)"):
        Driver(store, "one").take()
    process.kill()
    process.wait()
    heir = Driver(store, "one")
    heir.take()
    assert f"(process {process.pid}) held this search" in heir.said[0]
    heir.release()


def test_a_suspended_process_that_comes_back_ends_without_a_word_written(
    store: Store, process: subprocess.Popen[str]
) -> None:
    work = store.read("work")
    wait_until(lambda: store.read("work") != work)
    os.kill(process.pid, signal.SIGSTOP)  # while it sleeps: between ``check`` and writing there is no help
    heir = Driver(store, "one")
    heir.take()
    written, taken = store.read("work"), content(store)["owner"]
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=30.0)
    assert errors.rstrip().endswith("small was taken over by another ftae driver; this one ends")
    assert store.read("work") == written
    assert content(store)["owner"] == taken
    heir.check()
    heir.release()
