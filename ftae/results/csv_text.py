"""Tables as CSV (RFC 4180): numbers with all their digits, texts that no spreadsheet takes for a formula."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"[=+\-@\t\r]")  # what a spreadsheet takes a cell for that begins so; page/report.js has it, too


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The text of a CSV file: a line of names, then a line a row; every line ends in CR LF.

    None is an empty cell, a truth value ``true`` or ``false``, a list JSON. A text that a spreadsheet would take for a
    formula gets a ``'`` in front.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value
