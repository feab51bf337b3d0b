"""What a user sees while a search runs: a live table on a terminal, plain lines elsewhere. Goes to stderr."""

import time
from itertools import islice

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.search.search import SearchSpec
from ftae.wording import done_of_asked, duration

STYLES = {"finished": "green", "running": "cyan", "pruned": "yellow", "diverged": "red", "failed": "bold red"}

SHOWN_TRIALS = 12

# How much of a search must be done for what it took to weigh as much as what was expected of it.
EXPECTED_SHARE = 0.05


class _Terminal(Console):
    """Its reader may go away; the search goes on unseen."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """A context manager. ``notify`` for anything; ``update`` after every event of a trial, once there is a record.

    A live table is drawn by another thread, from what ``update`` has noted: the record grows meanwhile.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._spec, self._record = spec, SearchRecord(search={})
        self._console = _Terminal(stderr=True)
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        return self

    def follow(self, record: SearchRecord, expected_seconds: float) -> None:
        """The search begins: show what ``record`` holds, live on a terminal.

        ``expected_seconds``: what the whole search would take by what the preflight measured.
        """
        self._record, self._expected = record, expected_seconds
        self._started = self._advanced = time.monotonic()
        self._share_at_start = self._share = self._share_done()
        if (begun := self._num_begun()) > self._spec.search.num_trials:
            asked = self._spec.search.num_trials
            self.notify(
                f"{begun} trials have begun and search.num_trials is {asked}: those are finished, none is added"
            )
        self._note()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            self._live.__enter__()

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self, number: int) -> None:
        """A trial began, reported or ended."""
        trial = self._record.trials[number]
        self._note()
        if self._live is None and trial.status != "running":
            self._console.print(Text(f"{self._line(trial)} | {self._summary()} | {self._time_left()}"), soft_wrap=True)

    def notify(self, message: str) -> None:
        """One line that stays."""
        self._console.print(Text(message), soft_wrap=True)

    # ------------------------------------------------------------------------------------ rendering

    def _line(self, trial: TrialRecord) -> str:
        name = "baseline" if trial.kind == "baseline" else f"trial {trial.number}"
        values = "".join(f" {metric} {value}" for metric, value in self._values(trial).items() if value)
        told = trial.reports and trial.status != "diverged"  # which says enough
        missed = " (misses constraints)" if told and self._record.is_feasible(trial) is False else ""
        reason = f" ({trial.reason})" if trial.reason else ""
        return f"{name} {trial.status}{values} at step {trial.step}{missed}{reason}"

    def _values(self, trial: TrialRecord) -> dict[str, str]:
        """The metrics that the objective speaks of; empty before they are measured."""
        metrics = self._spec.objective.shown_metrics
        return {name: f"{trial.metrics[name]:.4f}" if trial.reports else "" for name in metrics}

    def _summary(self) -> str:
        ended, running = self._record.ended, self._tuned_running()
        counts = f"{done_of_asked(ended.total(), self._spec.search.num_trials)} trials done, {len(running)} running"
        counts += "".join(f", {ended[s]} {s}" for s in ("pruned", "diverged", "failed") if ended[s])
        return f"{counts} | {self._best()}"

    def _best(self) -> str:
        ranked, baseline = self._record.ranked(), self._record.baseline
        parts = [f"best {ranked[0].value:.4f}" if ranked else "no full trial yet"]
        if ranked and not self._record.is_feasible(ranked[0]):
            parts = [f"no trial keeps the constraints, nearest {ranked[0].value:.4f}"]
        if baseline is not None:
            assert baseline.value is not None
            parts.append(f"baseline {baseline.value:.4f}")
            if ranked and ranked[0].value is not None:
                parts.append(f"{ranked[0].value - baseline.value:+.4f}")
        return ", ".join(parts)

    def _share_done(self) -> float:
        """How much of all that will be trained was: 1 at the end."""
        steps = sum(trial.step for trial in self._tuned_running())
        done = self._record.ended.total() + steps / self._spec.finetune.max_steps
        return done / max(self._spec.search.num_trials, self._num_begun())

    def _num_begun(self) -> int:
        """Of the tuned trials."""
        return self._record.ended.total() + len(self._tuned_running())

    def _tuned_running(self) -> list[TrialRecord]:
        return [trial for trial in self._record.running.values() if trial.kind != "baseline"]

    def _time_left(self) -> str:
        """By what was expected, and the more is done, the more by what that took; between two reports it runs down."""
        gained, took = self._share - self._share_at_start, self._advanced - self._started
        whole = (EXPECTED_SHARE * self._expected + took) / (EXPECTED_SHARE + gained)
        left = whole * (1.0 - self._share) - (time.monotonic() - self._advanced)
        if left >= 1.0:
            return f"about {duration(left)} left"
        return "about to end" if self._share >= 1.0 else "later than expected"

    def _note(self) -> None:
        """What there is to show now."""
        share = self._share_done()
        if share > self._share:
            self._share, self._advanced = share, time.monotonic()
        self._shown = self._table(), f"{self._spec.name}: {self._summary()}"

    def _render(self) -> Group:
        table, summary = self._shown
        return Group(table, Text(f"{summary} | {self._time_left()}", "bold"))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        objective = self._spec.objective
        kept = ["feasible"] if objective.constraints else []
        for column in ("trial", "status", "step", *objective.shown_metrics, *kept, "params"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for trial in self._newest():
            cells = [str(trial.step), *self._values(trial).values()]
            cells += [{True: "yes", False: "no", None: ""}[self._record.is_feasible(trial)]] if kept else []
            params = "baseline, untuned" if trial.kind == "baseline" else short_params(trial.params)
            table.add_row(str(trial.number), Text(trial.status, STYLES[trial.status]), *cells, params)
        return table

    def _newest(self) -> list[TrialRecord]:
        """The running trials, then the newest that ended."""
        running = sorted(self._record.running.values(), key=lambda trial: -trial.number)
        newest = list(islice(reversed(self._record.trials.values()), SHOWN_TRIALS + len(running)))
        return [*running, *(trial for trial in newest if trial.status != "running")][:SHOWN_TRIALS]


def short_params(params: dict[str, object]) -> str:
    """Params on one line: last part of each path, four digits."""
    return " ".join(
        f"{path.rsplit('.', 1)[-1]}={f'{value:.4g}' if isinstance(value, float) else value}"
        for path, value in params.items()
    )
