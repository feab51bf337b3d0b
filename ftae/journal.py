"""The durable log of a search: one JSON object a line, only ever appended to.

The journal is the truth. The sampler's study, the rungs, MLflow and every report are projections of
it and can be rebuilt from it. The events, each with ``time`` (seconds since the epoch):

    open      a driver took up the search: search (the whole spec), digest, facts (data, weights, versions)
    suggest   trial, params, kind (baseline | file | sampled)
    start     trial, node, pid, step: a worker took it up, at that step
    adapt     trial, changes (leaves of finetune, as params are), reason: it goes on with these settings
    note      trial, text: what befell it and was mended
    report    trial, step, value (the objective, or its first metric), metrics, timing,
              checkpoint, images (paths below the search folder)
    end       trial, status (finished | pruned | diverged | failed), reason, value, step
    preflight probe: what one step of the file's own configuration took on a worker
    close     the driver left: status (complete | interrupted | failed), reason
"""

import errno
import fcntl
import json
import os
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ftae import ranking
from ftae.errors import FtaeError
from ftae.specs.objective import AnyObjective, read_objective
from ftae.storage import JOURNAL as FILE_NAME

Event = dict[str, Any]
Status = Literal["running", "finished", "pruned", "diverged", "failed"]


class Journal:
    """The journal of one search, open for appending by one driver at a time.

    ``replicate`` is given each line, and the byte it will begin at, before it is written; what it raises
    keeps it out.

    Raises:
        FtaeError: another driver on this machine has it open.
    """

    def __init__(self, folder: Path, replicate: Callable[[int, bytes], None] | None = None) -> None:
        self.path, self._replicate = folder / FILE_NAME, replicate
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FtaeError(f"{folder} is being run by another ftae process; wait for it or stop it first") from error
        self._end: int | None = None

    def take_up(self) -> None:
        """Only this driver may write from here on; a line that the one before it left half-written is cut off."""
        self._end = self._file.truncate(_complete_length(self.path))

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and wait until it is on disk.

        Raises:
            FtaeError: somebody else, on another machine, has written to it.
            OSError: it could not be written (no space left, storage gone). Nothing half-written stays.
        """
        record = {"event": event, "time": time.time(), **fields}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._end is None:
            self.take_up()
        if self._file.seek(0, os.SEEK_END) != self._end:
            raise FtaeError(f"{self.path.parent} was taken over by another ftae driver; this one ends")
        if self._replicate is not None:
            self._replicate(self._end, line)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)
        return record

    def close(self) -> None:
        self._file.close()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The events from byte ``offset`` on, each with the offset behind it; a half-written line ends it.

    Raises:
        FtaeError: a line in the middle is not JSON.
    """
    path = folder / FILE_NAME
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except ValueError as error:  # not JSON, or not even text
                raise FtaeError(f"{path}: the line before byte {offset} is damaged: {error}") from error


def ends_line(folder: Path, offset: int) -> bool:
    """Whether byte ``offset`` is behind an event, or the first."""
    with (folder / FILE_NAME).open("rb") as file:
        file.seek(max(0, offset - 1))
        return offset == 0 or file.read(1) == b"\n"


@dataclass
class TrialRecord:
    """What the journal knows of one trial. ``reports`` are its report events, in order of step."""

    number: int
    kind: Literal["baseline", "file", "sampled"]
    params: dict[str, Any]
    started: float
    reports: list[Event] = field(default_factory=list)
    status: Status = "running"
    reason: str | None = None
    ended: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    starts: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """What it ran with: its params, and what had to be changed on the way."""
        return self.params | self.changes

    @property
    def value(self) -> float | None:
        """The objective (of several, the first) at the last report; None before the first."""
        return self.reports[-1]["value"] if self.reports else None

    @property
    def step(self) -> int:
        return self.reports[-1]["step"] if self.reports else 0

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last report."""
        return self.reports[-1]["metrics"] if self.reports else {}

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint, as a path below the search folder."""
        return self.reports[-1]["checkpoint"] if self.reports else None


