"""The state of a search: a fold of its journal.

Live events and replayed ones take the same path, so that a search taken up again has the same trials,
the same study and the same rungs as one that never stopped. Knows nothing of Ray's processes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ftae.results.search_record import SearchRecord, Status, TrialRecord, trial_folder
from ftae.search.sampler import Study
from ftae.search.scheduler import Rungs
from ftae.specs.search.search import SearchSpec
from ftae.storage import journal
from ftae.storage.journal import Event, Journal
from ftae.storage.lease import Lease
from ftae.storage.retry import with_retries
from ftae.storage.store import Store


@dataclass(frozen=True)
class Assignment:
    """A trial to run: from its newest checkpoint if it has one, else from the start."""

    number: int
    kind: str
    params: dict[str, Any]
    changes: dict[str, Any]


class SearchState:
    """One search in the hands of one driver. Every change is in the journal before it counts.

    ``notify`` is told of the storage's faults.

    Raises:
        FtaeError: another driver has the search.
        OSError: the storage stays away.
    """

    def __init__(
        self,
        spec: SearchSpec,
        store: Store,
        facts: Mapping[str, Any] | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.spec, self.store, self._notify = spec, store, notify
        self.record = SearchRecord(search={})
        self.study, self.rungs = Study(spec), Rungs(spec)
        self._undecided: dict[int, Status] = {}  # reports that end a trial whose end is not in the journal yet
        self.journal = Journal(store.folder, store.replicate)
        self._lease = Lease(store, self.journal.path, notify)
        try:
            self._lease.take()
            self._take_up(facts or {})
        except BaseException:
            self._leave()
            raise
        self._waiting = [n for n, trial in self.record.trials.items() if trial.status == "running"]

    def _take_up(self, facts: Mapping[str, Any]) -> None:
        self.store.refresh()
        self.journal.take_up()
        for event, _ in journal.read(self.store.folder):
            self._apply(event, live=False)
        self._append("open", search=self.spec.model_dump(mode="json"), digest=self.spec.digest(), facts=dict(facts))
        for number, status in list(self._undecided.items()):
            self.end(number, status)

    # ------------------------------------------------------------------------------------- changes

    def next_trial(self) -> Assignment | None:
        """The next trial to start: unfinished ones first, then new ones.

        None when all are given out, or every configuration of the space was.
        """
        if self._waiting:
            trial = self.record.trials[self._waiting.pop(0)]
            return Assignment(trial.number, trial.kind, trial.params, trial.changes)
        number = len(self.record.trials)
        if number > self.spec.search.num_trials:
            return None
        kind = {0: "baseline", 1: "file"}.get(number, "sampled")
        params = {"baseline": {}, "file": self.spec.file_params()}.get(kind)
        if params is None and (params := self.study.propose(number)) is None:
            return None
        self._append("suggest", trial=number, params=params, kind=kind)
        return Assignment(number, kind, params, {})

    def take_back(self, number: int) -> None:
        """A trial that was handed out could not be started: it will be handed out again."""
        self._waiting.append(number)

    def report(self, number: int, report: Mapping[str, Any]) -> bool:
        """Take a trial's report (the fields of ``EvalReport``); returns whether the trial goes on.

        A report that the journal holds already (a resumed trial repeats its last) changes nothing.
        """
        trial = self.record.trials[number]
        if trial.status != "running":
            return False
        if trial.reports and report["step"] <= trial.step:
            return True
        step, value = report["step"], report["metrics"][self.spec.objective.first.metric]
        below = trial_folder(number) + "/"
        paths = {key: report[key] and below + report[key] for key in ("checkpoint", "images")}
        fields = {"step": step, "value": value, "metrics": report["metrics"], "timing": report["timing"], **paths}
        status = self._verdict(trial, step, value)
        events = [_event("report", trial=number, **fields)]
        if status is not None:
            events.append(_event("end", trial=number, status=status, reason=None, value=value, step=step))
        self._write(events)
        return status is None

    def preflight(self, probe: Mapping[str, Any]) -> None:
        """What the preflight measured."""
        self._append("preflight", probe=dict(probe))

    def start(self, number: int, node: str, pid: int, step: int) -> None:
        """A worker took the trial up at ``step``."""
        self._append("start", trial=number, node=node, pid=pid, step=step)

    def adapt(self, number: int, changes: Mapping[str, Any], reason: str) -> None:
        """The trial goes on with other settings."""
        self._append("adapt", trial=number, changes=dict(changes), reason=reason)

    def note(self, number: int, text: str) -> None:
        """Something befell the trial and was mended."""
        self._append("note", trial=number, text=text)

    def end(self, number: int, status: Status, reason: str | None = None) -> None:
        """A trial is over. Ending it twice changes nothing."""
        trial = self.record.trials[number]
        if trial.status == "running":
            value = self.spec.objective.first.worst() if status == "diverged" else trial.value
            self._append("end", trial=number, status=status, reason=reason, value=value, step=trial.step)

    def close(self, status: str, reason: str | None = None) -> None:
        """The driver leaves: the journal is closed, the lease given back."""
        try:
            self._append("close", status=status, reason=reason)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._lease.release()
        self.journal.close()

    # ----------------------------------------------------------------------------------- questions

    @property
    def is_complete(self) -> bool:
        trials = self.record.trials.values()
        all_begun = len(trials) > self.spec.search.num_trials or self.study.is_exhausted
        return all_begun and all(t.status != "running" for t in trials)

    @property
    def ended_early(self) -> str | None:
        """Why a complete search has fewer trials than it was to have; None where it has all."""
        begun, wanted = len(self.record.trials) - 1, self.spec.search.num_trials
        if begun >= wanted:
            return None
        return f"all configurations of the search space have been tried: {begun} trials instead of {wanted}"

    # ----------------------------------------------------------------------------------- the fold

    def _append(self, event: str, **fields: Any) -> None:
        self._write([_event(event, **fields)])

    def _write(self, events: list[Event]) -> None:
        """Events count once they are in the journal, which has them in one write where the storage takes them so."""
        for some in [events] if self.store.takes_lines_together else [[event] for event in events]:
            with_retries(partial(self._write_together, some), self._notify)
            for event in some:
                self._apply(event, live=True)

    def _write_together(self, events: list[Event]) -> None:
        self._lease.check()
        self.journal.append_all(events)

    def _apply(self, event: Event, *, live: bool) -> None:
        self.record.apply(event)
        kind, number = event["event"], event.get("trial")
        if number is None:
            return
        trial = self.record.trials[number]
        if kind == "report":
            self._decide(trial, event["step"], event["value"])
        elif kind == "end":
            self._undecided.pop(number, None)
        if trial.kind == "baseline":
            return
        if kind == "suggest" and not (live and trial.kind == "sampled"):
            self.study.adopt(number, trial.params)
        elif kind == "report":
            self.study.report(number, event["step"], event["value"])
        elif kind == "end":
            self.study.tell(number, event["status"], trial.metrics)

    def _decide(self, trial: TrialRecord, step: int, value: float) -> None:
        status = self._verdict(trial, step, value)
        if status is not None:
            self._undecided[trial.number] = status
        if trial.kind != "baseline" and 0 < step < self.spec.finetune.max_steps:
            self.rungs.record(trial.number, step, value)

    def _verdict(self, trial: TrialRecord, step: int, value: float) -> Status | None:
        """How a trial ends with this report, which need not be in the journal yet; None if it goes on."""
        if trial.kind == "baseline" or step >= self.spec.finetune.max_steps:
            return "finished"
        return None if step == 0 or self.rungs.goes_on(trial.number, step, value) else "pruned"


def _event(event: str, **fields: Any) -> Event:
    # With its time, for good: an object store may hold the line of a try that seemed to fail.
    return {"event": event, "time": time.time(), **fields}
