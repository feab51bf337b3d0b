"""The file of replayed searches, one JSON line each, and its summary."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality.unit_space import Vector

RESAMPLES = 400
SETTING = (
    "task",
    "method",
    "budget",
    "workers",
    "noise_factor",
    "diverge",
    "set",
)  # rows that differ only in their seeds
Row = dict[str, Any]


def read_results(file: Path) -> list[Row]:
    """All rows of a file; none if it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row was replayed with, but for the seed."""
    return tuple(row.get(name, "") for name in SETTING)


def interquartile_mean(values: Vector) -> float:
    """The mean of the middle half."""
    ordered, cut = np.sort(values), len(values) // 4
    return float(ordered[cut : len(values) - cut].mean())


def interval(values: Vector) -> tuple[float, float]:
    """The 90 % bootstrap interval of the interquartile mean."""
    rng = np.random.default_rng(0)
    means = [interquartile_mean(rng.choice(values, len(values))) for _ in range(RESAMPLES)]
    return float(np.quantile(means, 0.05)), float(np.quantile(means, 0.95))


def summaries(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for each setting: regret after each quarter of the budget, with an interval of the last."""
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row), {})[row["seed"]] = row  # the newest of each seed
    for key, by_seed in groups.items():
        own = list(by_seed.values())
        regrets = np.array([row["regret"] for row in own])
        found = {"regret": [interquartile_mean(column) for column in regrets.T], "interval": interval(regrets[:, -1])}
        means = {name: float(np.mean([row[name] for row in own])) for name in ("started", "finished", "cpu_seconds")}
        yield dict(zip(SETTING, key, strict=True)) | {"seeds": len(own)} | found | means


def markdown(rows: Iterable[Row]) -> str:
    """The summaries as a Markdown table."""
    titles = [
        "task",
        "method",
        "budget",
        "workers",
        "noise",
        "diverges",
        "changes",
        "seeds",
        "1/4",
        "1/2",
        "3/4",
        "all",
        "90 %",
    ]
    titles += ["started", "finished", "CPU s"]
    lines = [titles, ["---"] * len(titles)]
    for row in summaries(rows):
        low, high = row["interval"]
        setting = [row["task"], row["method"], f"{row['budget']:g}", str(row["workers"]), f"{row['noise_factor']:g}"]
        cells = [*setting, row["diverge"] or "-", row["set"] or "-", str(row["seeds"])]
        cells += [f"{regret:.3f}" for regret in row["regret"]] + [f"{low:.3f} .. {high:.3f}"]
        lines.append([*cells, f"{row['started']:.0f}", f"{row['finished']:.0f}", f"{row['cpu_seconds']:.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
