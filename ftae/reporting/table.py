"""The trials as a table: what the leaderboard shows, sorts, filters and gives as CSV."""

from typing import Any

from ftae.reporting.curves import curve_of
from ftae.reporting.params import short_name
from ftae.reporting.plots import BASELINE, LOOKS, WINNER
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.results.summary import leaderboard

LONGEST_CELL = 500  # characters


def trial_table(record: SearchRecord, winner: TrialRecord | None) -> dict[str, Any]:
    """The leaderboard as plain values: ``columns`` (key, title, whether numbers), and ``rows`` of their values.

    ``curves`` has steps and values of the first goal by trial, and ``looks`` how states are called and marked.
    """
    rows = [_with_times(record, row) for row in leaderboard(record)]
    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)] if rows else []
    metric = record.objective.first.metric
    curves = {trial.number: curve_of(trial, metric) for trial in record.trials.values() if trial.reports}
    return {
        "columns": [_column(key, rows) for key in keys],
        "rows": [[_cell(row[key]) for key in keys] for row in rows],
        "metric": metric,
        "searched": record.searched,
        "winner": None if winner is None else winner.number,
        "curves": {str(number): curve for number, curve in curves.items()},
        "looks": {status: {"word": look.word, "glyph": look.glyph} for status, look in LOOKS.items()}
        | {look.word: {"word": look.word, "glyph": look.glyph} for look in (BASELINE, WINNER)},
    }


def _with_times(record: SearchRecord, row: dict[str, Any]) -> dict[str, Any]:
    trial = record.trials[row["trial"]]
    seconds = None if trial.ended is None else round(trial.ended - trial.started, 1)
    reason = row.pop("reason")
    return row | {"seconds": seconds, "reason": reason}


def _column(key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = [row[key] for row in rows if row[key] is not None]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return {"key": key, "title": _title(key), "number": is_number}


def _title(key: str) -> str:
    return short_name(key.removeprefix("params.")) if key.startswith("params.") else key.replace("_", " ")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"
