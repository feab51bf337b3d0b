"""The plots of the section "params": parallel coordinates, slices, importance, and ranges against the good trials."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ftae.reporting.plots import (
    COLOURS,
    LOOKS,
    WINNER,
    Plot,
    axis_title,
    best_and_some,
    by_status,
    figure,
    named,
    points,
)
from ftae.reporting.safe import in_plot
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.search.analysis.importance import Importance
from ftae.search.analysis.ranges import RangeUse
from ftae.specs.search.objective import Goal

MOST_LINES = 3000
MOST_SLICE_POINTS = 500  # each is an element of the page
GOLDEN = 0.618  # multiples of it spread evenly, and are the same in every report
ABSENT = "none"


class Axis:
    """The values of one param as numbers along an axis, with the texts of its ticks.

    ``given``: its distribution, as the journal has it. Values that are no numbers have places of their own: choices in
    their order, null, and trials in which the param does not exist.
    """

    def __init__(self, given: Mapping[str, Any], values: Sequence[Any]) -> None:
        self.choices = [_key(choice) for choice in given.get("choices", ())]
        self.is_log = bool(given.get("log"))
        self._is_whole = isinstance(given.get("low"), int) and isinstance(given.get("high"), int)
        numbers = [v for v in values if self._is_number(v)]
        ends = [end for end in (given.get("low"), given.get("high")) if self._is_number(end)]
        scaled = [self._scaled(v) for v in [*numbers, *ends]] or [0.0, 1.0]
        self.low, self.high = min(scaled), max(scaled)
        span = self.high - self.low or 1.0
        others = list(dict.fromkeys(_key(v) for v in values if self.choices or not self._is_number(v)))
        if self.choices:
            self._places = {key: float(i) for i, key in enumerate(dict.fromkeys([*self.choices, *others]))}
            self.low, self.high = -0.5, len(self._places) - 0.5
        else:
            self._places = {key: self.low - (0.12 + 0.1 * i) * span for i, key in enumerate(others)}

    def at(self, value: Any) -> float:
        """The place of a value."""
        key = _key(value)
        return self._places[key] if key in self._places else self._scaled(value)

    @property
    def ends(self) -> list[float]:
        """The ends of the axis."""
        pad = 0.02 * ((self.high - self.low) or 1.0)
        return [min([self.low, *self._places.values()]) - pad, self.high + pad]

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places of ticks and their texts."""
        places = {place: in_plot(key[:18]) for key, place in self._places.items()}
        if not self.choices:
            places |= {place: _short(self._value(place)) for place in self._spread()}
        return list(places), list(places.values())

    def _spread(self) -> list[float]:
        if self.is_log and self.high - self.low >= 1.0:
            decades = list(range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1))
            return [float(d) for d in decades[:: max(1, len(decades) // 5)]]
        even = [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        return sorted({float(round(place)) for place in even}) if self._is_whole and not self.is_log else even

    def _is_number(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and (value > 0 or not self.is_log)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else float(value)

    def _value(self, place: float) -> float:
        return 10.0**place if self.is_log else place


def _key(value: Any) -> str:
    return ABSENT if value is None else value if isinstance(value, str) else json.dumps(value)


def _short(value: float) -> str:
    return f"{value:.2g}" if value and abs(value) < 100 else f"{value:.4g}"


def axis_of(record: SearchRecord, path: str, trials: Sequence[TrialRecord]) -> Axis:
    """The axis of one param."""
    return Axis(record.search["search_space"][path], [trial.params.get(path) for trial in trials])


# -------------------------------------------------------------------------------------- parallel coordinates


def parallel_coordinates(record: SearchRecord) -> Plot | None:
    """Each trial as a line through its params to its values. None without trials that have reported."""
    chosen, said = best_and_some(record, MOST_LINES)
    chosen = [trial for trial in chosen if trial.reports]
    if not chosen:
        return None
    goals = record.objective.goals
    first = goals[0]
    dimensions = [_dimension(record, path, chosen) for path in record.searched]
    shares = [trial.step / record.max_steps for trial in chosen]
    dimensions.append({"label": "share of the budget", "values": shares, "range": [0.0, 1.0]})
    dimensions += [
        {"label": in_plot(goal.metric), "values": [trial.metrics[goal.metric] for trial in chosen]} for goal in goals
    ]
    dimensions.append({"label": "trial", "values": [trial.number for trial in chosen], "tickformat": "d"})
    values = [first.sign * trial.metrics[first.metric] for trial in chosen]
    trace = go.Parcoords(
        dimensions=dimensions,
        line={"color": values, "colorscale": _scale(), "cmin": _low(values), "cmax": max(values), "showscale": False},
        labelangle=-18,
        labelside="top",
        customdata=[trial.number for trial in chosen],
    )
    plot = go.Figure(trace, layout={"template": "none", "margin": {"l": 64, "r": 64, "t": 86, "b": 28}})
    caption = (
        "Drag along an axis to keep the trials that pass there; drag axes to reorder them. The stronger the colour, "
        f"the better {first.metric} at the last report. {said}"
    )
    return Plot("parallel", "All params at once", caption.strip(), plot, 440, least_width=105 * len(dimensions))


def _dimension(record: SearchRecord, path: str, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    axis = axis_of(record, path, trials)
    places, texts = axis.ticks()
    values = [axis.at(trial.params.get(path)) for trial in trials]
    return {
        "label": in_plot(short_name(path)),
        "values": values,
        "range": axis.ends,
        "tickvals": places,
        "ticktext": texts,
    }


def short_name(path: str) -> str:
    """The last two parts of a path."""
    return ".".join(path.split(".")[-2:])


def _scale() -> list[list[Any]]:
    return [[0.0, COLOURS["faint"][0]], [0.6, COLOURS["finished"][0]], [1.0, COLOURS["winner"][0]]]


def _low(values: Sequence[float]) -> float:
    """Where colours begin, so that a few very bad trials do not make all others look the same."""
    return sorted(values)[len(values) // 4]


# -------------------------------------------------------------------------------------------------- slices


def slices(record: SearchRecord, goal: Goal, winner: TrialRecord | None) -> list[Plot]:
    """One plot for each param: its values against the value of the goal at the last report."""
    chosen, said = best_and_some(record, MOST_SLICE_POINTS)
    chosen = [trial for trial in chosen if trial.reports and goal.metric in trial.metrics]
    return [_slice(record, goal, path, i, chosen, winner, said) for i, path in enumerate(record.searched) if chosen]


def _slice(
    record: SearchRecord,
    goal: Goal,
    path: str,
    index: int,
    trials: Sequence[TrialRecord],
    winner: TrialRecord | None,
    said: str,
) -> Plot:
    axis = axis_of(record, path, trials)
    plot = figure(path, axis_title(goal) if index == 0 else goal.metric, showlegend=False)
    plot.update_layout(margin={"l": 48, "r": 10, "t": 8, "b": 44})
    for status, members in by_status(trials).items():
        look = LOOKS[status]
        marker = {"size": 7, "opacity": 0.85 if status == "finished" else 0.6}
        plot.add_trace(points(look, named(look, len(members)), 0, marker=marker, **_placed(axis, path, goal, members)))
    if winner is not None and winner.reports:
        plot.add_trace(
            points(WINNER, WINNER.word, 0, marker={"size": 15}, **_placed(axis, path, goal, [winner])),
        )
    places, texts = axis.ticks()
    plot.update_xaxes(tickvals=places, ticktext=texts, range=axis.ends)
    return Plot(f"slice-{index}", short_name(path), said if index == 0 else "", plot, 250)


def _placed(axis: Axis, path: str, goal: Goal, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    x = [axis.at(trial.params.get(path)) for trial in trials]
    if axis.choices:  # beside each other, or they would hide each other
        x = [at + 0.5 * ((trial.number * GOLDEN) % 1.0 - 0.5) for at, trial in zip(x, trials, strict=True)]
    return {
        "x": x,
        "y": [trial.metrics[goal.metric] for trial in trials],
        "customdata": [trial.number for trial in trials],
    }


# ------------------------------------------------------------------------------------ importance and ranges


def importance_plot(found: Importance, index: int) -> Plot | None:
    """The shares of both evaluators as bars; None where there are none."""
    if not found.overall:
        return None
    paths = list(found.overall)[::-1]
    plot = figure("share", "", barmode="group", bargap=0.25)
    bars = (
        ("all differences (fANOVA)", found.overall, COLOURS["finished"][0], ""),
        ("reaching the best tenth (PED-ANOVA)", found.at_the_top, COLOURS["winner"][0], "/"),
    )
    for name, shares, colour, pattern in reversed(bars):
        if shares:
            plot.add_trace(
                go.Bar(
                    name=name,
                    orientation="h",
                    y=[in_plot(path) for path in paths],
                    x=[shares.get(path) for path in paths],
                    text=["" if path not in shares else f"{shares[path]:.0%}" for path in paths],
                    textposition="auto",
                    hoverinfo="none",
                    marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay"}},
                )
            )
    plot.update_xaxes(tickformat=".0%", rangemode="tozero")
    plot.update_layout(legend={"traceorder": "reversed"})
    plot.update_yaxes(ticks="")
    height = 130 + (52 if found.at_the_top else 34) * len(paths)
    return Plot(f"importance-{index}", f"What mattered for {found.metric}", "", plot, height)


def ranges_plot(uses: Sequence[RangeUse], winner: TrialRecord | None) -> Plot | None:
    """Each range from its low to its high end, with all trials and the good ones; None without ranges."""
    if not any(use.all for use in uses):
        return None
    plot = figure("from the low end of the range to the high end", "")
    look, faint = LOOKS["finished"], COLOURS["faint"][0]
    tick = {"symbol": "line-ns-open", "size": 16, "color": faint, "line": {"width": 1.5, "color": faint}}
    rows = {use.path: len(uses) - 1 - i for i, use in enumerate(uses)}
    num_points = sum(len(use.all) for use in uses)
    every = max(1, num_points // 4000)
    of_all = [(at, rows[use.path], number) for use in uses for number, at in list(use.all.items())[::every]]
    of_good = [(at, rows[use.path], number) for use in uses for number, at in use.good.items()]
    best = [] if winner is None else [(at, y, number) for at, y, number in of_good if number == winner.number]
    plot.add_trace(points(look, "all trials", len(of_all), marker=tick, **_places(of_all)))
    marker = {"size": 11, "opacity": 0.75, "line": {"width": 1, "color": look.colour}}
    plot.add_trace(points(look, "the best of those that finished", 0, marker=marker, **_places(of_good)))
    plot.add_trace(points(WINNER, WINNER.word, 0, marker={"size": 17}, **_places(best)))
    texts = [f"{in_plot(short_name(use.path))}<br><sup>{use.low:.3g} to {use.high:.3g}</sup>" for use in uses]
    plot.update_yaxes(tickvals=list(rows.values()), ticktext=texts, ticks="")
    plot.update_yaxes(range=[-0.7, len(rows) - 0.3], zeroline=False)
    plot.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 1], ticktext=["low", "high"], zeroline=False)
    return Plot("ranges", "Where the good trials lie", "", plot, 120 + 46 * len(rows))


def _places(found: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    return {
        "x": [at for at, _, _ in found],
        "y": [row for _, row, _ in found],
        "customdata": [number for _, _, number in found],
    }
