"""Values in the form MLflow takes: names, lengths, points, tables, times."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric

# Lengths that servers of all versions accept.
MAX_PARAM, MAX_TAG, MAX_NAME = 500, 5000, 250


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted name, as text; characters that MLflow refuses in a name as ``_<hex>``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            name = re.sub(r"[^\w.\- ]", lambda match: f"_{ord(match[0]):x}", prefix + key)
            flat[name[:MAX_NAME]] = clip(value if isinstance(value, str) else json.dumps(value), MAX_PARAM)
    return flat


def points(metrics: Mapping[str, Any], at: int, step: int) -> list[Metric]:
    """MLflow keeps an infinity as 1.8e308, which spoils every chart: only finite values are points."""
    return [
        Metric(key, float(value), at, step)
        for key, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the form of pandas' ``orient="split"``, which MLflow shows as a table.

    It takes a dot in a column's name for a path into the cell and shows nothing, so dots become slashes.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    names = [column.replace(".", "/") for column in columns]
    return json.dumps({"columns": names, "data": [[cell(row.get(column)) for column in columns] for row in rows]})


def milliseconds(event: Mapping[str, Any]) -> int:
    return int(event["time"] * 1000)


def now() -> int:
    return int(time.time() * 1000)


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
