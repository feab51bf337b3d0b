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
    head, rows = _head(record, storage, is_running), []
    if record.kind == "search":
        rows = leaderboard(record)[:SHOWN_ROWS]
    tracking = record.search.get("tracking") or {}
    for shown in range(len(rows), -1, -1):
        text = "\n\n".join(filter(None, [head, _table(rows[:shown])]))
        text = redacted(text, str(tracking.get("uri") or ""), storage)
        if len(text) <= longest:
            return text
    return f"{text[: longest - 1]}…"


def _head(record: SearchRecord, storage: str, is_running: bool) -> str:
    """All but the table."""
    winner = winner_of(record)
    code = "\n".join(f"# {command.purpose}\n{command.line}" for command in commands(record, winner, storage))
    parts = [
        f"**{_escaped(headline(record, winner))}**",
        *([_progress(record, is_running), *map(_escaped, notes(record))] if record.kind == "search" else []),
        f"```\n{code}\n```" if code else "",
    ]
    return "\n\n".join(filter(None, parts))


def _progress(record: SearchRecord, is_running: bool) -> str:
    state = "running" if is_running else state_of(record)
    counts = progress(record)
    trials = f"{done_of_asked(counts['done'], record.num_trials)} trials ({by_state(record) or 'none has begun'})"
    line = f"{state.capitalize()}: {trials}, {full_trainings(record.used_budget, record.budget)}."
    close = record.close
    if close is None or close.status == "complete" or not close.reason:
        return line
    return f"{line} {_escaped(close.reason)}"


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
