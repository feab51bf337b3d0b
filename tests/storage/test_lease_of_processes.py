"""Two real processes and one search: the driver that is killed, and the one that is suspended and comes back."""

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
from ftae.storage.lease import FILE_NAME, Lease
from ftae.storage.store import Store

QUICK = {"RENEW_SECONDS": 0.33, "LEASE_SECONDS": 1.0, "SETTLE_SECONDS": 0.4}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "small").mkdir()
    return Store(tmp_path / "small")


@pytest.fixture
def heir(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """The driver of this process, on another machine: its lock is another."""
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
    """A driver that has the search, and adds to a file for as long as it may."""
    code = f"""
        import time
        from pathlib import Path
        from ftae.search import lease
        from ftae.storage.store import Store

        vars(lease).update({QUICK})
        folder = Path({str(store.folder)!r})
        (folder / "its lock").touch()
        held = lease.Lease(Store(folder), folder / "its lock", print)
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


def test_a_killed_process_is_outwaited(store: Store, heir: Lease, process: subprocess.Popen[str]) -> None:
    with pytest.raises(FtaeError, match=rf"is being run by .* \(process {process.pid}\)"):
        heir.take()
    process.kill()
    process.wait()
    heir.take()
    heir.check()


def test_a_suspended_process_that_comes_back_ends_without_a_word_written(
    store: Store, heir: Lease, process: subprocess.Popen[str]
) -> None:
    work = store.read("work")
    wait_until(lambda: store.read("work") != work)
    os.kill(process.pid, signal.SIGSTOP)  # while it sleeps: between a look and the deed the journal must help
    heir.take()
    written = store.read("work")
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=30.0)
    assert errors.rstrip().endswith("small was taken over by another ftae driver; this one ends")
    assert store.read("work") == written
    assert f'"pid": {os.getpid()}'.encode() in (store.read(FILE_NAME) or b"")
    heir.check()
