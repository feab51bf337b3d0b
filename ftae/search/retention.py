"""Which checkpoints are kept: those of the best K trials of the search, and those of running trials.

Confirmations are not ranked, so that none of their checkpoints is kept.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ftae.engine.run_folder import CHECKPOINTS
from ftae.results.search_record import TrialRecord, trial_folder
from ftae.search.state import SearchState
from ftae.storage.store import with_retries


class Retention:
    """Deletes checkpoints when a trial ends, and keeps only the last one of a trial that has ended.

    With several metrics a trial may rise in the ranking; the best are chosen among those that still have a checkpoint.
    The decision is made at once; a thread deletes the files, so that no trial waits. ``notify`` is called when the
    storage fails and when it works again. The constructor deletes what a killed driver has left.

    Raises:
        OSError: the storage fails.
    """

    def __init__(self, state: SearchState, notify: Callable[[str], None] = lambda message: None) -> None:
        self._state, self._notify = state, notify
        self._thread = ThreadPoolExecutor(1, "retention")
        self.failure: Exception | None = None
        ended = (n for n, trial in state.record.all_trials.items() if trial.status != "running")
        self._kept = {number for number in ended if state.store.names(_checkpoints(number))}
        self._delete(dict.fromkeys(self._outranked()) | {number: self._last(number) for number in self._kept})
        for trial in state.record.all_trials.values():
            if trial.status == "running":
                self._delete_unreported(trial)

    def trial_ended(self, number: int) -> None:
        """Delete what is not needed any more."""
        self._kept.add(number)
        keep: dict[int, str | None] = dict.fromkeys(self._outranked())
        if number in self._kept:
            keep[number] = self._last(number)
        self._thread.submit(self._delete_with_retries, keep)

    def check(self) -> None:
        """Raise the error of a deletion that failed; nothing is deleted after it."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Wait until everything is deleted."""
        self._thread.shutdown()

    def _outranked(self) -> set[int]:
        """The trials whose checkpoints are not kept any more."""
        ranked = [t.number for t in self._state.record.ranked() if t.number in self._kept]
        outranked = self._kept.difference(ranked[: self._state.spec.search.keep_checkpoints])
        self._kept -= outranked
        return outranked

    def _last(self, number: int) -> str:
        """The name of the newest checkpoint of a trial."""
        checkpoint = self._state.record.trials[number].checkpoint
        assert checkpoint is not None
        return checkpoint.rpartition("/")[2]

    def _delete_with_retries(self, keep: Mapping[int, str | None]) -> None:
        if self.failure is None:
            try:
                with_retries(lambda: self._delete(keep), self._notify)
            except Exception as error:  # ``check`` raises it
                self.failure = error

    def _delete(self, keep: Mapping[int, str | None]) -> None:
        """Delete the checkpoints of each trial, except for the one with the name in ``keep``."""
        store = self._state.store
        for number, kept in keep.items():
            folder = _checkpoints(number)
            names = store.names(folder)
            if names and kept is None:
                store.remove(folder)
            for name in names if kept is not None else ():
                if name != kept:
                    store.remove(f"{folder}/{name}")

    def _delete_unreported(self, trial: TrialRecord) -> None:
        """Delete the checkpoints after the trial's next report, which a trial that continues from them would skip.

        They exist if the journal has lost its last lines.
        """
        due = [0, *self._state.spec.finetune.eval_steps()][len(trial.reports)]
        folder, store = _checkpoints(trial.number), self._state.store
        for name in store.names(folder):
            if name > f"step-{due:08d}":
                store.remove(f"{folder}/{name}")


def _checkpoints(number: int) -> str:
    return f"{trial_folder(number)}/{CHECKPOINTS}"
