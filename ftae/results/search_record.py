"""What the journal of a search tells, folded: its trials, how they stand to each other, and its end."""

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ftae.errors import FtaeError
from ftae.results import ranking
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.formats import reading_back, stored
from ftae.specs.reading.names import leads_out
from ftae.specs.search.objective import AnyObjective, read_objective
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import Event

BY_USER = "stopped by the user"  # the reason with which a driver leaves after Ctrl-C

Kind = Literal["baseline", "file", "sampled"]

Status = Literal["running", "finished", "pruned", "diverged", "failed"]


@dataclass
class TrialRecord:
    """What the journal knows of one trial. ``reports`` are its report events, in order of step."""

    number: int
    kind: Kind
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
            for path in (event.get("checkpoint"), event.get("images")):
                if path and leads_out(path):
                    raise FtaeError(f"the journal names {path!r}, which does not lie in the folder of its search")
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

    def pareto_front(self) -> list[TrialRecord]:
        """Of the ranked trials, those that keep all constraints and that no other such trial dominates."""
        return [self.trials[number] for number in ranking.pareto_front(self._points(self.ranked()))]

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
        pareto_front = self.pareto_front() or ranked[:1]  # where none keeps the constraints, the nearest
        scores = ranking.scores(self.objective, {t.number: t.metrics for t in pareto_front}, weights)
        return max(pareto_front, key=lambda trial: (scores[trial.number], -trial.number))

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
        text = self._compared(trial)
        return f"WARNING: {text}" if self.warns_of(trial) else text

    def warns_of(self, trial: TrialRecord) -> bool:
        """Whether nobody should use a trial unread: it misses constraints, or does not beat the untuned model."""
        return self.is_feasible(trial) is False or self.beats_baseline(trial) is False

    def _compared(self, trial: TrialRecord) -> str:
        changes = "; ".join(self._change(goal.metric, trial) for goal in self.objective.goals)
        missed = self.objective.missed(trial.metrics) if trial.reports else []
        if missed and not any(self.is_feasible(t) for t in self.ranked()):
            return f"no trial keeps the constraints. This one misses {', '.join(missed)}. {changes}."
        if missed:
            return f"this trial misses {', '.join(missed)}. {changes}."
        if self.baseline is None or not self.baseline.reports or not trial.reports:
            return f"{changes}; the baseline was not measured."
        if not self.beats_baseline(trial):
            return f"the untuned model was not beaten. {changes}. Use the model as it was."
        missed = self.objective.missed(self.baseline.metrics)
        return f"{changes}. The untuned model misses {', '.join(missed)}" if missed else changes

    def _change(self, metric: str, trial: TrialRecord) -> str:
        value = trial.metrics.get(metric)
        if self.baseline is None or not self.baseline.reports or value is None:
            return f"{metric} {value}"
        untuned = self.baseline.metrics[metric]
        return f"{metric} {untuned:.4f} -> {value:.4f} ({value - untuned:+.4f})"

    def leaderboard(self) -> list[dict[str, Any]]:
        """One row a trial: the ranked ones first, then the baseline, however it ended, then the rest by number.

        ``front``: whether it is on the Pareto front, where there are several metrics. ``feasible``: whether it keeps
        the constraints, where there are any.
        """
        others = [t for t in self.trials.values() if t.kind == "baseline" or t.status != "finished"]
        ordered = [*self.ranked(), *sorted(others, key=lambda trial: trial.number)]
        pareto_front = {trial.number for trial in self.pareto_front()} if len(self.objective.goals) > 1 else None
        return [
            {
                "trial": trial.number,
                "kind": trial.kind,
                "status": trial.status,
                **({} if pareto_front is None else {"front": trial.number in pareto_front}),
                **({"feasible": self.is_feasible(trial)} if self.objective.constraints else {}),
                **{metric: trial.metrics.get(metric) for metric in self.objective.shown_metrics},
                "step": trial.step,
                **{f"params.{path}": trial.params.get(path) for path in self.search["search_space"]},
                "reason": trial.reason,
            }
            for trial in ordered
        ]


def search_of(record: SearchRecord) -> SearchSpec:
    """The spec of a search, as its newest driver had it.

    Raises:
        FtaeError: it was written by another version of ftae, which has other fields.
    """
    return stored(SearchSpec, record.search, _named(record), _version(record))


def run_of(record: SearchRecord, trial: TrialRecord) -> FinetuneSpec:
    """The complete run of a trial, with what had to be changed on the way. Raises as ``search_of``."""
    search = search_of(record)
    with reading_back(_named(record), FinetuneSpec, _version(record)):
        return search.trial_spec(trial.settings)


def _named(record: SearchRecord) -> str:
    return f"the journal of {record.search.get('name')}"


def _version(record: SearchRecord) -> str | None:
    versions = record.facts.get("versions")
    version = versions.get("ftae") if isinstance(versions, dict) else None
    return version if isinstance(version, str) else None


def trial_folder(number: int) -> str:
    """Where the files of a trial are, below its search."""
    return f"trials/{number:04d}"
