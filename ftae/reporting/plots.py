"""What all plots of a report share: how trials look by their state, colours, axes, and how many points are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import plotly.graph_objects as go

from ftae.reporting.safe import in_plot
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.finetune.metrics import METRICS, unit_of
from ftae.specs.search.objective import Goal
from ftae.wording import count

T = TypeVar("T")
SVG_POINTS = 1500  # more points of one plot are drawn by WebGL

# Each colour on a light and on a dark page. The page replaces one by the other, wherever a plot has it.
COLOURS = {
    "finished": ("#2563c9", "#79b0ff"),
    "pruned": ("#7d8590", "#8b95a3"),
    "diverged": ("#c62f3b", "#ff8080"),
    "failed": ("#7b3fc4", "#c49bff"),
    "running": ("#0f7f72", "#4fd1bf"),
    "baseline": ("#1f2328", "#eceff4"),
    "winner": ("#c2540a", "#ffa657"),
    "faint": ("#c3c9d2", "#4a525e"),
}


@dataclass(frozen=True)
class Look:
    """How trials of one state look, also without colour. ``word``: how the page calls the state."""

    word: str
    colour: str
    symbol: str
    dash: str
    glyph: str


LOOKS = {
    "finished": Look("finished", COLOURS["finished"][0], "circle", "solid", "●"),
    "pruned": Look("stopped", COLOURS["pruned"][0], "diamond-open", "dot", "◇"),
    "diverged": Look("diverged", COLOURS["diverged"][0], "x", "dash", "✕"),
    "failed": Look("failed", COLOURS["failed"][0], "triangle-up", "dashdot", "▲"),
    "running": Look("running", COLOURS["running"][0], "circle-open", "longdash", "○"),
}
BASELINE = Look("baseline", COLOURS["baseline"][0], "square", "longdashdot", "■")
WINNER = Look("best", COLOURS["winner"][0], "star", "solid", "★")


@dataclass(frozen=True)
class Plot:
    """A plot, and what is said about it.

    Attributes:
        name: unique on the page.
        title: what it shows.
        caption: how to read it, and what it leaves out.
        figure: a point whose ``customdata`` is the number of a trial belongs to that trial.
        height: in pixels.
        least_width: in pixels; a narrower page scrolls.
        joins: whether the points of one trial are a line.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure
    height: int = 380
    least_width: int = 0
    joins: bool = False


def figure(x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with titles of its axes; the page gives it its colours and its font."""
    axis = {"automargin": True, "ticks": "outside", "ticklen": 4}
    return go.Figure(
        layout={
            "template": "none",
            "margin": {"l": 60, "r": 16, "t": 12, "b": 52},
            "xaxis": {**axis, "title": {"text": in_plot(x), "standoff": 8}},
            "yaxis": {**axis, "title": {"text": in_plot(y), "standoff": 8}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0.0, "itemsizing": "constant"},
            "hovermode": "closest",
            "hoverdistance": 24,
            **layout,
        }
    )


def points(look: Look, name: str, num_points: int, **trace: Any) -> go.Scatter | go.Scattergl:
    """A trace of trials. Many points are drawn by WebGL, which does not slow down. The page shows what is hovered."""
    style: dict[str, Any] = {"symbol": look.symbol, "size": 8, "color": look.colour, **trace.pop("marker", {})}
    kind = go.Scattergl if num_points > SVG_POINTS else go.Scatter
    return kind(name=name, marker=style, hoverinfo="none", **{"mode": "markers", **trace})


def named(look: Look, number: int) -> str:
    """An entry of a legend: ``◇ stopped (12)``. The symbol itself is in the plot."""
    return f"{look.word} ({number})"


def axis_title(goal: Goal) -> str:
    """``val/psnr in dB, more is better``."""
    better = "more" if goal.direction == "maximize" else "less"
    return f"{with_unit(goal.metric)}, {better} is better"


def with_unit(metric: str) -> str:
    """``val/psnr in dB``."""
    unit = unit_of(metric)
    return f"{metric} in {unit}" if unit else metric


def better_side(metric: str) -> Literal["minimize", "maximize"] | None:
    """The direction in which a metric improves; None where either may be wanted, or it is not known."""
    known = METRICS.get(metric.partition("/")[2])
    return None if known is None else known.better


def by_status(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The trials of each state, in the order of ``LOOKS``; states without trials are left out."""
    found: dict[str, list[TrialRecord]] = {status: [] for status in LOOKS}
    for trial in trials:
        found[trial.status].append(trial)
    return {status: members for status, members in found.items() if members}


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit for an axis of this length: its seconds, and its name in the plural."""
    units = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
    return next(((size, name) for size, name in units if seconds >= 2.5 * size), (1.0, "seconds"))


def best_and_some(record: SearchRecord, most: int) -> tuple[list[TrialRecord], str]:
    """The tuned trials to draw, at most ``most``, and a sentence that says which they are; empty where it is all.

    That are the best third of that number, and evenly many of the others from first to last, in order of their numbers.
    """
    trials = record.tuned
    if len(trials) <= most:
        return trials, ""
    best = {trial.number for trial in record.ranked()[: most // 3]}
    others = evenly([trial for trial in trials if trial.number not in best], most - len(best))
    chosen = best | {trial.number for trial in others}
    said = f"Drawn are {count(len(chosen), 'trial')} of {len(trials)}: the best {len(best)}, and evenly many others."
    return [trial for trial in trials if trial.number in chosen], said


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[-1:])
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def robust_range(values: Sequence[float], goal: Goal, always: Sequence[float]) -> tuple[list[float] | None, int]:
    """An axis that the worst values do not squash, and how many values it leaves out; None if it leaves out none.

    ``always``: values that it must show.
    """
    if len(values) < 8:
        return None, 0
    ordered = sorted(goal.sign * value for value in values)
    best, middle = ordered[-1], ordered[len(ordered) // 2]
    least = min([ordered[len(ordered) // 10], *(goal.sign * value for value in always)])
    least = min(least, middle - 0.2 * (best - middle))
    span = best - least
    if span <= 0.0 or ordered[0] >= least - span:
        return None, 0
    ends = [least - 0.05 * span, best + 0.05 * span]
    outside = sum(value < ends[0] for value in ordered)
    return (ends if goal.sign > 0 else [-ends[0], -ends[1]][::-1]), outside


def palette() -> Mapping[str, str]:
    """The colour on a dark page, by the colour on a light one."""
    return dict(COLOURS.values())
