"""The section "time": which trial ran where and when, what was retried, what failed, and which workers idled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftae.reporting.plots import BASELINE, LOOKS, Look, Plot, evenly, figure, named, points, time_unit
from ftae.reporting.safe import in_plot
from ftae.results.search_record import SearchRecord
from ftae.results.summary import Segment, segments_of
from ftae.wording import count, duration

MOST_SEGMENTS = 6000
MOST_FAULTS = 40
MOST_LANES = 24


@dataclass(frozen=True)
class Lane:
    """One place at a node: the segments that ran there, one after the other."""

    name: str
    segments: list[Segment]

    @property
    def busy_seconds(self) -> float:
        return sum(segment.end - segment.begin for segment in self.segments)

    def idle_share(self, begin: float, end: float) -> float:
        """The share of a time in which nothing ran here."""
        return max(0.0, 1.0 - self.busy_seconds / (end - begin)) if end > begin else 0.0


def lanes_of(segments: Sequence[Segment]) -> list[Lane]:
    """Put segments into as few lanes as there were places in use at a time, those of one node beside each other."""
    nodes = {node: i + 1 for i, node in enumerate(dict.fromkeys(segment.node for segment in segments))}
    lanes: dict[str, list[Lane]] = {node: [] for node in nodes}
    for segment in segments:
        own = lanes[segment.node]
        free = next((lane for lane in own if lane.segments[-1].end <= segment.begin), None)
        if free is None:
            free = Lane(f"{_node(segment.node, nodes)} · place {len(own) + 1}", [])
            own.append(free)
        free.segments.append(segment)
    return [lane for own in lanes.values() for lane in own]


def _node(name: str, nodes: dict[str, int]) -> str:
    return f"node {nodes[name]} ({name[:8]})" if name else "node unknown"


def timeline_plot(record: SearchRecord) -> Plot | None:
    """All segments as bars along the hours of the search; None before the first trial."""
    segments = segments_of(record)
    if not segments:
        return None
    lanes, began = lanes_of(segments)[:MOST_LANES], segments[0].begin
    unit, unit_name = time_unit(max(segment.end for segment in segments) - began)
    plot = figure(f"{unit_name} since the first trial began", "")
    num_points = 3 * sum(len(lane.segments) for lane in lanes)
    placed = [(i, segment) for i, lane in enumerate(reversed(lanes)) for segment in lane.segments]
    placed = evenly(placed, MOST_SEGMENTS)
    width = max(6, min(22, 420 // max(1, len(lanes))))
    for look, members in _by_look(placed):
        line = {"color": look.colour, "width": width}
        name = named(look, len({segment.trial.number for _, segment in members}))
        plot.add_trace(points(look, name, num_points, mode="lines", line=line, **_bars(members, began, unit)))
        marker = {"size": 8 if len(placed) < 200 else 4, "line": {"width": 1, "color": look.colour}}
        plot.add_trace(
            points(look, name, num_points, showlegend=False, marker=marker, **_bar_ends(members, began, unit))
        )
    names = [in_plot(lane.name) for lane in reversed(lanes)]
    plot.update_yaxes(tickvals=list(range(len(lanes))), ticktext=names, range=[-0.7, len(lanes) - 0.3], ticks="")
    more = len(lanes_of(segments)) - len(lanes)
    caption = "A place is a worker at a time; a gap is a time in which it idled, or no driver ran."
    caption += f" {count(more, 'further place')} not drawn." if more else ""
    return Plot("timeline", "Who ran where", caption, plot, 130 + max(90, (width + 12) * len(lanes)))


def _by_look(placed: Sequence[tuple[int, Segment]]) -> list[tuple[Look, list[tuple[int, Segment]]]]:
    looks = {BASELINE.word: BASELINE, **{look.word: look for look in LOOKS.values()}}
    found: dict[str, list[tuple[int, Segment]]] = {word: [] for word in looks}
    for row, segment in placed:
        trial = segment.trial
        found[BASELINE.word if trial.kind == "baseline" else LOOKS[trial.status].word].append((row, segment))
    return [(looks[word], members) for word, members in found.items() if members]


def _bars(placed: Sequence[tuple[int, Segment]], began: float, unit: float) -> dict[str, Any]:
    x, y, numbers = list[float | None](), list[int | None](), list[int | None]()
    for row, segment in placed:
        x += [(segment.begin - began) / unit, (segment.end - began) / unit, None]
        y += [row, row, None]
        numbers += [segment.trial.number, segment.trial.number, None]
    return {"x": x, "y": y, "customdata": numbers, "opacity": 0.55}


def _bar_ends(placed: Sequence[tuple[int, Segment]], began: float, unit: float) -> dict[str, Any]:
    """The symbol of the state at the end of each bar, so that colour alone tells nothing."""
    return {
        "x": [(segment.end - began) / unit for _, segment in placed],
        "y": [row for row, _ in placed],
        "customdata": [segment.trial.number for _, segment in placed],
    }


# -------------------------------------------------------------------------------------------------- tables


def places(record: SearchRecord) -> list[dict[str, Any]]:
    """A row for each place: trials, hours, and the share of the time between first and last trial that it idled."""
    segments = segments_of(record)
    if not segments:
        return []
    begin, end = segments[0].begin, max(segment.end for segment in segments)
    return [
        {
            "place": lane.name,
            "trials": len({segment.trial.number for segment in lane.segments}),
            "busy": duration(lane.busy_seconds),
            "idle": f"{lane.idle_share(begin, end):.0%}",
        }
        for lane in lanes_of(segments)[:MOST_LANES]
    ]


def faults(record: SearchRecord) -> tuple[list[dict[str, Any]], int]:
    """What went wrong, a row each: the first ``MOST_FAULTS``, and how many more there are."""
    rows: list[dict[str, Any]] = []
    for trial in record.all_trials.values():
        if len(trial.starts) > 1:
            rows.append({"trial": trial.name, "what": f"started {len(trial.starts)} times", "why": ""})
        rows += [{"trial": trial.name, "what": "recovered", "why": note} for note in trial.notes]
        if trial.changes and trial.kind != "confirmation":
            changed = ", ".join(f"{path}: {value}" for path, value in trial.changes.items())
            rows.append({"trial": trial.name, "what": "continued with other settings", "why": changed})
        if trial.status in ("diverged", "failed"):
            rows.append({"trial": trial.name, "what": trial.status, "why": trial.reason or ""})
    return rows[:MOST_FAULTS], max(0, len(rows) - MOST_FAULTS)
