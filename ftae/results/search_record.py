"""What the journal of a search says, folded: its trials, how they compare with each other, and how the search ended."""

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ftae.errors import FtaeError
from ftae.results import ranking
from ftae.specs.reading.names import leads_out
from ftae.specs.search.objective import AnyObjective, read_objective
from ftae.storage.journal import Event

WARM_START = "warm_start"  # in the facts: the trials of earlier searches that a search learns from
ROUNDING = 1e-9  # of a sum of shares
PRODUCTION_TRIAL = 1  # the only trial of a production run
FIRST_CONFIRMATION = 100_000  # confirmations are numbered from here on, so that they leave no gaps among the trials
Kind = Literal["baseline", "file", "sampled", "confirmation"]
Status = Literal["running", "finished", "pruned", "diverged", "failed"]


@dataclass(frozen=True)
class Close:
    """How a driver left a search. ``status``: complete, interrupted or failed. ``by_user``: a person stopped it."""

    status: str
    reason: str | None = None
    by_user: bool = False

    @classmethod
    def of(cls, event: Event) -> "Close":
        """Read a ``close`` event; version 1 had no ``by``, only the reason."""
        reason = event["reason"]
        return cls(event["status"], reason, event.get("by") == "user" or reason == STOPPED_BY_USER.reason)

    def fields(self) -> dict[str, Any]:
        """The fields of the ``close`` event."""
        return {"status": self.status, "reason": self.reason} | ({"by": "user"} if self.by_user else {})


STOPPED_BY_USER = Close("interrupted", "stopped by the user", by_user=True)


@dataclass
class TrialRecord:
    """What the journal knows about one trial.

    ``reports`` are its report events, in the order of their steps. ``of`` is the trial that a confirmation repeats with
    another seed; None for all other trials.
    """

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
    forecast: dict[str, float] | None = None  # of the end of a trial that was stopped before it: mean, sd, chance, best
    of: int | None = None

    @classmethod
    def begun(cls, event: Event) -> "TrialRecord":
        """The trial that a ``suggest`` event begins."""
        changes = dict(event.get("changes", {}))
        return cls(event["trial"], event["kind"], event["params"], event["time"], changes=changes, of=event.get("of"))

    @property
    def name(self) -> str:
        """``baseline``, ``trial 7``, or ``trial 7 with seed 3``."""
        if self.of is not None:
            return f"trial {self.of} with seed {self.changes['seed']}"
        return "baseline" if self.kind == "baseline" else f"trial {self.number}"

    @property
    def settings(self) -> dict[str, Any]:
        """The leaves of finetune that the trial ran with: its params, and what had to be changed on the way."""
        return self.params | self.changes

    @property
    def value(self) -> float | None:
        """The objective (of several metrics, the first) at the last report; None before the first report."""
        return self.reports[-1]["value"] if self.reports else None

    @property
    def step(self) -> int:
        """The step of the last report."""
        return self.reports[-1]["step"] if self.reports else 0

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last report."""
        return self.reports[-1]["metrics"] if self.reports else {}

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint, as a path below the folder of the search."""
        return self.reports[-1]["checkpoint"] if self.reports else None

    @property
    def picture(self) -> str | None:
        """The newest picture of reconstructions, as a path below the folder of the search."""
        return self.reports[-1]["images"] if self.reports else None


