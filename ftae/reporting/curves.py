"""The plots of the section "curves": every trial by step, and the best so far over time."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ftae.reporting.plots import (
    BASELINE,
    LOOKS,
    WINNER,
    Plot,
    axis_title,
    best_and_some,
    by_status,
    evenly,
    figure,
    named,
    points,
    robust_range,
    time_unit,
)
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.storage.journal import Event
from ftae.wording import count, listed

MOST_CURVES = 400
MOST_REPORTS = 40  # of one curve
MOST_DOTS = 4000


def curve_plots(record: SearchRecord, winner: TrialRecord | None) -> list[Plot]:
    """All curves of the first goal; and, of a search, the best so far."""
    plots = [_all_curves(record, winner)]
    return plots if record.kind == "production" else [*plots, _best_so_far(record)]


def curve_of(trial: TrialRecord, metric: str) -> tuple[list[int], list[float]]:
    """The steps and values of a trial's reports, with fewer of them where there are very many."""
    reports = evenly(_measured(trial, metric), MOST_REPORTS)
    return [report["step"] for report in reports], [report["metrics"][metric] for report in reports]


def _measured(trial: TrialRecord, metric: str) -> list[Event]:
    return [report for report in trial.reports if report["metrics"].get(metric) is not None]


def _all_curves(record: SearchRecord, winner: TrialRecord | None) -> Plot:
    goal = record.objective.first
    chosen, said = best_and_some(record, MOST_CURVES)
    plot = figure("optimizer step", axis_title(goal))
    curves = {trial.number: curve_of(trial, goal.metric) for trial in chosen}
    num_points = sum(len(steps) for steps, _ in curves.values())
    for status, trials in by_status(chosen).items():
        look = LOOKS[status]
        line = {"color": look.colour, "width": 1.2, "dash": look.dash}
        plot.add_trace(points(look, named(look, len(trials)), num_points, **_lines(trials, curves, line)))
        plot.add_trace(points(look, look.word, num_points, showlegend=False, **_ends(trials, curves)))
    if winner is not None:
        line = {"color": WINNER.colour, "width": 3}
        curves.setdefault(winner.number, curve_of(winner, goal.metric))
        plot.add_trace(points(WINNER, f"{WINNER.word}: {winner.name}", 0, **_lines([winner], curves, line)))
    untuned = [] if record.baseline is None else curve_of(record.baseline, goal.metric)[1][:1]
    _add_level(plot, untuned, record.max_steps)
    values = [value for _, found in curves.values() for value in found]
    ends, outside = robust_range(values, goal, untuned)
    if ends is not None:
        plot.update_yaxes(range=ends)
        said = f"{said} {count(outside, 'value')} lie outside: double-click shows them."
    return Plot("curves", f"{goal.metric} by step", f"{_stops(record)} {said}".strip(), plot, 460, joins=True)


def _lines(
    trials: Sequence[TrialRecord], curves: Mapping[int, tuple[list[int], list[float]]], line: Mapping[str, Any]
) -> dict[str, Any]:
    """All curves as one line with gaps: thousands of traces would be slow."""
    x, y, numbers = list[int | None](), list[float | None](), list[int | None]()
    for trial in trials:
        steps, values = curves[trial.number]
        x += [*steps, None]
        y += [*values, None]
        numbers += [*[trial.number] * len(steps), None]
    opacity = 1.0 if len(trials) < 40 else 0.55
    return {"mode": "lines", "x": x, "y": y, "customdata": numbers, "line": dict(line), "opacity": opacity}


def _ends(trials: Sequence[TrialRecord], curves: Mapping[int, tuple[list[int], list[float]]]) -> dict[str, Any]:
    ends = [(trial.number, *curves[trial.number]) for trial in trials if curves[trial.number][0]]
    return {
        "x": [steps[-1] for _, steps, _ in ends],
        "y": [values[-1] for _, _, values in ends],
        "customdata": [number for number, _, _ in ends],
        "marker": {"size": 7},
    }


def _add_level(plot: go.Figure, untuned: Sequence[float], end: float) -> None:
    """The untuned model as a line over the whole width."""
    for value in untuned:
        line = {"color": BASELINE.colour, "width": 1.5, "dash": BASELINE.dash}
        plot.add_trace(
            go.Scatter(name="baseline", mode="lines", x=[0, end], y=[value, value], line=line, hoverinfo="none")
        )


def _stops(record: SearchRecord) -> str:
    """Where trials were stopped."""
    steps = Counter(trial.step for trial in record.tuned if trial.status == "pruned")
    if not steps:
        return "No trial was stopped early." if record.kind == "search" else ""
    most = sorted(step for step, _ in steps.most_common(5))
    at = listed(f"{steps[step]} at step {step}" for step in most)
    return f"{count(steps.total(), 'trial')} stopped early{', most of them' if len(steps) > 5 else ''}: {at}."


# ------------------------------------------------------------------------------------------- best so far


def _best_so_far(record: SearchRecord) -> Plot:
    goal = record.objective.first
    began = min((trial.started for trial in record.trials.values()), default=0.0)
    ended = sorted(
        (t for t in record.tuned if t.status == "finished" and t.ended is not None), key=lambda t: t.ended or 0.0
    )
    unit, unit_name = time_unit(max((trial.ended or began) - began for trial in ended) if ended else 0.0)
    hours = {trial.number: ((trial.ended or began) - began) / unit for trial in ended}
    plot = figure(f"{unit_name} since the search began", axis_title(goal))
    shown = evenly(ended, MOST_DOTS)
    placed = {"x": [hours[t.number] for t in shown], "y": [t.metrics[goal.metric] for t in shown]}
    marker = {"size": 6, "symbol": "circle-open"}
    numbers = [t.number for t in shown]
    plot.add_trace(points(LOOKS["finished"], "end of a trial", len(shown), customdata=numbers, marker=marker, **placed))
    plot.add_trace(points(WINNER, "best so far", 0, **_staircase(list(_records(record, ended)), goal.metric, hours)))
    untuned = [] if record.baseline is None else [record.baseline.metrics[goal.metric]]
    _add_level(plot, untuned, max(hours.values(), default=1.0))
    ends, _ = robust_range([t.metrics[goal.metric] for t in ended], goal, untuned)
    if ends is not None:
        plot.update_yaxes(range=ends)
    kept = " that keep the constraints" if record.objective.constraints else ""
    caption = f"Only trials that ran to their full budget{kept} count. Time in which no driver ran is included."
    return Plot("best-so-far", "Best so far over time", caption, plot, 340)


def _staircase(records: Sequence[TrialRecord], metric: str, times: Mapping[int, float]) -> dict[str, Any]:
    """The best value as a line with steps, up to the newest end."""
    values = [trial.metrics[metric] for trial in records]
    return {
        "mode": "lines+markers",
        "x": [*(times[trial.number] for trial in records), *([max(times.values())] if records else [])],
        "y": [*values, *values[-1:]],
        "customdata": [*(trial.number for trial in records), None],
        "line": {"color": WINNER.colour, "width": 2.5, "shape": "hv"},
        "marker": {"size": [*[11] * len(records), 0.1], "symbol": "star"},
    }


def _records(record: SearchRecord, ended: Sequence[TrialRecord]) -> Iterator[TrialRecord]:
    """The trials that were the best when they ended."""
    goal, best = record.objective.first, None
    for trial in ended:
        value = goal.sign * trial.metrics[goal.metric]
        if record.is_feasible(trial) and (best is None or value > best):
            best = value
            yield trial
