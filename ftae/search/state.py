"""The state of a search: a fold of its journal.

Live events and replayed ones take the same path, so that a resumed search has the same trials, and a sampler and a
scheduler in the same state, as one that never stopped. Knows nothing of Ray.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ftae.engine.training.checkpoint import EvalReport
from ftae.results.confirmation import missing_confirmations
from ftae.results.search_record import (
    FIRST_CONFIRMATION,
    WARM_START,
    Close,
    SearchRecord,
    Status,
    TrialRecord,
    trial_folder,
)
from ftae.search.curves.decisions import Proposal, Stop
from ftae.search.curves.forecaster import Forecaster
from ftae.search.provenance import current_user
from ftae.search.ray.messages import Assignment
from ftae.search.sampler import SAMPLERS
from ftae.search.scheduler import SCHEDULERS
from ftae.specs.reading.format_versions import FORMAT
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import Event, new_event
from ftae.storage.lease import JournalWriter
from ftae.storage.store import Store
from ftae.wording import count, full_trainings


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
        self.forecaster = Forecaster(spec, self.record)
        self.sampler = SAMPLERS[spec.search.sampler](self.forecaster)
        self.scheduler = SCHEDULERS[spec.search.scheduler.name](self.forecaster)
        self.writer = JournalWriter(store, notify)
        try:
            self._open(provenance or {})
        except BaseException:
            self.writer.close()
            raise
        self._waiting = [n for n, trial in self.record.all_trials.items() if trial.status == "running"]

    def _open(self, provenance: Mapping[str, Any]) -> None:
        undecided: Event | None = None  # a report behind which no trial has another event
        for event in self.writer.take_up():
            if undecided is not None and "trial" in event:
                self._learn(undecided)
                undecided = None
            self._apply(event)
            if event["event"] == "report":
                undecided = event
        search, digest = self.spec.model_dump(mode="json"), self.spec.digest()
        # What was taken from earlier searches stays as it was: the first proposals were made by it.
        kept = {key: value for key, value in self.record.facts.items() if key == WARM_START and self.record.trials}
        facts = dict(provenance) | kept
        self._append("open", format=FORMAT, search=search, digest=digest, user=current_user(), facts=facts)
        if undecided is not None:
            self._end_after(undecided)
            self._learn(undecided)

    def _end_after(self, report: Event) -> None:
        """End a trial whose last report ended it, where the driver before this one was killed between the two."""
        trial = self.record.trial(report["trial"])
        status, stop = self._after(trial, report["step"], report["value"])
        if status is not None and trial.status == "running":
            self._append("end", **self._end_fields(trial, status, stop))

    # ------------------------------------------------------------------------------------- changes

    def next_trial(self) -> Assignment | None:
        """The next trial to start: unfinished ones first, then new ones, and confirmations when all have ended.

        None if there is none now: all trials, or all configurations of the space, have been assigned, or the budget has
        no room for a whole trial more beside those that run, which may stop and leave some.
        """
        if self._waiting:
            trial = self.record.trial(self._waiting.pop(0))
            return Assignment(trial.number, trial.kind, trial.params, trial.changes)
        return self._next_new() or self._next_confirmation()

    def _next_new(self) -> Assignment | None:
        """None if all trials, or all configurations of the space, have been assigned."""
        number = len(self.record.trials)
        if number > 0 and not self.record.has_room:
            return None
        kind, proposal = self._proposed(number)
        if proposal is None:
            return None
        self._append("suggest", trial=number, params=proposal.params, kind=kind, **proposal.facts)
        return Assignment(number, kind, proposal.params, {})

    def _next_confirmation(self) -> Assignment | None:
        """None while trials run, which may still be among the best, and if none is missing."""
        if self.record.running or not (missing := missing_confirmations(self.record, self.spec.search.confirm)):
            return None
        finalist, seed = missing[0]
        number = FIRST_CONFIRMATION + len(self.record.confirmations)
        settings = {"params": finalist.params, "changes": finalist.changes | {"seed": seed}}
        self._append("suggest", trial=number, kind="confirmation", of=finalist.number, **settings)
        return Assignment(number, "confirmation", **settings)

    def _proposed(self, number: int) -> tuple[str, Proposal | None]:
        if number == 0:
            return "baseline", Proposal({})
        if number == 1:
            return "file", Proposal(self.spec.file_params())
        proposal = self.sampler.propose(number)
        if proposal is not None and not proposal.facts and self.spec.search.scheduler.name == "forecast":
            # Another sampler than the scheduler's: the scheduler's model travels with its proposals all the same.
            proposal = Proposal(proposal.params, self.forecaster.facts(self.forecaster.fitted(number), proposal.params))
        return "sampled", proposal

    def take_back(self, number: int) -> None:
        """Assign a trial again that was assigned and could not be started."""
        self._waiting.append(number)

    def report(self, number: int, report: EvalReport) -> bool:
        """Take a report of a trial; returns whether the trial continues.

        A resumed trial repeats its last report, which changes nothing.
        """
        trial = self.record.trial(number)
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
        events = [event]
        status, stop = self._after(trial, report.step, value)
        if status is not None:
            ended = {**self._end_fields(trial, status, stop), "value": value, "step": report.step}
            events.append(new_event("end", **ended))
        self.writer.append(events, self._apply_and_learn)
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
        trial = self.record.trial(number)
        if trial.status == "running":
            fields = self._end_fields(trial, status)
            self._append("end", **(fields if reason is None else fields | {"reason": reason}))

    def _end_fields(self, trial: TrialRecord, status: Status, stop: Stop | None = None) -> dict[str, Any]:
        value = self.spec.objective.first.worst() if status == "diverged" else trial.value
        why = {"reason": None} if stop is None else stop.fields()
        return {"trial": trial.number, "status": status, "value": value, "step": trial.step, **why}

    def close(self, status: str, reason: str | None = None, *, by_user: bool = False) -> None:
        """The driver leaves: close the journal and give the lease back."""
        try:
            self._append("close", **Close(status, reason, by_user).fields())
        finally:
            self.writer.close()

    # ----------------------------------------------------------------------------------- questions

    @property
    def is_complete(self) -> bool:
        if not self.record.trials or any(trial.status == "running" for trial in self.record.all_trials.values()):
            return False
        all_begun = not self.record.has_room or self.sampler.is_exhausted
        return all_begun and not missing_confirmations(self.record, self.spec.search.confirm)

    @property
    def ended_early(self) -> str | None:
        """Why a complete search has fewer trials, or takes less, than was asked for; None if it has all."""
        begun, settings = self.record.ended.total(), self.spec.search
        if settings.budget is None:
            wanted = f"{count(begun, 'trial')} instead of {settings.num_trials}"
        else:
            used = full_trainings(self.record.used_budget, settings.budget)
            wanted = f"{count(begun, 'trial')} took {used}"
        if self.record.has_room:
            return f"all configurations of the search space have been tried: {wanted}"
        if settings.budget is None:
            return None
        limit = "search.num_trials" if self.record.has_budget else "search.budget"
        return f"{limit} has no room for another trial: {wanted}"

    # ----------------------------------------------------------------------------------- the fold

    def _append(self, event: str, **fields: Any) -> None:
        self.writer.append([new_event(event, **fields)], self._apply_and_learn)

    def _apply_and_learn(self, event: Event) -> None:
        self._apply(event)
        if event["event"] == "report":
            self._learn(event)

    def _apply(self, event: Event) -> None:
        """Fold an event into the record and the sampler."""
        self.record.apply(event)
        kind, number = event["event"], event.get("trial")
        if number not in self.record.trials or self.record.trials[number].kind == "baseline":
            return
        trial = self.record.trials[number]
        if kind == "suggest":
            self.sampler.adopt(number, trial.params)
        elif kind == "report":
            self.sampler.report(number, event["step"], event["value"])
        elif kind == "end":
            self.sampler.end(number, event["status"], trial.metrics)

    def _learn(self, report: Event) -> None:
        """Let the scheduler take a report into account, once it is decided what the report itself means."""
        trial, step = self.record.trial(report["trial"]), report["step"]
        if trial.kind not in ("baseline", "confirmation") and 0 < step < self.spec.finetune.max_steps:
            self.scheduler.record(trial.number, step, report["value"])

    def _after(self, trial: TrialRecord, step: int, value: float) -> tuple[Status | None, Stop | None]:
        """How a trial ends with a report, which need not be in the journal yet, and why; None if it continues."""
        if trial.kind == "baseline" or step >= self.spec.finetune.max_steps:
            return "finished", None
        if trial.kind == "confirmation":
            return None, None
        stop = self.scheduler.stop(trial.number, step, value) if step > 0 else None
        return ("pruned" if stop is not None else None), stop
