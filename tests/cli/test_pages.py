"""The commands that lead to a page: report and ui."""

import socket
import webbrowser
from pathlib import Path

import pytest
import typer
from builders import eval_report, search_dict
from commands import Ftae, commands_in

from ftae.cli import browser, tracking
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.store import open_store


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    return commands_in(tmp_path, monkeypatch, capsys)


def make_search(storage: str, **changes: object) -> None:
    spec = SearchSpec.model_validate(search_dict(**changes))
    store = open_store(storage, spec.name, "driver")
    store.folder.mkdir(parents=True, exist_ok=True)
    state = SearchState(spec, store)
    for number in (0, 1):
        state.next_trial()
        state.report(number, eval_report(12 * number, 18.0 + number))
    state.close("complete")


def test_a_report_opens_in_the_browser(ftae: Ftae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_search(str(tmp_path / "searches"))
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    result = ftae("report", "small", "--open")
    file = tmp_path / "searches" / "small" / "report.html"
    assert (result.status, result.out) == (0, f"{file}\n")
    assert opened == [file.as_uri()]


def test_an_object_store_keeps_its_report(ftae: Ftae, bucket: str) -> None:
    make_search(bucket, **{"tracking.uri": "http://127.0.0.1:9"})
    result = ftae("report", "small", "--storage", bucket)
    assert result.status == 0
    content = Path(result.out.rstrip()).read_bytes()
    assert b"val/psnr" in content
    assert open_store(bucket, "small", "reader").read("report.html") == content


def test_the_ui_is_served_and_leads_to_a_search(ftae: Ftae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_search(str(tmp_path / "searches"))
    ftae("sync", "small")
    served: list[list[str]] = []
    opened: list[list[str]] = []
    monkeypatch.setattr(tracking.os, "execv", lambda program, command: served.append(command))
    monkeypatch.setattr(tracking.subprocess, "Popen", opened.append)
    result = ftae("ui", "small", "--port", "5678", "--open")
    page = result.out.rstrip()
    assert page.startswith("http://127.0.0.1:5678/#/experiments/1/runs/")
    assert [command[-6:] for command in served] == [
        ["--backend-store-uri", f"sqlite:///{tmp_path}/searches/mlflow.db", "--host", "127.0.0.1", "--port", "5678"]
    ]
    assert [command[-3:] for command in opened] == [["127.0.0.1", "5678", page]]
    missing = ftae("ui", "other")
    assert (missing.status, missing.err) == (1, "error: there is no search 'other' in searches; choose one of small\n")


def test_a_browser_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) is None)
    monkeypatch.setattr(browser, "LONGEST_SECONDS", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not browser.open_when_served("127.0.0.1", port, "page")
        listener.listen()
        monkeypatch.setattr(browser, "LONGEST_SECONDS", 600.0)
        assert browser.open_when_served("127.0.0.1", port, "page")
    assert opened == ["page"]
