"""The durable log of a search: one JSON object a line, only ever appended to.

The journal is the truth. The sampler's study, the rungs, MLflow and every report are projections of
it and can be rebuilt from it. The events, each with ``time`` (seconds since the epoch):

    open      a driver took up the search: search (the whole spec), digest, facts (data, weights, versions)
    suggest   trial, params, kind (baseline | file | sampled)
    report    trial, step, value, metrics, timing, checkpoint, images (paths below the search folder)
    end       trial, status (finished | pruned | diverged | failed), reason, value, step
    close     the driver left: status (complete | interrupted | failed), reason
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftae.errors import FtaeError

Event = dict[str, Any]
Status = Literal["running", "finished", "pruned", "diverged", "failed"]
FILE_NAME = "journal.jsonl"


class Journal:
    """The journal of one search, open for appending by one driver at a time.

    A half-written last line (the driver was killed while writing) is cut off on opening.

    Raises:
        FtaeError: another driver has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FtaeError(f"{folder} is being run by another ftae process; wait for it or stop it first") from error
        self._file.truncate(_complete_length(self.path))

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and wait until it is on disk.

        Raises:
            OSError: it could not be written (no space left, storage gone). Nothing half-written stays.
        """
        record = {"event": event, "time": time.time(), **fields}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
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

    @property
    def value(self) -> float | None:
        """The objective at the last report; None before the first."""
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
    """

    search: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    close: Event | None = None

    def apply(self, event: Event) -> None:
        """Fold one more event in."""
        kind = event["event"]
        if kind == "open":
            self.search, self.facts, self.close = event["search"], event.get("facts", {}), None
        elif kind == "suggest":
            number = event["trial"]
            self.trials[number] = TrialRecord(number, event["kind"], event["params"], event["time"])
        elif kind == "report":
            self.trials[event["trial"]].reports.append(event)
        elif kind == "end":
            trial = self.trials[event["trial"]]
            trial.status, trial.reason, trial.ended = event["status"], event["reason"], event["time"]
        elif kind == "close":
            self.close = event

    @property
    def baseline(self) -> TrialRecord | None:
        """The untuned model, once measured."""
        trial = self.trials.get(0)
        return trial if trial is not None and trial.status == "finished" else None

    def ranked(self) -> list[TrialRecord]:
        """The tuned trials that ran to their full budget, best first; ties go to the earlier one."""
        maximize = self.search["objective"]["direction"] == "maximize"
        finished = [t for t in self.trials.values() if t.status == "finished" and t.kind != "baseline"]

        def rank(trial: TrialRecord) -> tuple[float, int]:
            assert trial.value is not None
            return (-trial.value if maximize else trial.value, trial.number)

        return sorted(finished, key=rank)

    def beats_baseline(self, trial: TrialRecord) -> bool | None:
        """Whether a trial's objective is better than the untuned model's; None if that was not measured."""
        if self.baseline is None or self.baseline.value is None or trial.value is None:
            return None
        gain = trial.value - self.baseline.value
        return gain > 0 if self.search["objective"]["direction"] == "maximize" else gain < 0

    def verdict(self, trial: TrialRecord) -> str:
        """One sentence: a trial against the untuned model."""
        metric, beats = self.search["objective"]["metric"], self.beats_baseline(trial)
        if self.baseline is None or self.baseline.value is None or trial.value is None:
            return f"{metric} {trial.value}; the baseline was not measured."
        gain = trial.value - self.baseline.value
        change = f"{metric} {self.baseline.value:.4f} -> {trial.value:.4f} ({gain:+.4f})"
        return change if beats else f"WARNING: the untuned model was not beaten. {change}. Use the model as it was."

    def leaderboard(self) -> list[dict[str, Any]]:
        """One row a trial: the ranked ones first, then the baseline, then the rest by number."""
        ranked = self.ranked()
        others = [t for t in self.trials.values() if t.kind != "baseline" and t not in ranked]
        ordered = [*ranked, *([self.baseline] if self.baseline else []), *others]
        return [
            {
                "trial": trial.number,
                "kind": trial.kind,
                "status": trial.status,
                self.search["objective"]["metric"]: trial.value,
                "step": trial.step,
                **{f"params.{path}": trial.params.get(path) for path in self.search["search_space"]},
                "reason": trial.reason,
            }
            for trial in ordered
        ]


def replay(folder: Path) -> SearchRecord:
    """The whole journal, folded.

    Raises:
        FtaeError: there is no journal in ``folder``, or it is damaged.
    """
    if not (folder / FILE_NAME).is_file():
        raise FtaeError(f"{folder} holds no search (no {FILE_NAME})")
    record = SearchRecord(search={})
    for event, _ in read(folder):
        record.apply(event)
    if not record.search:
        raise FtaeError(f"{folder / FILE_NAME} is empty: the search never began; remove the folder and start again")
    return record


def _complete_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