@dataclass
class SearchRecord:
    """The state of a search according to its journal.

    Attributes:
        search: the dumped spec of the newest ``open`` event. Empty before the first one.
        facts: data, weights and versions of the newest ``open`` event, and the preflight's measurement.
        kind: a production run is a search of one trial and has no baseline trial.
        trials: the trials of the search itself, by number.
        confirmations: further runs of finished trials, each with another seed, by number. They are no trials of the
            search: nothing is decided by them but which of the best is taken.
        close: how the last driver left; None while a driver has the search, or after it was killed.
        running: those of ``trials`` that have not ended.
        ended: how many tuned trials ended, by their status.
        ended_steps: the steps that these trials took together.
        model: the newest hyperparameters of the model of the curves; None before any.
        noise: what that model takes for the standard deviation of an end; None before any.
    """

    search: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    kind: Literal["search", "production"] = "search"
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    confirmations: dict[int, TrialRecord] = field(default_factory=dict)
    close: Close | None = None
    running: dict[int, TrialRecord] = field(default_factory=dict)
    ended: Counter[Status] = field(default_factory=Counter)
    ended_steps: int = 0
    model: list[float] | None = None
    noise: float | None = None
    _ranked: list[TrialRecord] | None = field(default_factory=list)  # None: not in order

    def apply(self, event: Event) -> None:
        """Take the next event of the journal. Raises FtaeError for a path that leads out of the search's folder."""
        kind = event["event"]
        if kind == "open":
            self.search, self.facts, self.close = event["search"], event.get("facts", {}), None
            self.kind = event.get("kind", "search")
        elif kind == "suggest":
            self._begin(TrialRecord.begun(event))
            self.model, self.noise = event.get("model", self.model), event.get("noise", self.noise)
        elif kind == "report":
            for path in (event.get("checkpoint"), event.get("images")):
                if path and leads_out(path):
                    raise FtaeError(f"the journal names {path!r}, which is not in the folder of its search")
            self.trial(event["trial"]).reports.append(event)
        elif kind == "preflight":
            self.facts = self.facts | {"probe": event["probe"]}
        elif kind == "start":
            self._start(self.trial(event["trial"]), event)
        elif kind == "adapt":
            self.trial(event["trial"]).changes |= event["changes"]
        elif kind == "note":
            self.trial(event["trial"]).notes.append(event["text"])
        elif kind == "end":
            self._end(self.trial(event["trial"]), event)
        elif kind == "close":
            self.close = Close.of(event)

    def trial(self, number: int) -> TrialRecord:
        """Return a trial or a confirmation."""
        return self.trials[number] if number in self.trials else self.confirmations[number]

    @property
    def all_trials(self) -> dict[int, TrialRecord]:
        """The trials and the confirmations."""
        return self.trials | self.confirmations

    def _begin(self, trial: TrialRecord) -> None:
        if trial.kind == "confirmation":
            self.confirmations[trial.number] = trial
        else:
            self.trials[trial.number] = self.running[trial.number] = trial

    def _start(self, trial: TrialRecord, event: Event) -> None:
        trial.starts.append(event)
        if self.kind == "production":  # which may continue with another budget, and after its end
            if trial.status != "running":
                self.ended[trial.status] -= 1
                self.ended_steps -= trial.step
                self._ranked = None
                trial.status, trial.reason, trial.ended = "running", None, None
                self.running[trial.number] = trial
            trial.reports = [report for report in trial.reports if report["step"] <= event["step"]]

    def _end(self, trial: TrialRecord, event: Event) -> None:
        trial.status, trial.reason, trial.ended = event["status"], event["reason"], event["time"]
        trial.forecast = event.get("forecast")
        if trial.kind != "confirmation":
            del self.running[trial.number]
        if trial.kind not in ("baseline", "confirmation"):
            self.ended[trial.status] += 1
            self.ended_steps += trial.step
            if trial.status == "finished":
                self._place(trial)

    def _place(self, trial: TrialRecord) -> None:
        if self._ranked is None or len(self.objective.goals) > 1:  # one more point may reorder all
            self._ranked = None
        else:
            insort(self._ranked, trial, key=lambda t: (*self._sort_key(t), t.number))

    def _sort_key(self, trial: TrialRecord) -> tuple[float, float]:
        """The better the trial by the constraints and the first goal, the smaller the key."""
        return self.objective.violation(trial.metrics), -self.objective.point(trial.metrics)[0]

    @property
    def name(self) -> str:
        return str(self.search["name"])

    @property
    def num_trials(self) -> int:
        return int(self.search["search"]["num_trials"])

    @property
    def budget(self) -> float | None:
        """What the tuned trials may take together, in full trainings; None without such a limit."""
        budget = self.search["search"].get("budget")
        return None if budget is None else float(budget)

    @property
    def max_steps(self) -> int:
        """The steps of a full training."""
        return int(self.search["finetune"]["max_steps"])

    @property
    def tuned(self) -> list[TrialRecord]:
        """The trials, but for the baseline."""
        return [trial for trial in self.trials.values() if trial.kind != "baseline"]

    @property
    def tuned_running(self) -> list[TrialRecord]:
        """The trials that have not ended, but for the baseline."""
        return [trial for trial in self.running.values() if trial.kind != "baseline"]

    @property
    def used_budget(self) -> float:
        """What the tuned trials have taken together, in full trainings: each counts with the share of its steps."""
        return (self.ended_steps + sum(trial.step for trial in self.tuned_running)) / self.max_steps

    @property
    def reserved_budget(self) -> float:
        """What the tuned trials take together, in full trainings, if those that run come to their end."""
        return self.ended_steps / self.max_steps + len(self.tuned_running)

    @property
    def has_room(self) -> bool:
        """Whether another tuned trial may begin and come to its end, by ``num_trials`` and by ``budget``."""
        return self.ended.total() + len(self.tuned_running) < self.num_trials and self.has_budget

    @property
    def has_budget(self) -> bool:
        """The same by ``budget`` alone. Each running trial keeps a full training, so the budget is never exceeded."""
        return self.budget is None or self.reserved_budget + 1.0 <= self.budget + ROUNDING

    @property
    def searched(self) -> list[str]:
        """The paths of the leaves that the search varies."""
        return list(self.search["search_space"])

    @cached_property
    def objective(self) -> AnyObjective:
        """What the search optimises; known from the first ``open`` event on."""
        return read_objective(self.search["objective"])

    @property
    def baseline(self) -> TrialRecord | None:
        """The untuned model, once measured: trial 0, or the first report of a production run as a trial."""
        if self.kind == "production":
            return self._untuned()
        trial = self.trials.get(0)
        return trial if trial is not None and trial.status == "finished" else None

    def _untuned(self) -> TrialRecord | None:
        reports = self.trials[PRODUCTION_TRIAL].reports if PRODUCTION_TRIAL in self.trials else []
        first = [report for report in reports if report["step"] == 0]
        return TrialRecord(0, "baseline", {}, first[0]["time"], first, "finished") if first else None

    def ranked(self) -> list[TrialRecord]:
        """The tuned trials that ran to their full budget, best first; ties go to the smaller number.

        Trials that keep all constraints come first, in the order of ``ranking.ordered``; then the others, the smaller
        their total violation the earlier.
        """
        if self._ranked is None:
            self._ranked = self._put_in_order()
        return list(self._ranked)

    def _put_in_order(self) -> list[TrialRecord]:
        finished = [trial for trial in self.tuned if trial.status == "finished"]
        feasible = ranking.ordered(self._points(finished))
        others = [t for t in finished if not self.is_feasible(t)]
        return [self.trials[number] for number in feasible] + sorted(others, key=self._sort_key)

    def _points(self, trials: list[TrialRecord]) -> dict[int, tuple[float, ...]]:
        return {t.number: self.objective.point(t.metrics) for t in trials if self.is_feasible(t)}

    def is_feasible(self, trial: TrialRecord) -> bool | None:
        """Whether a trial keeps the constraints at its last report; None without one. A diverged trial does not."""
        if trial.status == "diverged":
            return False
        return self.objective.violation(trial.metrics) == 0.0 if trial.reports else None

    def pareto_front(self) -> list[TrialRecord]:
        """The ranked trials that keep all constraints and that no other such trial dominates."""
        return [self.trials[number] for number in ranking.pareto_front(self._points(self.ranked()))]


def trial_folder(number: int) -> str:
    """The folder of a trial's files, below its search."""
    return f"trials/{number:04d}"
