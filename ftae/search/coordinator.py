"""The driver's answers to its workers: the state of the search, and why the search must end early."""

import time
from collections.abc import Callable
from typing import TypeVar

from ftae.errors import FtaeError
from ftae.results.search_record import TrialRecord
from ftae.search.ray.messages import (
    Adapted,
    Assignment,
    Diverged,
    Failed,
    Message,
    Note,
    Report,
    Start,
    StorageFailed,
)
from ftae.search.state import SearchState

T = TypeVar("T")
MAX_FAILURES_IN_A_ROW = 3  # the cause will fail the next trial, too: a file that is gone, a machine not set up


class StateCoordinator:
    """The ``Coordinator`` of a search, which keeps every change in ``state``.

    ``deadline``: when the search has to stop, by the monotonic clock. ``on_change`` is called with a trial's number
    after each of its events, ``notify`` with what the user should know.

    Methods never raise: an exception inside Tune's loop would end the search without a word. The first one is kept as
    ``failure``, after which nothing is done any more.
    """

    def __init__(
        self,
        state: SearchState,
        deadline: float | None,
        on_change: Callable[[int], None],
        notify: Callable[[str], None],
    ) -> None:
        self.state, self.deadline, self._on_change, self._notify = state, deadline, on_change, notify
        self.failure: Exception | None = None
        self._failed_in_a_row = 0

    def assign(self) -> Assignment | None:
        assignment = self._safely(self.state.next_trial, None)
        if assignment is not None:
            self._changed(assignment.number)
        return assignment

    def may_assign_more(self) -> bool:
        return self.failure is None and not self.state.is_complete

    def receive(self, number: int, message: Message) -> bool:
        goes_on = self._safely(lambda: self._take(number, message), False)
        self._changed(number)
        return goes_on

    def note(self, number: int, text: str) -> None:
        self._safely(lambda: self.state.note(number, text), None)
        self._notify(f"{self._name(number)}: {text}")

    def take_back(self, number: int) -> None:
        self._safely(lambda: self.state.take_back(number), None)

    def give_up(self, number: int, reason: str) -> None:
        self._safely(lambda: self.state.end(number, "failed", reason), None)
        self._changed(number)

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or error

    def must_stop(self) -> bool:
        return self.failure is not None or self.is_overdue() or self.baseline_failed()

    def is_overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def baseline_failed(self) -> bool:
        """Without the untuned model there is nothing to compare with, and no trial can do better."""
        baseline = self.state.record.trials.get(0)
        return baseline is not None and baseline.status in ("diverged", "failed")

    def _take(self, number: int, message: Message) -> bool:
        match message:
            case Report():
                return self.state.report(number, message)
            case Start(node, pid, step):
                self.state.start(number, node, pid, step)
            case Adapted(changes, reason):
                self.state.adapt(number, changes, reason)
                self._notify(f"{self._name(number)}: {reason}")
            case Note(text):
                self.note(number, text)
            case Diverged(reason):
                self.state.end(number, "diverged", reason)
                return False
            case Failed(reason):
                self.state.end(number, "failed", reason)
                return False
            case StorageFailed(reason):  # the trial stays unfinished, for --resume
                raise FtaeError(f"{reason}. Fix the cause, then continue with --resume; nothing is lost")
        return True

    def _changed(self, number: int) -> None:
        self._safely(lambda: self._on_change(number), None)
        self._safely(lambda: self._count_failed(self.state.record.trial(number)), None)

    def _name(self, number: int) -> str:
        return self.state.record.trial(number).name

    def _count_failed(self, trial: TrialRecord) -> None:
        if trial.status != "running":
            self._failed_in_a_row = self._failed_in_a_row + 1 if trial.status == "failed" else 0
        if self._failed_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise FtaeError(
                f"{MAX_FAILURES_IN_A_ROW} trials in a row failed, the last one: {trial.reason}. "
                "Fix the cause, then continue with --resume"
            )

    def _safely(self, call: Callable[[], T], otherwise: T) -> T:
        if self.failure is None:  # else the search ends, and would only wait for the same fault again
            try:
                return call()
            except Exception as error:  # noqa: BLE001  # the driver raises ``failure`` outside Tune's loop
                self.failure = error
        return otherwise
