"""The plots of the section "trade-offs": several goals, constraints, and what else an improvement costs."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import plotly.graph_objects as go

from ftae.reporting.plots import (
    BASELINE,
    COLOURS,
    LOOKS,
    WINNER,
    Look,
    Plot,
    axis_title,
    best_and_some,
    better_side,
    by_status,
    figure,
    named,
    points,
    robust_range,
    with_unit,
)
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.finetune.metrics import is_held_out
from ftae.specs.search.objective import Goal
from ftae.wording import count

MOST_TRIALS = 4000
MOST_PLOTS = 6


def tradeoff_plots(record: SearchRecord, winner: TrialRecord | None) -> list[Plot]:
    """One plot for each pair of metrics that belong together, at most ``MOST_PLOTS``."""
    finished = any(trial.status == "finished" for trial in record.trials.values())
    pairs = _pairs(record)[:MOST_PLOTS] if finished else []
    return [_plot(record, winner, x, y, i) for i, (x, y) in enumerate(pairs)]


def _pairs(record: SearchRecord) -> list[tuple[str, str]]:
    """The metrics along x and y: of several goals each two, else the goal with the constraints, or with the others."""
    objective = record.objective
    goals = [goal.metric for goal in objective.goals]
    if len(goals) > 1:
        return list(combinations(goals, 2))
    bounded = [constraint.metric for constraint in objective.constraints if constraint.metric not in goals]
    others = bounded or sorted(
        {name for trial in record.trials.values() for name in trial.metrics if is_held_out(name)} - set(goals)
    )
    return [(metric, goals[0]) for metric in dict.fromkeys(others)]


def _plot(record: SearchRecord, winner: TrialRecord | None, x: str, y: str, index: int) -> Plot:
    chosen, said = best_and_some(record, MOST_TRIALS)
    shown = [t for t in chosen if t.status in ("finished", "pruned") and x in t.metrics and y in t.metrics]
    plot = figure(_title(record, x), _title(record, y))
    for status, trials in by_status(shown).items():
        for is_kept in (True, False):
            members = [t for t in trials if bool(record.is_feasible(t)) is is_kept]
            if members:
                plot.add_trace(_trials(members, LOOKS[status], is_kept, len(shown), (x, y)))
    if len(record.objective.goals) > 1:
        _add_front(plot, record, x, y)
    for trial, look in ((record.baseline, BASELINE), (winner, WINNER)):
        if trial is not None and x in trial.metrics and y in trial.metrics:
            size = {"size": 17 if look is WINNER else 11}
            plot.add_trace(points(look, look.word, 0, marker=size, **_at([trial], x, y)))
    _add_bounds(plot, record, x, y)
    _set_ranges(plot, record, shown, x, y)
    caption = f"{_caption(record, shown)} {said}".strip() if index == 0 else ""
    return Plot(f"trade-off-{index}", f"{y} against {x}", caption, plot, 400)


def _title(record: SearchRecord, metric: str) -> str:
    goal = next((goal for goal in record.objective.goals if goal.metric == metric), None)
    return with_unit(metric) if goal is None else axis_title(goal)


def _trials(trials: Sequence[TrialRecord], look: Look, is_kept: bool, num_points: int, pair: tuple[str, str]) -> Any:
    name = named(look, len(trials)) if is_kept else f"{named(look, len(trials))}, constraints missed"
    marker: dict[str, Any] = {"opacity": 0.8 if look is LOOKS["finished"] else 0.5}
    if not is_kept:
        marker |= {"symbol": "cross-thin-open", "color": COLOURS["diverged"][0], "line": {"width": 1.5}}
    return points(look, name, num_points, marker=marker, **_at(trials, *pair))


def _at(trials: Sequence[TrialRecord], x: str, y: str) -> dict[str, Any]:
    return {
        "x": [trial.metrics[x] for trial in trials],
        "y": [trial.metrics[y] for trial in trials],
        "customdata": [trial.number for trial in trials],
    }


def _add_front(plot: go.Figure, record: SearchRecord, x: str, y: str) -> None:
    front = sorted(record.pareto_front(), key=lambda trial: trial.metrics[x])
    mode = "lines+markers" if len(record.objective.goals) == 2 else "markers"  # a front of three is no line here
    line = {"color": WINNER.colour, "width": 2, "shape": "linear"}
    marker = {"symbol": "circle-open", "size": 13, "line": {"width": 2}}
    name = f"Pareto front ({len(front)})"
    plot.add_trace(points(WINNER, name, 0, mode=mode, line=line, marker=marker, **_at(front, x, y)))


def _add_bounds(plot: go.Figure, record: SearchRecord, x: str, y: str) -> None:
    """The bounds of constraints as lines, with their text on the side that is missed."""
    line = {"color": COLOURS["diverged"][0], "width": 1.5, "dash": "dash"}
    for constraint in record.objective.constraints:
        note = {"annotation_text": str(constraint).replace("<", "&lt;"), "annotation_position": "top right"}
        if constraint.metric == x:
            plot.add_vline(x=constraint.bound, line=line, **note)
        elif constraint.metric == y:
            plot.add_hline(y=constraint.bound, line=line, **note)


def _set_ranges(plot: go.Figure, record: SearchRecord, shown: Sequence[TrialRecord], x: str, y: str) -> None:
    for metric, update in ((x, plot.update_xaxes), (y, plot.update_yaxes)):
        goal = next((goal for goal in record.objective.goals if goal.metric == metric), None)
        better = better_side(metric)
        if goal is None and better is not None:
            goal = Goal(metric=metric, direction=better)
        if goal is None:
            continue
        untuned = [] if record.baseline is None else [record.baseline.metrics[metric]]
        ends, _ = robust_range([trial.metrics[metric] for trial in shown], goal, untuned)
        if ends is not None:
            update(range=ends)


def _caption(record: SearchRecord, shown: Sequence[TrialRecord]) -> str:
    stopped = sum(trial.status == "pruned" for trial in shown)
    cut = f"; {stopped} of the trials were stopped before their end" if stopped else ""
    text = f"Values are those of the last report{cut}."
    if not record.objective.constraints:
        return text
    ended = [trial for trial in record.tuned if trial.status == "finished"]
    kept = sum(bool(record.is_feasible(trial)) for trial in ended)
    return f"Of {count(len(ended), 'trial')} that ran to their full budget, {kept} keep all constraints. {text}"
