"""The journal survives damage to files, and replays the search."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from ftae.errors import FtaeError
from ftae.results.replay import fold, replay
from ftae.results.search_record import Close, SearchRecord, trial_folder
from ftae.results.summary import leaderboard
from ftae.storage.journal import FILE_NAME, Journal, read

SEARCH = {
    "name": "made-up",
    "finetune": {"max_steps": 12},
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search_space": {"optimizer.lr": {}},
    "search": {"num_trials": 6},
}


def events(folder: Path) -> list[dict[str, Any]]:
    return [event for event, _ in read(folder)]


def report(trial: int, step: int, value: float) -> dict[str, Any]:
    checkpoint = f"trials/{trial:04d}/checkpoints/step-{step:08d}"
    return {
        "trial": trial,
        "step": step,
        "value": value,
        "metrics": {"val/psnr": value},
        "timing": {},
        "checkpoint": checkpoint if step else None,
        "images": f"trials/{trial:04d}/images/step-{step:08d}.png",
    }


def a_search(folder: Path, direction: str = "maximize") -> None:
    """Baseline, two finished trials, two that tie, one pruned, one diverged, one running."""
    journal = Journal(folder)
    search = SEARCH | {"objective": {"metric": "val/psnr", "direction": direction}}
    journal.append("open", search=search, digest="d", versions={})
    for number, kind in enumerate(["baseline", "file", *["sampled"] * 5]):
        journal.append("suggest", trial=number, params={"optimizer.lr": number / 10} if number else {}, kind=kind)
    ends = {0: (20.0, "finished"), 1: (21.0, "finished"), 2: (23.0, "finished"), 3: (23.0, "finished")}
    ends |= {4: (30.0, "pruned"), 5: (0.0, "diverged")}
    for number, (value, status) in ends.items():
        if status != "diverged":
            journal.append("report", **report(number, 0, 20.0))
            if number:
                journal.append("report", **report(number, 50, value))
        reason = "non-finite loss at step 3" if status == "diverged" else None
        journal.append("end", trial=number, status=status, reason=reason, value=value, step=50)
    journal.append("report", **report(6, 25, 19.0))
    journal.close()


# ---------------------------------------------------------------------------------- append and read


def test_appended_events_are_read(tmp_path: Path) -> None:
    before = time.time()
    journal = Journal(tmp_path)
    first = journal.append("open", search=SEARCH)
    second = journal.append("suggest", trial=0, params={"a.b": 1e-4, "c": None}, kind="file")
    assert events(tmp_path) == [first, second]  # while it is open
    assert first["event"] == "open"
    assert before <= first["time"] <= second["time"] <= time.time()
    journal.close()
    again = Journal(tmp_path)
    third = again.append("close", status="complete", reason=None)
    again.close()
    assert events(tmp_path) == [first, second, third]


def test_several_events_are_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    alone = [journal.append("suggest", trial=number) for number in range(2)]
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    together: list[dict[str, Any]] = [{"event": "report", "time": 1.5, "trial": 0}, {"event": "end", "time": 2.5}]
    journal.append_all(together)
    assert synced == [(tmp_path / FILE_NAME).stat().st_size]
    assert events(tmp_path) == alone + together
    journal.append("suggest", trial=2)
    assert len(synced) == 2
    journal.close()


def test_reading_continues_from_an_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append("suggest", trial=number)
    offsets = [offset for _, offset in read(tmp_path)]
    assert offsets[-1] == (tmp_path / FILE_NAME).stat().st_size
    assert [event["trial"] for event, _ in read(tmp_path, offsets[0])] == [1, 2]
    assert list(read(tmp_path, offsets[-1])) == []
    journal.append("suggest", trial=3)
    assert [event["trial"] for event, _ in read(tmp_path, offsets[-1])] == [3]
    journal.close()


def test_nan_is_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("report", value=1.0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append("report", value=float("nan"))
    assert [event["value"] for event in events(tmp_path)] == [1.0]
    journal.close()


def test_line_breaks_stay_inside_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("end", reason="one\ntwo\u2028three")
    journal.close()
    assert (tmp_path / FILE_NAME).read_bytes().count(b"\n") == 1
    assert events(tmp_path)[0]["reason"] == "one\ntwo\u2028three"


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("half", [b"{", b'{"event": "rep', b'{"event": "report", "trial": 1}', b"\x00\x00\x00\xff"])
def test_a_half_written_last_line_is_ignored_then_cut(half: bytes, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("suggest", trial=0)
    journal.close()
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole + half)
    assert [event["trial"] for event in events(tmp_path)] == [0]
    assert (tmp_path / FILE_NAME).read_bytes() == whole + half  # a reader changes nothing
    journal = Journal(tmp_path)  # another driver may still be writing the line
    assert (tmp_path / FILE_NAME).read_bytes() == whole + half
    journal.take_up()
    assert (tmp_path / FILE_NAME).read_bytes() == whole
    journal.append("suggest", trial=1)
    journal.close()
    assert [event["trial"] for event in events(tmp_path)] == [0, 1]


def test_a_journal_of_half_a_line_starts_again(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"event": "op')
    with pytest.raises(FtaeError, match="is empty: the search never began"):
        replay(tmp_path)
    journal = Journal(tmp_path)
    journal.append("open", search=SEARCH)
    journal.close()
    assert len(events(tmp_path)) == 1


@pytest.mark.parametrize("damage", [b"{]\n", b"\x00\x00\x00\x00\n", b'{"event": "\xff\xfe"}\n'])
def test_a_damaged_line_in_the_middle_is_an_error(damage: bytes, tmp_path: Path) -> None:
    first, last = b'{"event": "a", "time": 0}\n', b'{"event": "b", "time": 1}\n'
    (tmp_path / FILE_NAME).write_bytes(first + damage + last)
    with pytest.raises(FtaeError) as caught:
        list(read(tmp_path))
    assert f"{FILE_NAME}: the line before byte {len(first + damage)} is damaged" in str(caught.value)
    with pytest.raises(FtaeError, match="is damaged"):
        replay(tmp_path)


def test_only_one_driver_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(FtaeError, match="is being run by another ftae process"):
        Journal(tmp_path)
    journal.append("suggest", trial=0)  # the first one still works
    journal.close()
    Journal(tmp_path).close()
    assert len(events(tmp_path)) == 1


@pytest.mark.parametrize("writing", [True, False])
def test_a_driver_that_was_replaced_writes_nothing_more(writing: bool, tmp_path: Path) -> None:
    """The other driver is on another machine, where the lock has no effect."""
    journal = Journal(tmp_path)
    if writing:
        journal.append("suggest", trial=0)
    else:
        journal.take_up()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"event": "open"}\n')
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(FtaeError, match=f"{tmp_path} was taken over by another ftae driver; this one ends"):
        journal.append("suggest", trial=1)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    journal.close()


def test_each_line_is_replicated_before_it_is_written(tmp_path: Path) -> None:
    copied: list[tuple[int, bytes]] = []

    def replicate(offset: int, line: bytes) -> None:
        if len(copied) == 2:
            raise OSError("the store is away")
        assert (tmp_path / FILE_NAME).stat().st_size == offset
        copied.append((offset, line))

    journal = Journal(tmp_path, replicate)
    for trial in (0, 1):
        journal.append("suggest", trial=trial)
    with pytest.raises(OSError, match="the store is away"):
        journal.append("suggest", trial=2)
    whole = (tmp_path / FILE_NAME).read_bytes()
    assert b"".join(line for _, line in copied) == whole
    assert [offset for offset, _ in copied] == [0, len(copied[0][1])]
    journal.close()


def test_the_lock_of_a_killed_driver_is_free(tmp_path: Path) -> None:
    code = f"""
        import os
        from pathlib import Path
        from ftae.storage.journal import Journal

        journal = Journal(Path({str(tmp_path)!r}))
        journal.append("suggest", trial=0)
        os.kill(os.getpid(), 9)
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -9
    journal = Journal(tmp_path)
    journal.append("suggest", trial=1)
    journal.close()
    assert [event["trial"] for event in events(tmp_path)] == [0, 1]


