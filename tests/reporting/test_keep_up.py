"""Reports of running searches: written again as the journal grows, for good at the end, ended with the driver."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reporting.journals import Story, spec_of
from reporting.page import Page
from webhook_server import SECRET, WebhookServer, webhook_server

from ftae.reporting import keep_up
from ftae.results.outcome import REPORT
from ftae.storage.backends import FolderStore

WAIT_SECONDS = 180.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebhookServer]:
    with webhook_server() as server:
        monkeypatch.setenv("FTAE_WEBHOOK", server.url)
        yield server


def begun(folder: Path, *notify: str) -> Story:
    story = Story(folder, spec_of(notify=notify))
    story.baseline()
    story.trial(1, "running")
    return story


def until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def is_live(folder: Path) -> bool:
    return bool(Page((folder / REPORT).read_bytes()).content("data")["live"])


@pytest.mark.parametrize(("share", "live"), [(math.inf, [True, True, False]), (1e-9, [True, False])])
def test_it_writes_when_the_journal_has_grown_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, live: list[bool]
) -> None:
    """What takes too large a share of a core is written at the end alone, but is told."""
    monkeypatch.setattr(keep_up, "SHARE", share)
    story = begun(tmp_path / "s")
    store = story.write()
    written: list[bytes] = []

    class Watched(FolderStore):
        def write(self, path: str, data: bytes) -> None:
            assert path == REPORT
            written.append(data)

    told = iter([None, None, None, keep_up.CLOSED])
    pauses: list[float] = []

    def news(seconds: float) -> bytes | None:
        pauses.append(seconds)
        if len(pauses) == 3:
            story.trial(2)
            story.write()
        if len(pauses) == 4:
            story.close()
            story.write()
        return next(told)

    ends: list[bool] = []
    keep_up.keep_up(Watched(store.folder), news, lambda *, is_over: ends.append(is_over))
    assert [Page(data).content("data")["live"] for data in written] == live
    assert ends == [False, False, True]
    assert pauses == [keep_up.FIRST_SECONDS, *3 * [keep_up.LEAST_SECONDS]]


def test_a_report_that_cannot_be_made_or_stored_disturbs_nobody(tmp_path: Path) -> None:
    class Full(FolderStore):
        def write(self, path: str, data: bytes) -> None:
            raise OSError("no space left")

    store = begun(tmp_path / "s").write()
    keep_up.keep_up(Full(store.folder), lambda seconds: keep_up.CLOSED)
    keep_up.keep_up(FolderStore(tmp_path / "nothing"), lambda seconds: b"")
    assert not (tmp_path / "nothing").exists()


def test_the_block_ends_with_the_last_report_and_its_notification(
    tmp_path: Path, server: WebhookServer, capfd: pytest.CaptureFixture[str]
) -> None:
    story = begun(tmp_path / "s", "FTAE_WEBHOOK")
    store = story.write()
    said: list[str] = []
    server.status = 500
    with keep_up.kept_up_to_date(store, said.append):
        story.end(1, "finished")
        story.close()
        story.write()
    assert [text.splitlines()[0] for text in server.texts] == ["made-up is complete."]
    assert len(said) == 1
    assert "the webhook of FTAE_WEBHOOK did not get a message: it answered with status 500" in said[0]
    files = [file.read_text(errors="replace") for file in store.folder.rglob("*") if file.is_file()]
    assert not [text for text in [*said, *capfd.readouterr(), *files] if SECRET in text]
    assert not is_live(store.folder)
    assert "complete" in Page((store.folder / REPORT).read_bytes()).words


DRIVER = """
import sys, time
from pathlib import Path
from ftae.reporting import keep_up
from ftae.storage.backends import FolderStore
with keep_up.kept_up_to_date(FolderStore(Path(sys.argv[1])), print):
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_the_driver_is_killed(tmp_path: Path, number: int, server: WebhookServer) -> None:
    store = begun(tmp_path / "s", "FTAE_WEBHOOK").write()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(store.folder)], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"begun\n"
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(driver.pid, number)
    driver.wait()
    until(lambda: not is_running(int(children[0])))
    assert not is_live(store.folder)
    assert [text.splitlines()[0] for text in server.texts] == [
        "made-up has lost its driver, which was killed or could not write the journal."
    ]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
