"""Writes the report again while a search runs, in a process of its own that never holds up the driver.

The same process posts to the webhooks of the search, and lives to tell that the driver was killed.

The process has a low priority, and reads the journal as anybody else does. It ends when the driver has closed the
journal, and when the driver is gone, however that ended.
"""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import ftae
from ftae.errors import FtaeError
from ftae.storage.backends import FolderStore, ObjectStore
from ftae.storage.journal import FILE_NAME as JOURNAL
from ftae.storage.store import Store, open_store

FIRST_SECONDS = 5.0  # until the first report
LEAST_SECONDS = 30.0  # between two reports
SHARE = 0.05  # of one core, at most: a large report is written less often
POLL_SECONDS = 1.0
LAST_SECONDS = 120.0  # how long the end of a search waits for the last report
CLOSED = b"closed"  # what the driver says when the journal is closed


class Tell(Protocol):
    """What is called when there may be something to tell; ``is_over``: the driver has left."""

    def __call__(self, *, is_over: bool) -> None: ...


@contextmanager
def kept_up_to_date(store: Store, notify: Callable[[str], None]) -> Iterator[None]:
    """Inside, the report of the search in ``store`` is written again and again; at the end, once more and for good.

    ``notify`` receives a line for each webhook that a message did not reach.

    The journal must be open when the block begins, and closed when it ends. A report that cannot be written is left
    out: it can be made at any time by ``ftae report``.
    """
    process = _start(store)
    if process is None:
        yield
        return
    relay = threading.Thread(target=_relay, args=(process, notify), daemon=True)
    relay.start()
    try:
        yield
    finally:
        _finish(process)
        relay.join(POLL_SECONDS)  # it ends with the process


def _start(store: Store) -> "subprocess.Popen[bytes] | None":
    storage, name = _place(store)
    # The package as this process has it, from wherever it was imported.
    paths = [str(Path(ftae.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", __name__, storage, name, str(os.getpid())]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # is closed with this process, whatever ends it
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C is for the driver. A session of its own would have its own share of the processor, too, in which a
            # low priority means nothing: Linux shares among sessions first.
            process_group=0,
        )
    except OSError:
        return None


def _relay(process: "subprocess.Popen[bytes]", notify: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            notify(line.decode(errors="replace").rstrip())


def _finish(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # it has ended before, or takes too long
        with process.stdin as told:
            told.write(CLOSED)
        process.wait(LAST_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()


def _place(store: Store) -> tuple[str, str]:
    """The storage and the name that lead to a store."""
    if isinstance(store, ObjectStore):
        storage, _, name = store.url.rpartition("/")
        return storage, name
    return str(store.folder.parent), store.folder.name


def keep_up(store: Store, news: Callable[[float], bytes | None], tell: Tell = lambda *, is_over: None) -> None:
    """Write the report whenever the journal has grown, until the driver has left.

    A journal that was not closed by then is of a driver that was killed; the last report says so.

    Args:
        store: the search.
        news: waits for so many seconds at most; returns None while the driver runs, and else ``CLOSED``, or nothing
            where the driver was killed.
        tell: is called when the journal has grown, also where that is too soon for a report, and at the end.
    """
    told, written, due, pause = -1, -1, 0.0, FIRST_SECONDS
    while news(pause) is None:
        size = _length(store)
        if size != written and (began := time.monotonic()) >= due:
            _write(store, is_live=True)
            written, due = size, time.monotonic() + (time.monotonic() - began) / SHARE
        if size != told:
            tell(is_over=False)
            told = size
        pause = LEAST_SECONDS
    _length(store)
    _write(store, is_live=False)
    tell(is_over=True)


def _length(store: Store) -> int:
    """The length of the journal, which is up to date then; -1 where the storage fails."""
    try:
        store.refresh()
        return (store.folder / JOURNAL).stat().st_size
    except (FtaeError, OSError):
        return -1


def _write(store: Store, *, is_live: bool) -> None:
    # Later than this module: a driver imports it, too, and needs none of what makes a report.
    from ftae.reporting.document import report_of
    from ftae.results.outcome import REPORT

    with contextlib.suppress(FtaeError, OSError):
        store.write(REPORT, report_of(store, is_live=is_live))


def news_of(driver: int) -> Callable[[float], bytes | None]:
    """``news`` for ``keep_up``: what the driver writes to standard input, which ends with the driver.

    The process of the driver is watched, too: a process that it has forked may keep the input open.
    """

    def news(seconds: float) -> bytes | None:
        deadline = time.monotonic() + seconds
        while os.getppid() == driver:
            left = deadline - time.monotonic()
            if left <= 0.0:
                return None
            if select.select([sys.stdin.buffer], [], [], min(left, POLL_SECONDS))[0]:
                return sys.stdin.buffer.read(len(CLOSED))
        return b""

    return news


def main(storage: str, name: str, driver: str) -> None:
    """The process: ``python -m ftae.reporting.keep_up STORAGE NAME DRIVER``."""
    os.nice(10)
    store = open_store(storage, name, "reader") if "://" in storage else FolderStore(Path(storage) / name)
    # Later than this module, as above.
    from ftae.reporting.notification import Notifier

    keep_up(store, news_of(int(driver)), Notifier(store, _say).update)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the driver is gone
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
