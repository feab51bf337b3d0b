"""Ray Tune's interfaces onto ``SearchState``: the searcher hands out trials, the scheduler takes reports.

Tune's own snapshots are never used (the journal is the truth), so nothing here is pickled with content.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ftae.errors import FtaeError
from ftae.results.search_record import Status, TrialRecord
from ftae.search.ray.hang_detector import HangDetector
from ftae.search.state import Assignment, SearchState

TOO_MANY_FAILED = 3  # what fails them will fail the rest, too: a file that is gone, a machine that is not set up


class Coordinator:
    """What searcher, scheduler and stopper share: the state, and why the search must end early.

    Methods never raise: an exception inside Tune's loop would tear the search down without a word.
    ``on_change`` is called with a trial's number after each of its events, ``notify`` told of what was mended.
    """

    def __init__(
        self,
        state: SearchState,
        deadline: float | None,
        on_change: Callable[[int], None],
        notify: Callable[[str], None],
    ) -> None:
        self.state, self.deadline, self._on_change, self._notify = state, deadline, on_change, notify
        self._watch = HangDetector(self._note)
        self.failure: Exception | None = None
        self._failed_in_a_row = 0
        self._losses: Counter[int] = Counter()  # of workers, by trial
        self._without_worker: set[int] = set()

    def expect(self, seconds: float) -> None:
        """Trials are expected to take so long from one report to the next."""
        self._watch.expect(seconds)

    def assign(self) -> dict[str, Any] | None:
        assignment: Assignment | None = self._safely(self.state.next_trial)
        if assignment is None:
            return None
        self._changed(assignment.number)
        return vars(assignment)

    def may_assign_more(self) -> bool:
        """Whether a trial that runs may have to be handed out again."""
        return self.failure is None and not self.state.is_complete

    def message(self, number: int, message: dict[str, Any]) -> bool:
        """Take what a trial says (see ``trial.run_trial``); returns whether the trial goes on."""
        self._watch.heartbeat(number, message)
        self._without_worker.discard(number)
        goes_on = self._safely(lambda: self._take(number, message))
        if not goes_on:
            self._watch.forget(number)
        self._changed(number)
        return bool(goes_on)

    def given_up(self, number: int, errors: str | None) -> None:
        """A trial failed for the last time; the file ``errors`` ends with the newest error's message."""
        self._watch.forget(number)
        # The loss of a worker that was to be reused Tune takes for two failures, and gives up at the second.
        if number in self._without_worker and self._losses[number] <= self.state.spec.search.max_failures:
            self._safely(lambda: self.state.take_back(number))
            return
        self._safely(lambda: self.state.end(number, "failed", _last_line(errors)))
        self._changed(number)

    def recovered(self, number: int, errors: str | None) -> None:
        """The worker of a trial was lost; Tune starts the trial again."""
        self._watch.forget(number)
        self._losses[number] += 1
        self._without_worker.add(number)
        self._note(number, f"its worker was lost ({_last_line(errors)}); it goes on from its newest checkpoint")

    def must_stop(self) -> bool:
        """Asked again and again by Tune, whether or not anything happened."""
        self._safely(self._watch.kill_hung)
        return self.failure is not None or self.is_overdue() or self.baseline_failed()

    def is_overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def baseline_failed(self) -> bool:
        """Without the untuned model there is nothing to compare with, and no trial can do better."""
        baseline = self.state.record.trials.get(0)
        return baseline is not None and baseline.status in ("diverged", "failed")

    def _take(self, number: int, message: dict[str, Any]) -> bool:
        if "report" in message:
            return self.state.report(number, message["report"])
        if "storage" in message:  # it would fail the next trial, too; this one stays unfinished, for --resume
            raise FtaeError(f"{message['storage']}. Mend that, then go on with --resume; nothing is lost")
        if "start" in message:
            self.state.start(number, **message["start"])
        elif "adapt" in message:
            self.state.adapt(number, **message["adapt"])
            self._notify(f"trial {number}: {message['adapt']['reason']}")
        elif "note" in message:
            self._note(number, message["note"])
        else:
            return self._end(number, message)
        return True

    def _end(self, number: int, message: dict[str, Any]) -> bool:
        status: Status = "diverged" if "diverged" in message else "failed"
        self.state.end(number, status, message[status])
        return False

    def _note(self, number: int, text: str) -> None:
        self._safely(lambda: self.state.note(number, text))
        self._notify(f"trial {number}: {text}")

    def _changed(self, number: int) -> None:
        self._safely(lambda: self._on_change(number))
        self._safely(lambda: self._count_failed(self.state.record.trials[number]))

    def _count_failed(self, trial: TrialRecord) -> None:
        if trial.status != "running":
            self._failed_in_a_row = self._failed_in_a_row + 1 if trial.status == "failed" else 0
        if self._failed_in_a_row == TOO_MANY_FAILED:
            what = f"{TOO_MANY_FAILED} trials in a row failed, the last one: {trial.reason}"
            raise FtaeError(f"{what}. Mend that, then go on with --resume")

    def _safely(self, call: Callable[[], Any]) -> Any:
        if self.failure is not None:  # the search ends: do not wait for the same fault once more
            return None
        try:
            return call()
        except Exception as error:
            self.failure = error
            return None


def _last_line(file: str | None) -> str:
    """The message of the newest error in one of Tune's error files, which may be gone, empty or of any encoding."""
    try:
        lines = Path(file).read_text(errors="replace").split("\n") if file else []
    except OSError:
        lines = []
    return next((line[:300] for line in reversed(lines) if line.strip()), "the worker died")


class _NeverPickled:
    def __getstate__(self) -> dict[str, Any]:
        return {}


class StateSearcher(_NeverPickled, Searcher):
    """Hands out the trials of the state."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self._coordinator = coordinator

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's lacks FINISHED
        return self._coordinator.assign() or (None if self._coordinator.may_assign_more() else Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The scheduler has told the state already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: see the journal."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is taken up again from its journal")


class StateScheduler(_NeverPickled, FIFOScheduler):
    """Passes every result to the state and stops the trials that it ends."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coordinator = coordinator

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._coordinator.message(trial.config["number"], json.loads(result["message"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class FailureCallback(_NeverPickled, Callback):
    """Tells of workers that were lost, and of trials that Tune has given up."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._coordinator.given_up(trial.config["number"], trial.error_file)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._coordinator.recovered(trial.config["number"], trial.error_file)


class CoordinatorStopper(_NeverPickled, Stopper):
    """Ends the whole search at its deadline, or when its state can no longer be written."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._coordinator.must_stop()
