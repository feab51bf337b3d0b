"""The report of a search: one HTML file with everything in it, made from the journal and the stored pictures."""

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ftae import __version__
from ftae.errors import FtaeError
from ftae.reporting import params, story, timeline
from ftae.reporting.curves import curve_plots
from ftae.reporting.pictures import Gallery
from ftae.reporting.plots import COLOURS, Plot, palette
from ftae.reporting.safe import in_script, without_secrets
from ftae.reporting.table import trial_table
from ftae.reporting.tradeoffs import tradeoff_plots
from ftae.results.replay import replay
from ftae.results.search_record import PRODUCTION_TRIAL, SearchRecord, TrialRecord
from ftae.results.stored_spec import search_of
from ftae.results.summary import choose, state_of
from ftae.search.analysis.importance import importance
from ftae.search.analysis.ranges import range_uses
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store

SEARCH_FILES = ("search.yaml", "production.yaml")
MOST_FILE_BYTES = 200_000  # of the search file, which is shown as it is


def report_of(store: Store, *, is_live: bool = False) -> bytes:
    """The report of the search in ``store``, whose journal is up to date.

    Args:
        store: the search.
        is_live: whether the page loads itself again while it is open, as it is written again and again.

    Raises:
        FtaeError: there is no journal, or it cannot be read.
        OSError: the storage cannot be read.
    """
    record = replay(store.folder)
    return _Report(store, record, is_live).html().encode()


@dataclass(frozen=True)
class _Params:
    """What the section "params" shows."""

    plots: Sequence[Plot]
    slices: Sequence[Plot]
    importances: Sequence[Plot]
    told: Sequence[str]
    ranges: Plot | None
    advice: Sequence[str]


class _Report:
    def __init__(self, store: Store, record: SearchRecord, is_live: bool) -> None:
        self._store, self._record, self._is_live = store, record, is_live
        self._is_search = record.kind == "search"
        self._winner = _winner(record)
        self._storage = story.storage_of(store)
        tracking = record.search.get("tracking") or {}
        self._addresses = [str(tracking.get("uri") or ""), self._storage]

    def html(self) -> str:
        record, winner = self._record, self._winner
        plots = {
            "curves": curve_plots(record, winner),
            "trade_offs": tradeoff_plots(record, winner) if self._is_search else [],
            "time": [plot for plot in [timeline.timeline_plot(record)] if plot is not None],
        }
        about_params = self._params() if self._is_search else None
        drawn = [plot for some in plots.values() for plot in some]
        if about_params is not None:
            last = [] if about_params.ranges is None else [about_params.ranges]
            drawn += [*about_params.plots, *about_params.slices, *about_params.importances, *last]
        content = {"plots": plots, "params": about_params, **self._clean(self._texts())}
        page: str = _template().render(
            **content,
            **_parts(),
            data=in_script(self._clean(self._data())),
            figures=in_script(self._clean({plot.name: _plain(plot) for plot in drawn})),
            pictures=in_script(Gallery(self._store, record, winner).content()),
            clean=self._clean,
        )
        return page

    def _clean(self, value: Any) -> Any:
        return without_secrets(value, self._addresses)

    def _texts(self) -> dict[str, Any]:
        """The texts of the page."""
        record, winner = self._record, self._winner
        faults, num_more = timeline.faults(record)
        return {
            "name": record.name,
            "kind": record.kind,
            "state": "running" if self._is_live else state_of(record),
            "written": story.at(time.time()),
            "version": __version__,
            "headline": story.headline(record, winner),
            "tone": story.tone(record, winner),
            "cards": [vars(card) for card in story.cards(record, winner)],
            "commands": [vars(command) for command in story.commands(record, winner, self._storage)],
            "metrics": story.metric_rows(record, winner),
            "remarks": story.remarks(record),
            "places": timeline.places(record),
            "faults": faults,
            "more_faults": num_more,
            "facts": story.facts(record, self._storage),
            "file": self._file(),
        }

    def _data(self) -> dict[str, Any]:
        """What the script of the page works with."""
        table = trial_table(self._record, self._winner) if self._is_search else _table_of_production(self._record)
        return {"name": self._record.name, "live": self._is_live, "dark": palette(), **table}

    def _params(self) -> _Params:
        record, goals = self._record, self._record.objective.goals
        plots = [plot for plot in [params.parallel_coordinates(record)] if plot is not None]
        slices = params.slices(record, goals[0], self._winner)
        try:
            spec: SearchSpec = search_of(record)
        except FtaeError as error:  # its fields are of another version; what needs none of them is shown
            told = [f"Importance and ranges cannot be told: {error}"]
            return _Params(plots, slices, [], self._clean(told), None, [])
        found = [importance(record, spec, goal) for goal in goals]
        importances = [params.importance_plot(one, i) for i, one in enumerate(found)]
        told = list(dict.fromkeys(text for one in found for text in one.warnings))
        uses = range_uses(record, spec)
        advice = [use.advice for use in uses if use.advice is not None]
        ranges = params.ranges_plot(uses, self._winner)
        return _Params(plots, slices, [plot for plot in importances if plot is not None], told, ranges, advice)

    def _file(self) -> str | None:
        """The file of the search, as it was run."""
        for name in SEARCH_FILES:
            content = self._store.read(name)
            if content is not None and len(content) <= MOST_FILE_BYTES:
                return content.decode(errors="replace")
        return None


def _winner(record: SearchRecord) -> TrialRecord | None:
    """The best trial that ran to its full budget; the only one of a production run; None before the first report."""
    if record.kind == "production":
        trial = record.trials.get(PRODUCTION_TRIAL)
        return trial if trial is not None and trial.reports else None
    return choose(record) if record.ranked() else None


def _table_of_production(record: SearchRecord) -> dict[str, Any]:
    return trial_table(record, None) | {"winner": PRODUCTION_TRIAL}


# ------------------------------------------------------------------------------------------------ the page


def _plain(plot: Plot) -> dict[str, Any]:
    """A plot for the script of the page. Texts in it were escaped where they came from."""
    content: dict[str, Any] = plot.figure.to_plotly_json()
    return {"data": content["data"], "layout": content["layout"], "joins": plot.joins, "height": plot.height}


def _parts() -> dict[str, Any]:
    """Style and scripts of the page, and the policy that allows a browser these scripts alone, and no network."""
    scripts = {"plotly": _plotly(), "script": _asset("report.js")}
    digests = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    # Plotly compiles its WebGL programs at run time, which a browser calls eval.
    policy = (
        f"default-src 'none'; script-src {digests} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {name: Markup(script) for name, script in scripts.items()}
    return {**parts, "style": Markup(_colours() + _asset("report.css")), "policy": policy}


def _colours() -> str:
    """The colours of states as variables of the style sheet, on light and on dark pages."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


@cache
def _plotly() -> str:
    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (files("ftae.reporting") / "page" / name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _template() -> Any:
    return Environment(loader=PackageLoader("ftae.reporting", "page"), autoescape=True, trim_blocks=True).get_template(
        "report.html"
    )
