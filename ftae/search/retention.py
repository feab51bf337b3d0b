"""Which checkpoints stay: the best K of the whole search, and those of running trials."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ftae.engine.run_folder import CHECKPOINTS
from ftae.results.search_record import TrialRecord, trial_folder
from ftae.search.state import SearchState
from ftae.storage.retry import with_retries


class Retention:
    """Deletes what is not needed any more as trials end. Of a trial that ended only its last checkpoint is.

    The best are chosen among those that still have theirs: by several metrics, a trial may rise again. What goes is
    decided at once and deleted by a thread, for which no trial waits; ``notify`` is told of the storage's faults.
    What a driver that was killed had not deleted yet, the next one does here.

    Raises:
        OSError: the storage refuses.
    """

    def __init__(self, state: SearchState, notify: Callable[[str], None] = lambda message: None) -> None:
        self._state, self._notify = state, notify
        self._thread = ThreadPoolExecutor(1, "retention")
        self.failure: Exception | None = None
        ended = (n for n, trial in state.record.trials.items() if trial.status != "running")
        self._kept = {number for number in ended if state.store.names(_checkpoints(number))}
        self._delete(dict.fromkeys(self._outranked()) | {number: self._last(number) for number in self._kept})
        for trial in state.record.trials.values():
            if trial.status == "running":
                self._drop_ahead(trial)

    def ended(self, number: int) -> None:
        """A trial is over."""
        self._kept.add(number)
        last: dict[int, str | None] = dict.fromkeys(self._outranked())
        if number in self._kept:
            last[number] = self._last(number)
        self._thread.submit(self._delete_patiently, last)

    def check(self) -> None:
        """Raise what came of the deleting, if it failed: nothing more is deleted then."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Wait until all is deleted that was to be."""
        self._thread.shutdown()

    def _outranked(self) -> set[int]:
        """The trials whose checkpoints are to go; they are out of the choice from now on."""
        ranked = [t.number for t in self._state.record.ranked() if t.number in self._kept]
        outranked = self._kept.difference(ranked[: self._state.spec.search.keep_checkpoints])
        self._kept -= outranked
        return outranked

    def _last(self, number: int) -> str:
        checkpoint = self._state.record.trials[number].checkpoint
        assert checkpoint is not None
        return checkpoint.rpartition("/")[2]

    def _delete_patiently(self, last: Mapping[int, str | None]) -> None:
        if self.failure is None:
            try:
                with_retries(lambda: self._delete(last), self._notify)
            except Exception as error:  # told by ``check``
                self.failure = error

    def _delete(self, last: Mapping[int, str | None]) -> None:
        """Delete the checkpoints of these trials but for the ``last`` of each, if it is given."""
        store = self._state.store
        for number, kept in last.items():
            folder = _checkpoints(number)
            names = store.names(folder)
            if names and kept is None:
                store.remove(folder)
            for name in names if kept is not None else ():
                if name != kept:
                    store.remove(f"{folder}/{name}")

    def _drop_ahead(self, trial: TrialRecord) -> None:
        """Delete checkpoints beyond the next report: a trial that went on from there would leave that one out.

        There are such if the journal has lost its end.
        """
        due = [0, *self._state.spec.finetune.eval_steps()][len(trial.reports)]
        folder, store = _checkpoints(trial.number), self._state.store
        for name in store.names(folder):
            if name > f"step-{due:08d}":
                store.remove(f"{folder}/{name}")


def _checkpoints(number: int) -> str:
    return f"{trial_folder(number)}/{CHECKPOINTS}"