@pytest.mark.parametrize("together", [False, True])
def test_a_full_disk_leaves_no_half_line(together: bool, tmp_path: Path) -> None:
    """A limit on the size of files makes write() stop early, like a full disk. Of two events, none is written."""
    code = f"""
        import resource, signal
        from pathlib import Path
        from ftae.storage.journal import Journal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(Path({str(tmp_path)!r}))
        journal.append("suggest", trial=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for _ in range(2):
            try:
                if {together}:
                    journal.append_all([{{"event": "note"}}, {{"event": "note", "text": "x" * 200}}])
                journal.append("report", metrics={{"val/psnr": 1.0}}, padding="x" * 200)
            except OSError as error:
                print(type(error).__name__, error.errno)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append("suggest", trial=1)
        """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["OSError", "OSError"]
    assert [event["trial"] for event in events(tmp_path)] == [0, 1]
    assert (tmp_path / FILE_NAME).read_bytes().count(b"\n") == 2


def test_replicated_events_that_could_not_be_written_are_written_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of a mirror stays full for longer than a driver retries; then there is room again."""
    elsewhere: dict[int, bytes] = {}

    def replicate(offset: int, line: bytes) -> bool:
        if elsewhere.setdefault(offset, line) != line:
            raise FtaeError("taken over")
        return True

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path, replicate)
    journal.append("suggest", trial=0)
    lost = {"event": "note", "time": 1.0, "text": "lost"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                journal.append_all([lost])
        with pytest.raises(OSError, match="No space left"):
            journal.append("close", status="failed", reason=None)
    assert len(events(tmp_path)) == 1
    journal.append("close", status="failed", reason=None)
    assert [event["event"] for event in events(tmp_path)] == ["suggest", "note", "close"]
    assert (tmp_path / FILE_NAME).read_bytes() == b"".join(line for _, line in sorted(elsewhere.items()))
    journal.close()


# ------------------------------------------------------------------------------------------- replay


def test_a_folder_without_a_journal_holds_no_search(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=r"holds no search \(no journal\.jsonl\)"):
        replay(tmp_path)


def test_trials_are_replayed(tmp_path: Path) -> None:
    a_search(tmp_path)
    record = replay(tmp_path)
    assert record.search == SEARCH
    assert list(record.trials) == list(range(7))
    assert [t.status for t in record.trials.values()] == [
        *["finished"] * 4,
        "pruned",
        "diverged",
        "running",
    ]
    second = record.trials[2]
    assert (second.kind, second.params, second.value, second.step) == ("sampled", {"optimizer.lr": 0.2}, 23.0, 50)
    assert second.metrics == {"val/psnr": 23.0}
    assert second.checkpoint == "trials/0002/checkpoints/step-00000050"
    assert [r["step"] for r in second.reports] == [0, 50]
    assert second.ended is not None
    assert second.ended >= second.started
    running = record.trials[6]
    assert record.running == {6: running}
    assert record.ended == {"finished": 3, "pruned": 1, "diverged": 1}
    assert (running.value, running.step, running.ended, running.reason) == (19.0, 25, None, None)


def test_starts_changes_and_notes_of_a_trial_change_nothing_else(tmp_path: Path) -> None:
    a_search(tmp_path)
    before = replay(tmp_path)
    journal = Journal(tmp_path)
    journal.append("preflight", probe={"step_seconds": 0.5})
    starts = [journal.append("start", trial=6, node="a", pid=1, step=step) for step in (0, 25)]
    journal.append("adapt", trial=6, changes={"batch_size": 4}, reason="out of memory at step 30")
    journal.append("adapt", trial=6, changes={"grad_accumulation": 2}, reason="again")
    journal.append("note", trial=6, text="its worker was lost")
    journal.append("note", trial=6, text="and again")
    journal.close()
    record = replay(tmp_path)
    assert record.facts == before.facts | {"probe": {"step_seconds": 0.5}}
    trial = record.trials[6]
    assert (trial.starts, trial.notes) == (starts, ["its worker was lost", "and again"])
    assert trial.settings == {"optimizer.lr": 0.6, "batch_size": 4, "grad_accumulation": 2}
    assert trial.params == before.trials[6].params
    assert leaderboard(record) == leaderboard(before)
    assert {n: t for n, t in record.trials.items() if n != 6} == {n: t for n, t in before.trials.items() if n != 6}


def test_an_empty_journal_folds_to_an_empty_record(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"event": "op')
    assert fold(tmp_path) == SearchRecord(search={})
    assert trial_folder(12) == "trials/0012"


def test_a_trial_without_reports(tmp_path: Path) -> None:
    a_search(tmp_path)
    diverged = replay(tmp_path).trials[5]
    assert (diverged.value, diverged.step, diverged.metrics, diverged.checkpoint) == (None, 0, {}, None)
    assert diverged.reason == "non-finite loss at step 3"


def test_folding_event_by_event_is_replaying(tmp_path: Path) -> None:
    a_search(tmp_path)
    record = SearchRecord(search={})
    for event, _ in read(tmp_path):
        record.apply(json.loads(json.dumps(event)))
    assert record == replay(tmp_path)


@pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 3, 1]), ("minimize", [1, 2, 3])])
def test_ranked_by_direction_ties_to_the_earlier(direction: str, order: list[int], tmp_path: Path) -> None:
    a_search(tmp_path, direction)
    assert [trial.number for trial in replay(tmp_path).ranked()] == order


def test_the_baseline_counts_once_it_is_measured(tmp_path: Path) -> None:
    record = SearchRecord(search=SEARCH)
    assert record.baseline is None
    record.apply({"event": "suggest", "trial": 0, "kind": "baseline", "params": {}, "time": 0.0})
    assert record.baseline is None
    record.apply({"event": "end", "trial": 0, "status": "finished", "reason": None, "time": 1.0})
    assert record.baseline is record.trials[0]


def test_leaderboard(tmp_path: Path) -> None:
    a_search(tmp_path)
    rows = leaderboard(replay(tmp_path))
    assert [row["trial"] for row in rows] == [2, 3, 1, 0, 4, 5, 6]
    assert rows[0] == {
        "trial": 2,
        "kind": "sampled",
        "status": "finished",
        "val/psnr": 23.0,
        "step": 50,
        "params.optimizer.lr": 0.2,
        "reason": None,
    }
    assert rows[3]["params.optimizer.lr"] is None
    assert rows[5]["reason"] == "non-finite loss at step 3"
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_a_search_that_is_reopened_is_not_closed(tmp_path: Path) -> None:
    a_search(tmp_path)
    journal = Journal(tmp_path)
    journal.append("close", status="interrupted", reason="SIGINT")
    assert replay(tmp_path).close == Close("interrupted", "SIGINT")
    extended = SEARCH | {"search": {"num_trials": 9}}
    journal.append("open", search=extended, digest="e", versions={})
    journal.close()
    record = replay(tmp_path)
    assert record.close is None
    assert record.search == extended
    assert len(record.trials) == 7
