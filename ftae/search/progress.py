"""What a user sees while a search runs: a live table on a terminal, plain lines elsewhere. Goes to stderr."""

import time
from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftae.journal import SearchRecord, TrialRecord
from ftae.specs.search import SearchSpec

STYLES = {"finished": "green", "running": "cyan", "pruned": "yellow", "diverged": "red", "failed": "bold red"}
SHOWN_TRIALS = 12


class _Terminal(Console):
    """Its reader may go away; the search goes on unseen."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """A context manager; ``update`` after every event of a trial, ``say`` for anything else."""

    def __init__(self, spec: SearchSpec, record: SearchRecord) -> None:
        self._spec, self._record = spec, record
        self._console = _Terminal(stderr=True)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._share_at_start = self._share_done()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self, number: int) -> None:
        """A trial began, reported or ended."""
        trial = self._record.trials[number]
        if self._live is None and trial.status != "running":
            self._console.print(Text(f"{self._line(trial)} | {self._summary()}"), soft_wrap=True)

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(Text(message), soft_wrap=True)

    # ------------------------------------------------------------------------------------ rendering

    def _line(self, trial: TrialRecord) -> str:
        name = "baseline" if trial.kind == "baseline" else f"trial {trial.number}"
        value = "" if trial.value is None else f" {self._spec.objective.metric} {trial.value:.4f}"
        reason = f" ({trial.reason})" if trial.reason else ""
        return f"{name} {trial.status}{value} at step {trial.step}{reason}"

    def _summary(self) -> str:
        states = Counter(t.status for t in self._record.trials.values() if t.kind != "baseline")
        done = sum(states.values()) - states["running"]
        counts = f"{done}/{self._spec.search.num_trials} trials done, {states['running']} running"
        counts += "".join(f", {states[s]} {s}" for s in ("pruned", "diverged", "failed") if states[s])
        return f"{counts} | {self._best()} | {self._time_left()}"

    def _best(self) -> str:
        ranked, baseline = self._record.ranked(), self._record.baseline
        parts = [f"best {ranked[0].value:.4f}" if ranked else "no full trial yet"]
        if baseline is not None:
            assert baseline.value is not None
            parts.append(f"baseline {baseline.value:.4f}")
            if ranked and ranked[0].value is not None:
                parts.append(f"{ranked[0].value - baseline.value:+.4f}")
        return ", ".join(parts)

    def _share_done(self) -> float:
        budget = self._spec.finetune.max_steps
        tuned = [t for t in self._record.trials.values() if t.kind != "baseline"]
        done = sum(1.0 if t.status != "running" else t.step / budget for t in tuned)
        return done / self._spec.search.num_trials

    def _time_left(self) -> str:
        share, elapsed = self._share_done(), time.monotonic() - self._started
        gained = share - self._share_at_start
        if gained <= 0.0:
            return "time left unknown"
        return f"about {_duration(elapsed / gained * (1.0 - share))} left"

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "status", "step", self._spec.objective.metric, "params"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        newest = sorted(self._record.trials.values(), key=lambda t: (t.status != "running", -t.number))
        for trial in newest[:SHOWN_TRIALS]:
            value = "" if trial.value is None else f"{trial.value:.4f}"
            params = "baseline, untuned" if trial.kind == "baseline" else short_params(trial.params)
            table.add_row(str(trial.number), Text(trial.status, STYLES[trial.status]), str(trial.step), value, params)
        return Group(table, Text(f"{self._spec.name}: {self._summary()}", "bold"))


def short_params(params: dict[str, object]) -> str:
    """Params on one line: last part of each path, four digits."""
    return " ".join(
        f"{path.rsplit('.', 1)[-1]}={f'{value:.4g}' if isinstance(value, float) else value}"
        for path, value in params.items()
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
