"""The state of a search: a fold of its journal.

Live events and replayed ones take the same path, so that a resumed search has the same trials, and a sampler and a
scheduler in the same state, as one that never stopped. Knows nothing of Ray.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ftae.engine.training.checkpoint import EvalReport
from ftae.results.search_record import Close, SearchRecord, Status, TrialRecord, trial_folder
from ftae.search.ray.messages import Assignment
from ftae.search.sampler import Sampler
from ftae.search.scheduler import make_scheduler
from ftae.specs.reading.format_versions import FORMAT
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import Event, new_event
from ftae.storage.lease import JournalWriter
from ftae.storage.store import Store


class SearchState:
    """One search, held by one driver. Every change is in the journal before it takes effect.

    ``provenance``: data, weights and versions, written into the journal as ``facts``. ``notify`` is called when the
    storage fails and when it works again.

    Raises:
        FtaeError: another driver holds the search.
        OSError: the storage fails for too long.
    """

    def __init__(
        self,
        spec: SearchSpec,
        store: Store,
        provenance: Mapping[str, Any] | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.spec, self.store = spec, store
        self.record = SearchRecord(search={})
        self.sampler, self.scheduler = Sampler(spec), make_scheduler(spec)
        self._to_end: dict[int, Status] = {}  # trials whose last report ends them, without an end event so far
        self.writer = JournalWriter(store, notify)
        try:
            self._open(provenance or {})
        except BaseException:
            self.writer.close()
            raise
        self._waiting = [n for n, trial in self.record.trials.items() if trial.status == "running"]

    def _open(self, provenance: Mapping[str, Any]) -> None:
        for event in self.writer.take_up():
            self._apply(event, live=False)
        search, digest = self.spec.model_dump(mode="json"), self.spec.digest()
        self._append("open", format=FORMAT, search=search, digest=digest, facts=dict(provenance))
        for number, status in list(self._to_end.items()):
            self.end(number, status)

    # ------------------------------------------------------------------------------------- changes

    def next_trial(self) -> Assignment | None:
        """The next trial to start: unfinished ones first, then new ones.

        None if all trials, or all configurations of the space, have been assigned.
        """
        if self._waiting:
            trial = self.record.trials[self._waiting.pop(0)]
            return Assignment(trial.number, trial.kind, trial.params, trial.changes)
        number = len(self.record.trials)
        if number > self.spec.search.num_trials:
            return None
        kind = {0: "baseline", 1: "file"}.get(number, "sampled")
        params = {"baseline": {}, "file": self.spec.file_params()}.get(kind)
        if params is None and (params := self.sampler.propose(number)) is None:
            return None
        self._append("suggest", trial=number, params=params, kind=kind)
        return Assignment(number, kind, params, {})

    def take_back(self, number: int) -> None:
        """Assign a trial again that was assigned and could not be started."""
        self._waiting.append(number)

    def report(self, number: int, report: EvalReport) -> bool:
        """Take a report of a trial; returns whether the trial continues.

        A resumed trial repeats its last report, which changes nothing.
        """
        trial = self.record.trials[number]
        if trial.status != "running":
            return False
        if trial.reports and report.step <= trial.step:
            return True
        value = report.metrics[self.spec.objective.first.metric]
        folder = trial_folder(number)
        event = new_event(
            "report",
            trial=number,
            step=report.step,
            value=value,
            metrics=report.metrics,
            timing=report.timing,
            checkpoint=report.checkpoint and f"{folder}/{report.checkpoint}",
            images=report.images and f"{folder}/{report.images}",
        )
        events, status = [event], self._status_after(trial, report.step, value)
        if status is not None:
            events.append(new_event("end", trial=number, status=status, reason=None, value=value, step=report.step))
        self.writer.append(events, self._apply_live)
        return status is None

    def preflight(self, probe: Mapping[str, Any]) -> None:
        """Keep what the preflight measured."""
        self._append("preflight", probe=dict(probe))

    def start(self, number: int, node: str, pid: int, step: int) -> None:
        """A worker begins or continues the trial at ``step``."""
        self._append("start", trial=number, node=node, pid=pid, step=step)

    def adapt(self, number: int, changes: Mapping[str, Any], reason: str) -> None:
        """The trial continues with other settings."""
        self._append("adapt", trial=number, changes=dict(changes), reason=reason)

    def note(self, number: int, text: str) -> None:
        """The trial recovered from a fault."""
        self._append("note", trial=number, text=text)

    def end(self, number: int, status: Status, reason: str | None = None) -> None:
        """A trial is over. Ending it twice changes nothing."""
        trial = self.record.trials[number]
        if trial.status == "running":
            value = self.spec.objective.first.worst() if status == "diverged" else trial.value
            self._append("end", trial=number, status=status, reason=reason, value=value, step=trial.step)

    def close(self, status: str, reason: str | None = None, *, by_user: bool = False) -> None:
        """The driver leaves: close the journal and give the lease back."""
        try:
            self._append("close", **Close(status, reason, by_user).fields())
        finally:
            self.writer.close()

    # ----------------------------------------------------------------------------------- questions

    @property
    def is_complete(self) -> bool:
        trials = self.record.trials.values()
        all_begun = len(trials) > self.spec.search.num_trials or self.sampler.is_exhausted
        return all_begun and all(t.status != "running" for t in trials)

    @property
    def ended_early(self) -> str | None:
        """Why a complete search has fewer trials than were asked for; None if it has all."""
        begun, wanted = len(self.record.trials) - 1, self.spec.search.num_trials
        if begun >= wanted:
            return None
        return f"all configurations of the search space have been tried: {begun} trials instead of {wanted}"

    # ----------------------------------------------------------------------------------- the fold

    def _append(self, event: str, **fields: Any) -> None:
        self.writer.append([new_event(event, **fields)], self._apply_live)

    def _apply_live(self, event: Event) -> None:
        self._apply(event, live=True)

    def _apply(self, event: Event, *, live: bool) -> None:
        self.record.apply(event)
        kind, number = event["event"], event.get("trial")
        if number is None:
            return
        trial = self.record.trials[number]
        if kind == "report":
            self._decide(trial, event["step"], event["value"])
        elif kind == "end":
            self._to_end.pop(number, None)
        if trial.kind == "baseline":
            return
        if kind == "suggest" and not (live and trial.kind == "sampled"):
            self.sampler.adopt(number, trial.params)
        elif kind == "report":
            self.sampler.report(number, event["step"], event["value"])
        elif kind == "end":
            self.sampler.end(number, event["status"], trial.metrics)

    def _decide(self, trial: TrialRecord, step: int, value: float) -> None:
        status = self._status_after(trial, step, value)
        if status is not None:
            self._to_end[trial.number] = status
        if trial.kind != "baseline" and 0 < step < self.spec.finetune.max_steps:
            self.scheduler.record(trial.number, step, value)

    def _status_after(self, trial: TrialRecord, step: int, value: float) -> Status | None:
        """How a trial ends with a report, which need not be in the journal yet; None if the trial continues."""
        if trial.kind == "baseline" or step >= self.spec.finetune.max_steps:
            return "finished"
        return None if step == 0 or self.scheduler.goes_on(trial.number, step, value) else "pruned"
