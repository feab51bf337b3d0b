"""A search in some lines of Markdown."""

from pathlib import Path

from builders import eval_report, search_spec

from ftae.results.description import description
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.search.state import SearchState
from ftae.storage.backends import FolderStore

REASON = "<b>all</b> | *workers* at http://me:secret@there were lost"


def record_of(folder: Path, values: tuple[float, ...], reason: str | None = None) -> SearchRecord:
    """A search whose trials have these values, the baseline first."""
    spec = search_spec(**{"finetune.metrics": ["psnr"], "search.num_trials": 50, "search.max_concurrent": 50})
    state = SearchState(spec, FolderStore(folder))
    for number, value in enumerate(values):
        state.next_trial()
        for step in (0,) if number == 0 else (0, 12):
            state.report(number, eval_report(step, value))
    state.close("complete" if reason is None else "failed", reason)
    return replay(folder)


def test_it_says_the_verdict_the_commands_and_the_best(tmp_path: Path) -> None:
    lines = description(record_of(tmp_path, (18.0, 21.0, 24.0)), "searches", 4000).splitlines()
    assert lines[0].startswith("**Trial 2 is the best: val/psnr 18.0000 → 24.0000 (+6.0000).")
    assert lines[2] == "Complete: 2/50 trials (2 finished), 2 full trainings."
    assert "ftae export small" in lines
    starts = [
        "| trial | status | val/psnr | ",
        "| --- | ",
        "| 2 | finished | 24 | ",
        "| 1 | finished | 21 | ",
        "| 0 | ",
    ]
    assert all(line.startswith(start) for line, start in zip(lines[-5:], starts, strict=True))


def test_rows_are_left_out_where_there_is_no_room(tmp_path: Path) -> None:
    record = record_of(tmp_path, tuple(20.0 + i / 10 for i in range(20)))
    whole, short = (description(record, "searches", length) for length in (4000, 700))
    assert whole.count("| finished |") == 10
    assert 0 < short.count("| finished |") < 10
    assert len(short) <= 700
    assert len(description(record, "searches", 40)) == 40


def test_what_others_wrote_is_text_and_without_secrets(tmp_path: Path) -> None:
    text = description(record_of(tmp_path, (18.0,), REASON), "searches", 4000)
    assert "Failed: 0/50 trials (none has begun), 0 full trainings. \\<b\\>all\\</b\\> \\| \\*workers\\*" in text
    assert "secret" not in text
