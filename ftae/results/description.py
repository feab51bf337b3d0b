"""A search or a production run in some lines of Markdown, for the page that an experiment tracker shows of it."""

import re
from typing import Any

from ftae.results.conclusion import BY_STATUS, by_state, commands, headline, winner_of
from ftae.results.search_record import SearchRecord
from ftae.results.summary import leaderboard, progress, state_of
from ftae.results.verdict import notes
from ftae.specs.reading.names import redacted
from ftae.wording import done_of_asked, full_trainings

SHOWN_ROWS = 10  # of the leaderboard
NOT_SHOWN = ("kind", "forecast", "forecast_sd", "step", "reason")  # columns of the leaderboard


def description(record: SearchRecord, storage: str, longest: int, *, is_running: bool = False) -> str:
    """Verdict, progress, the commands to run next, and the top of the leaderboard, as Markdown.

    Args:
        record: what the journal holds.
        storage: where the search is, as options name it.
        longest: the number of characters that the text may have; rows of the leaderboard are left out for it.
        is_running: whether the driver is known to be alive, which no journal tells.
    """
    for rows in range(SHOWN_ROWS, -1, -1):
        text = _text(record, storage, rows, is_running)
        if len(text) <= longest:
            break
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _text(record: SearchRecord, storage: str, rows: int, is_running: bool) -> str:
    winner, is_search = winner_of(record), record.kind == "search"
    code = "\n".join(f"# {command.purpose}\n{command.line}" for command in commands(record, winner, storage))
    parts = [
        f"**{_escaped(headline(record, winner))}**",
        *([_progress(record, is_running), *map(_escaped, notes(record))] if is_search else []),
        f"```\n{code}\n```" if code else "",
        _table(leaderboard(record)[:rows]) if is_search else "",
    ]
    tracking = record.search.get("tracking") or {}
    return redacted("\n\n".join(filter(None, parts)), str(tracking.get("uri") or ""), storage)


def _progress(record: SearchRecord, is_running: bool) -> str:
    state = "running" if is_running else state_of(record)
    counts = progress(record)
    trials = f"{done_of_asked(counts['done'], record.num_trials)} trials ({by_state(record) or 'none has begun'})"
    line = f"{state.capitalize()}: {trials}, {full_trainings(record.used_budget, record.budget)}."
    close = record.close
    return (
        line if close is None or close.status == "complete" or not close.reason else f"{line} {_escaped(close.reason)}"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    columns = [column for column in rows[0] if column not in NOT_SHOWN]
    lines = [
        [column.removeprefix("params.").replace("within_noise", "within noise") for column in columns],
        ["---"] * len(columns),
    ]
    lines += [[_cell(column, row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.3g}" if column.startswith("params.") else f"{value:.5g}"
    return _escaped(BY_STATUS.get(value, value) if column == "status" else str(value))


def _escaped(text: str) -> str:
    """A text in one line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))
