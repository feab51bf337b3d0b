"""Two real processes and one search: a driver that is killed, and one that is suspended and continues."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftae.errors import FtaeError
from ftae.storage import lease as module
from ftae.storage.backends import FolderStore
from ftae.storage.lease import FILE_NAME, Lease
from ftae.storage.store import Store

QUICK = {"RENEW_SECONDS": 0.33, "LEASE_SECONDS": 1.0, "SETTLE_SECONDS": 0.4}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "small").mkdir()
    return FolderStore(tmp_path / "small")


@pytest.fixture
def heir(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """A driver in this process, on another machine, because its lock is another one."""
    for name, value in QUICK.items():
        monkeypatch.setattr(module, name, value)
    (store.folder / "lock").touch()
    heir = Lease(store, store.folder / "lock", lambda message: None)
    yield heir
    heir.release()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def process(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A driver that holds the search, and appends to a file for as long as it may."""
    code = f"""
        import time
        from pathlib import Path
        from ftae.storage import lease
        from ftae.storage.backends import FolderStore

        vars(lease).update({QUICK})
        folder = Path({str(store.folder)!r})
        (folder / "its lock").touch()
        held = lease.Lease(FolderStore(folder), folder / "its lock", print)
        held.take()
        while True:
            held.check()
            with (folder / "work").open("a") as file:
                file.write("x")
            time.sleep(0.2)
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "work" in store.names("") or process.poll() is not None)
    yield process
    process.kill()
    process.communicate()


def test_the_lease_of_a_killed_process_runs_out(store: Store, heir: Lease, process: subprocess.Popen[str]) -> None:
    with pytest.raises(FtaeError, match=rf"is being run by .* \(process {process.pid}\)"):
        heir.take()
    process.kill()
    process.wait()
    heir.take()
    heir.check()


def test_a_suspended_process_that_continues_writes_nothing_more(
    store: Store, heir: Lease, process: subprocess.Popen[str]
) -> None:
    work = store.read("work")
    wait_until(lambda: store.read("work") != work)
    os.kill(process.pid, signal.SIGSTOP)  # while it sleeps, not between ``check`` and a write
    heir.take()
    written = store.read("work")
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=30.0)
    assert errors.rstrip().endswith("small was taken over by another ftae driver; this one ends")
    assert store.read("work") == written
    assert f'"pid": {os.getpid()}'.encode() in (store.read(FILE_NAME) or b"")
    heir.check()