@dataclass
class SearchRecord:
    """A search as its journal tells it.

    ``search`` and ``facts`` are those of the newest ``open`` event; ``close`` is its ``close`` event, if it has one.
    ``running`` are the trials that have not ended, ``ended`` counts the tuned ones that have by how they did.
    """

    search: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    close: Event | None = None
    running: dict[int, TrialRecord] = field(default_factory=dict)
    ended: Counter[Status] = field(default_factory=Counter)
    _ranked: list[TrialRecord] | None = field(default_factory=list)  # None: to be put in order

    def apply(self, event: Event) -> None:
        """Fold one more event in."""
        kind = event["event"]
        if kind == "open":
            self.search, self.facts, self.close = event["search"], event.get("facts", {}), None
        elif kind == "suggest":
            number = event["trial"]
            trial = TrialRecord(number, event["kind"], event["params"], event["time"])
            self.trials[number] = self.running[number] = trial
        elif kind == "report":
            self.trials[event["trial"]].reports.append(event)
        elif kind == "preflight":
            self.facts = self.facts | {"probe": event["probe"]}
        elif kind == "start":
            self.trials[event["trial"]].starts.append(event)
        elif kind == "adapt":
            self.trials[event["trial"]].changes |= event["changes"]
        elif kind == "note":
            self.trials[event["trial"]].notes.append(event["text"])
        elif kind == "end":
            self._end(self.running.pop(event["trial"]), event)
        elif kind == "close":
            self.close = event

    def _end(self, trial: TrialRecord, event: Event) -> None:
        trial.status, trial.reason, trial.ended = event["status"], event["reason"], event["time"]
        if trial.kind != "baseline":
            self.ended[trial.status] += 1
            if trial.status == "finished":
                self._place(trial)

    def _place(self, trial: TrialRecord) -> None:
        if len(self.objective.goals) > 1:  # one more point may reorder all
            self._ranked = None
        else:
            assert self._ranked is not None
            insort(self._ranked, trial, key=lambda t: (*self._standing(t), t.number))

    def _standing(self, trial: TrialRecord) -> tuple[float, float]:
        """The smaller, the better, by the constraints and the first goal."""
        return self.objective.violation(trial.metrics), -self.objective.point(trial.metrics)[0]

    @cached_property
    def objective(self) -> AnyObjective:
        """What the search optimises; known once it was opened."""
        return read_objective(self.search["objective"])

    @property
    def baseline(self) -> TrialRecord | None:
        """The untuned model, once measured."""
        trial = self.trials.get(0)
        return trial if trial is not None and trial.status == "finished" else None

    def ranked(self) -> list[TrialRecord]:
        """The tuned trials that ran to their full budget, best first; ties go to the earlier one.

        Those that keep all constraints come first, in the order of ``ranking.ordered``; then the others, the
        smaller their total violation the earlier.
        """
        if self._ranked is None:
            self._ranked = self._put_in_order()
        return list(self._ranked)

    def _put_in_order(self) -> list[TrialRecord]:
        finished = [t for t in self.trials.values() if t.status == "finished" and t.kind != "baseline"]
        feasible = ranking.ordered(self._points(finished))
        others = [t for t in finished if not self.is_feasible(t)]
        return [self.trials[number] for number in feasible] + sorted(others, key=self._standing)

    def _points(self, trials: list[TrialRecord]) -> dict[int, tuple[float, ...]]:
        return {t.number: self.objective.point(t.metrics) for t in trials if self.is_feasible(t)}

    def is_feasible(self, trial: TrialRecord) -> bool | None:
        """Whether a trial keeps the constraints, as last measured; None before that. A diverged one does not."""
        if trial.status == "diverged":
            return False
        return self.objective.violation(trial.metrics) == 0.0 if trial.reports else None

    def front(self) -> list[TrialRecord]:
        """Of the ranked trials, those that keep all constraints and that no other such trial dominates."""
        return [self.trials[number] for number in ranking.front(self._points(self.ranked()))]

    def chosen(self, number: int | None = None, weights: Mapping[str, float] | None = None) -> TrialRecord:
        """Trial ``number``; or, by ``weights``, the one of the front with the best of ``ranking.scores``; or the first
        of the ranking, of several metrics the best of the first on the front.

        Raises:
            FtaeError: no tuned trial ran to its full budget, or not that one; these weights cannot choose.
        """
        ranked, name = self.ranked(), self.search["name"]
        if not ranked:
            raise FtaeError(f"{name}: no tuned trial ran to its full budget yet")
        if number is not None:
            if number not in (trial.number for trial in ranked):
                numbers = ", ".join(str(trial.number) for trial in ranked)
                raise FtaeError(f"{name}: trial {number} did not run to its full budget; choose one of {numbers}")
            return self.trials[number]
        if weights is None:
            return ranked[0]
        ranking.check_weights(self.objective, weights)
        front = self.front() or ranked[:1]  # where none keeps the constraints, the nearest
        scores = ranking.scores(self.objective, {t.number: t.metrics for t in front}, weights)
        return max(front, key=lambda trial: (scores[trial.number], -trial.number))

    def beats_baseline(self, trial: TrialRecord) -> bool | None:
        """Whether tuning helped: the trial keeps the constraints, and the untuned model either does not, or is
        worse in the objective (of several, in at least one). None if one of them was not measured.
        """
        if self.baseline is None or not self.baseline.reports or not trial.reports:
            return None
        if not self.is_feasible(trial):
            return False
        tuned, untuned = (self.objective.point(t.metrics) for t in (trial, self.baseline))
        return not self.is_feasible(self.baseline) or any(a > b for a, b in zip(tuned, untuned, strict=True))

    def verdict(self, trial: TrialRecord) -> str:
        """A sentence or two: a trial against the constraints and the untuned model."""
        changes = "; ".join(self._change(goal.metric, trial) for goal in self.objective.goals)
        missed = self.objective.missed(trial.metrics) if trial.reports else []
        if missed and not any(self.is_feasible(t) for t in self.ranked()):
            return f"WARNING: no trial keeps the constraints. This one misses {', '.join(missed)}. {changes}."
        if missed:
            return f"WARNING: this trial misses {', '.join(missed)}. {changes}."
        if self.baseline is None or not self.baseline.reports or not trial.reports:
            return f"{changes}; the baseline was not measured."
        if not self.beats_baseline(trial):
            return f"WARNING: the untuned model was not beaten. {changes}. Use the model as it was."
        missed = self.objective.missed(self.baseline.metrics)
        return f"{changes}. The untuned model misses {', '.join(missed)}" if missed else changes

    def _change(self, metric: str, trial: TrialRecord) -> str:
        value = trial.metrics.get(metric)
        if self.baseline is None or not self.baseline.reports or value is None:
            return f"{metric} {value}"
        untuned = self.baseline.metrics[metric]
        return f"{metric} {untuned:.4f} -> {value:.4f} ({value - untuned:+.4f})"

    def leaderboard(self) -> list[dict[str, Any]]:
        """One row a trial: the ranked ones first, then the baseline, then the rest by number.

        ``front``: whether it is on the Pareto front, where there are several metrics. ``feasible``: whether it keeps
        the constraints, where there are any.
        """
        others = [t for t in self.trials.values() if t.kind != "baseline" and t.status != "finished"]
        ordered = [*self.ranked(), *([self.baseline] if self.baseline else []), *others]
        front = {trial.number for trial in self.front()} if len(self.objective.goals) > 1 else None
        return [
            {
                "trial": trial.number,
                "kind": trial.kind,
                "status": trial.status,
                **({} if front is None else {"front": trial.number in front}),
                **({"feasible": self.is_feasible(trial)} if self.objective.constraints else {}),
                **{metric: trial.metrics.get(metric) for metric in self.objective.shown_metrics},
                "step": trial.step,
                **{f"params.{path}": trial.params.get(path) for path in self.search["search_space"]},
                "reason": trial.reason,
            }
            for trial in ordered
        ]


def trial_folder(number: int) -> str:
    """Where the files of a trial are, below its search."""
    return f"trials/{number:04d}"


def replay(folder: Path) -> SearchRecord:
    """The whole journal, folded.

    Raises:
        FtaeError: there is no journal in ``folder``, or it is damaged.
    """
    if not (folder / FILE_NAME).is_file():
        raise FtaeError(f"{folder} holds no search (no {FILE_NAME})")
    record = fold(folder)
    if not record.search:
        raise FtaeError(f"{folder / FILE_NAME} is empty: the search never began; remove the folder and start again")
    return record


def fold(folder: Path) -> SearchRecord:
    """What the journal in ``folder`` holds, if only nothing yet."""
    record = SearchRecord(search={})
    for event, _ in read(folder):
        record.apply(event)
    return record


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
