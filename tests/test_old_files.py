"""Damaged journals, and those of another version of ftae: one message each, and other searches are not affected."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, small_search
from commands import Ftae, commands_in

from ftae.cluster.status import describe, state
from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.stored_spec import run_of, search_of
from ftae.results.summary import UnreadableSearch, leaderboard, read_record, record_of
from ftae.results.verdict import verdict
from ftae.search.state import SearchState
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME

SEARCH = small_search()

Event = dict[str, Any]


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """Runs a command in ``tmp_path``."""
    return commands_in(tmp_path, monkeypatch, capsys)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def make_search(folder: Path) -> list[Event]:
    """A closed search of a baseline and two trials; returns the events of its journal."""
    folder.mkdir(parents=True)
    search = SEARCH.model_copy(update={"name": folder.name})
    made = SearchState(search, FolderStore(folder), {"versions": {"ftae": "0.0.7"}})
    for number in range(3):
        made.next_trial()
        made.start(number, "here", 1, 0)
        checkpoint = folder / f"trials/{number:04d}/checkpoints/step-00000012"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        metrics = {"val/psnr": 20.0 + number, "val/ssim": 0.5, "val/accuracy": 0.5}
        made.report(number, eval_report(12 if number else 0, 0.0, metrics=metrics))
    made.close("complete")
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def write(folder: Path, events: list[Any]) -> None:
    (folder / FILE_NAME).write_text("".join(json.dumps(event) + "\n" for event in events))


def put_journal(folder: Path, content: bytes | None) -> None:
    """Write a journal of these bytes; None puts a folder in its place."""
    folder.mkdir(parents=True)
    if content is None:
        (folder / FILE_NAME).mkdir()
    else:
        (folder / FILE_NAME).write_bytes(content)


BAD = {
    "empty": (b"", "never began"),
    "cut in its first line": (b'{"event": "open", "ti', "never began"),
    "binary": (bytes(range(256)) * 8 + b"\n", "damaged"),
    "zeros": (bytes(4096) + b"\n", "damaged"),
    "nested": (b"[" * 100_000 + b"\n", "damaged"),
    "no events": (b'5\n"text"\n[]\n', "damaged"),
    "of nothing": (b'{"event": "close", "time": 1.0, "status": "complete", "reason": null}\n', "damaged"),
    "a folder": (None, "unreadable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_journal_is_one_row_of_the_list(kind: str, ftae: Ftae, tmp_path: Path) -> None:
    content, expected = BAD[kind]
    make_search(tmp_path / "searches" / "good")
    put_journal(tmp_path / "searches" / "bad", content)
    result = ftae("list", "--json")
    states = {status["search"]: status["state"] for status in json.loads(result.out)["searches"]}
    assert (result.status, states) == (0, {"good": "complete", "bad": expected})
    assert result.err.startswith("warning: bad: ")
    assert len(result.err.splitlines()) == 1
    row = ftae("list").out.splitlines()[2]
    assert row.split()[0] == "bad"
    assert expected in row
    good = ftae("status", "good")
    assert (good.status, good.err) == (0, "")


def readers(name: str) -> list[list[str]]:
    """The commands that read a search and start none."""
    plain = [[command, name] for command in ("status", "show", "best", "export", "sync", "resume", "evaluate")]
    return [*plain, ["extend", name, "--trials", "1"], ["sample", name, "--out", "o"], ["reconstruct", name, ".", "o"]]


@pytest.mark.parametrize("kind", BAD)
def test_every_command_refuses_a_bad_journal_in_one_message(kind: str, ftae: Ftae, tmp_path: Path) -> None:
    put_journal(tmp_path / "searches" / "bad", BAD[kind][0])
    for arguments in readers("bad"):
        result = ftae(*arguments)
        assert (result.status, result.out) == (1, ""), arguments
        assert result.err.startswith("error: "), arguments
        assert len(result.err.splitlines()) == 1, arguments


def test_a_storage_that_cannot_be_read_has_its_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_search(tmp_path / "small")
    assert read_record("other", str(tmp_path)) is None
    assert describe("other", [], None)["state"] == "not visible here"

    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("ftae.results.summary.replay", refused)
    found = read_record("small", str(tmp_path))
    assert isinstance(found, UnreadableSearch)
    assert (state([], found), str(found.error)) == ("unreadable", f"[Errno 13] Permission denied: '{tmp_path}/small'")
    assert record_of("small", str(tmp_path)) is None


def without(events: list[Event], kind: str, field: str) -> list[Event]:
    return [{k: v for k, v in e.items() if k != field} if e["event"] == kind else e for e in events]


def test_a_field_that_is_missing_or_of_another_type_is_never_a_traceback(tmp_path: Path) -> None:
    events = make_search(tmp_path / "small")
    tried = 0
    for kind in {event["event"] for event in events}:
        for field in {field for event in events if event["event"] == kind for field in event}:
            others: list[Any] = [None, True, -1, 1e999, "x", [], {}]
            changed = [[e | {field: other} if e["event"] == kind else e for e in events] for other in others]
            for variant in [without(events, kind, field), *changed]:
                write(tmp_path / "small", variant)
                tried += 1
                with suppress(FtaeError):
                    record = replay(tmp_path / "small")
                    describe("small", [], record)
                    leaderboard(record)
                    for trial in record.ranked():
                        verdict(record, trial)
                        run_of(record, trial)
    assert tried > 200


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"event": "report", "trial": 7, "step": 12}, "'report' has no value"),
        ({"event": "note", "trial": 7, "text": "lost"}, "'note' is of trial 7, which is not known"),
        ({"event": "end", "trial": 1, "status": "finished", "reason": None}, "which is not running"),
        ({"event": "suggest", "trial": 1, "params": {}, "kind": "sampled"}, "it suggests trial 1 in an unknown way"),
        ({"event": "suggest", "trial": 3, "params": {}, "kind": "guessed"}, "it suggests trial 3 in an unknown way"),
        ({"event": "note", "text": "lost"}, "'note' has no trial"),
    ],
)
def test_an_event_that_does_not_fit_is_named(event: Event, why: str, tmp_path: Path) -> None:
    events = make_search(tmp_path / "small")
    write(tmp_path / "small", [*events, {"time": 1.0} | event])
    with pytest.raises(FtaeError, match=f"is damaged, or by another version of ftae: .*{why}"):
        replay(tmp_path / "small")


def test_events_of_a_later_version_are_left_out_with_a_warning(tmp_path: Path) -> None:
    events = make_search(tmp_path / "searches" / "small")
    promoted = {"event": "promote", "time": 1.0, "trial": 9}
    write(tmp_path / "searches" / "small", [*events[:4], promoted, promoted, *events[4:]])
    result = run("-m", "ftae", "show", "small", "--json", cwd=tmp_path)
    assert (result.returncode, len(json.loads(result.stdout)["trials"])) == (0, 3)
    warning = "events of a kind that this version of ftae lacks are left out: 2 of 'promote'\n"
    assert result.stderr.endswith(warning)
    assert result.stderr.count("\n") == 1


def changed(events: list[Event], change: Callable[[Any], object]) -> list[Event]:
    """The events with another search."""
    copied: list[Event] = json.loads(json.dumps(events))
    change(copied[0]["search"])
    return copied


OTHER_VERSIONS: dict[str, Callable[[Any], object]] = {
    "a new field": lambda search: search.update(priority=1),
    "a new field deeper down": lambda search: search["finetune"]["model"].update(attention=True),
    "a new family": lambda search: search["finetune"]["model"].update(family="conv_vae_3"),
    "a new metric": lambda search: search["finetune"].update(metrics=["psnr", "ssim", "accuracy", "dreamsim"]),
    "a field that is gone": lambda search: search["finetune"].pop("data"),
    "a new kind of value": lambda search: search["search"].update(scheduler="asha"),
}


@pytest.mark.parametrize("kind", OTHER_VERSIONS)
def test_a_search_of_another_version_is_read_or_refused_in_one_message(kind: str, ftae: Ftae, tmp_path: Path) -> None:
    folder = tmp_path / "searches" / "small"
    write(folder, changed(make_search(folder), OTHER_VERSIONS[kind]))
    for command in ("list", "status", "show", "best"):  # need not run it
        assert ftae(command, *([] if command == "list" else ["small"])).status == 0
    for arguments in readers("small")[3:]:
        result = ftae(*arguments)
        assert (result.status, result.out) == (1, ""), arguments
        assert result.err.startswith(
            "error: the journal of small was written by another version of ftae (0.0.7, this is"
        )
        assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "exports").exists()


def test_fewer_trials_than_are_done_are_no_fraction(ftae: Ftae, tmp_path: Path) -> None:
    folder = tmp_path / "searches" / "small"
    write(folder, changed(make_search(folder), lambda search: search["search"].update(num_trials=1)))
    assert "trials       2 (1 asked for since) done\n" in ftae("status", "small").out
    assert "2 (1 asked for since)" in ftae("list").out


def test_the_params_of_another_version_are_refused(tmp_path: Path) -> None:
    events = make_search(tmp_path / "small")
    renamed = [e | {"params": {"optimizer.rate": 1.0}} if e["event"] == "suggest" else e for e in events]
    write(tmp_path / "small", renamed)
    record = replay(tmp_path / "small")
    assert search_of(record) == SEARCH.model_copy(update={"name": "small"})
    with pytest.raises(FtaeError, match=r"unknown key 'rate' in optimizer"):
        run_of(record, record.ranked()[0])
