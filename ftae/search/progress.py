"""The progress of a search, on stderr: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from itertools import islice

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftae.results.confirmation import missing_confirmations
from ftae.results.search_record import ROUNDING, SearchRecord, TrialRecord
from ftae.specs.search.search import SearchSpec
from ftae.wording import count, done_of_asked, duration, full_trainings

STYLES = {"finished": "green", "running": "cyan", "pruned": "yellow", "diverged": "red", "failed": "bold red"}
SHOWN_TRIALS = 12  # rows of the live table

# The share of a search after which its measured speed counts as much as the speed that the preflight expects.
EXPECTED_SHARE = 0.05


class _Terminal(Console):
    """A console whose reader may go away, while the search continues."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """A context manager: ``notify`` prints a message, ``follow`` begins to show a record, ``update`` shows a change.

    Another thread draws the live table. It reads a finished table that ``update`` has made, not the changing record.
    ``line`` receives plain lines instead of the console.
    """

    def __init__(self, spec: SearchSpec, line: Callable[[str], None] | None = None) -> None:
        self._spec, self._record = spec, SearchRecord(search={})
        self._console = _Terminal(stderr=True)
        self._print_line = line or self._print
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        return self

    def follow(self, record: SearchRecord, expected_seconds: float) -> None:
        """Show ``record`` from now on.

        ``expected_seconds``: the time of the whole search, as the preflight expects it.
        """
        self._record, self._expected = record, expected_seconds
        self._started = self._advanced = time.monotonic()
        self._share_at_start = self._share = self._share_done()
        self._note_lowered_limits()
        self._refresh()
        if self._console.is_terminal and self._print_line == self._print:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            self._live.__enter__()

    def _note_lowered_limits(self) -> None:
        begun, reserved, settings = self._num_begun(), self._record.reserved_budget, self._spec.search
        if begun > settings.num_trials:
            self.notify(
                f"{begun} trials have begun and search.num_trials is {settings.num_trials}: they are finished, "
                "and none is added"
            )
        elif settings.budget is not None and reserved > settings.budget + ROUNDING:
            self.notify(
                f"the trials that have begun take up to {full_trainings(reserved)} and search.budget is "
                f"{settings.budget:g}: they are finished, and none is added"
            )

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self, number: int) -> None:
        """Show that a trial began, reported or ended."""
        trial = self._record.trial(number)
        self._refresh()
        if self._live is None and trial.status != "running":
            self._print_line(f"{self._line(trial)} | {self._summary()} | {self._time_left()}")

    def notify(self, message: str) -> None:
        """Print a message above the live table."""
        self._print_line(message)

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    # ------------------------------------------------------------------------------------ rendering

    def _line(self, trial: TrialRecord) -> str:
        values = "".join(f" {metric} {value}" for metric, value in self._values(trial).items() if value)
        is_measured = trial.reports and trial.status != "diverged"
        missed = " (misses constraints)" if is_measured and self._record.is_feasible(trial) is False else ""
        reason = f" ({trial.reason})" if trial.reason else ""
        return f"{trial.name} {trial.status}{values} at step {trial.step}{missed}{reason}"

    def _values(self, trial: TrialRecord) -> dict[str, str]:
        """The metrics of the objective, as text; empty before they are measured."""
        metrics = self._spec.objective.shown_metrics
        return {name: f"{trial.metrics[name]:.4f}" if trial.reports else "" for name in metrics}

    def _summary(self) -> str:
        ended, running, budget = self._record.ended, self._record.tuned_running, self._spec.search.budget
        if budget is None:
            counts = f"{done_of_asked(ended.total(), self._spec.search.num_trials)} trials done"
        else:
            used = full_trainings(self._record.used_budget, budget, "/")
            counts = f"{used}, {count(ended.total(), 'trial')} done"
        counts += f", {len(running)} running"
        counts += "".join(f", {ended[s]} {s}" for s in ("pruned", "diverged", "failed") if ended[s])
        if asked := self._num_confirmations():
            counts += f", {self._num_confirmed()}/{asked} confirmations done"
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
        """The share of all trials, or of the budget if that ends first, that is done: 1 at the end.

        Confirmations count as full trainings on top of either.
        """
        record, budget, full = self._record, self._spec.search.budget, self._spec.finetune.max_steps
        extra, extra_done = self._num_confirmations(), float(self._num_confirmed())
        extra_done += sum(trial.step for trial in self._confirming()) / full
        done = record.ended.total() + sum(trial.step for trial in record.tuned_running) / full
        share = (done + extra_done) / (max(self._spec.search.num_trials, self._num_begun()) + extra)
        if budget is None:
            return share
        whole = budget if record.has_room else record.reserved_budget  # what no trial can use is not waited for
        return max(share, (record.used_budget + extra_done) / (whole + extra or 1.0))

    def _num_begun(self) -> int:
        """The number of tuned trials that have begun."""
        return self._record.ended.total() + len(self._record.tuned_running)

    def _confirming(self) -> list[TrialRecord]:
        """The confirmations that run."""
        return [trial for trial in self._record.confirmations.values() if trial.status == "running"]

    def _num_confirmed(self) -> int:
        """The number of confirmations that have ended."""
        return len(self._record.confirmations) - len(self._confirming())

    def _num_confirmations(self) -> int:
        """The number of confirmations at the end: of the best trials so far, and of those that may still join them."""
        record, asked = self._record, self._spec.search.confirm
        to_end = self._spec.search.num_trials - record.ended.total() if record.has_room else len(record.tuned_running)
        open_places = min(asked.top - len(record.ranked()), to_end)
        missing = len(missing_confirmations(record, asked)) + asked.seeds * max(0, open_places)
        return len(record.confirmations) + missing

    def _time_left(self) -> str:
        """Estimated from the expected time, then more and more from the time taken; counts down between reports."""
        gained, took = self._share - self._share_at_start, self._advanced - self._started
        whole = (EXPECTED_SHARE * self._expected + took) / (EXPECTED_SHARE + gained)
        left = whole * (1.0 - self._share) - (time.monotonic() - self._advanced)
        if left >= 1.0:
            return f"about {duration(left)} left"
        return "about to end" if self._share >= 1.0 else "later than expected"

    def _refresh(self) -> None:
        """Make what ``_render`` shows until the next change."""
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
        feasible = ["feasible"] if objective.constraints else []
        for column in ("trial", "status", "step", *objective.shown_metrics, *feasible, "params"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for trial in self._newest():
            cells = [str(trial.step), *self._values(trial).values()]
            cells += [{True: "yes", False: "no", None: ""}[self._record.is_feasible(trial)]] if feasible else []
            params = "baseline, untuned" if trial.kind == "baseline" else short_params(trial.params)
            number = trial.number if trial.of is None else f"{trial.of}, seed {trial.changes['seed']}"
            table.add_row(str(number), Text(trial.status, STYLES[trial.status]), *cells, params)
        return table

    def _newest(self) -> list[TrialRecord]:
        """The trials of the table: the running ones, then the newest that ended."""
        everything = self._record.all_trials
        running = [trial for trial in reversed(everything.values()) if trial.status == "running"]
        newest = list(islice(reversed(everything.values()), SHOWN_TRIALS + len(running)))
        return [*running, *(trial for trial in newest if trial.status != "running")][:SHOWN_TRIALS]


def short_params(params: dict[str, object]) -> str:
    """Params on one line: the last part of each path, numbers with four digits."""
    return " ".join(
        f"{path.rsplit('.', 1)[-1]}={f'{value:.4g}' if isinstance(value, float) else value}"
        for path, value in params.items()
    )
