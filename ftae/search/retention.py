"""Which checkpoints stay: the best K of the whole search, and those of running trials."""

from ftae.engine.checkpoint import CHECKPOINTS
from ftae.record import TrialRecord, trial_folder
from ftae.search.state import SearchState


class Retention:
    """Deletes what is not needed any more as trials end. Of a trial that ended only its last checkpoint is.

    The best are chosen among those that still have theirs: by several metrics, a trial may rise again.
    """

    def __init__(self, state: SearchState) -> None:
        self._state = state
        ended = (n for n, trial in state.record.trials.items() if trial.status != "running")
        self._kept = {number for number in ended if state.store.names(_checkpoints(number))}
        self._sort_out()
        for trial in state.record.trials.values():
            if trial.status == "running":
                self._drop_ahead(trial)

    def ended(self, number: int) -> None:
        """A trial is over."""
        self._kept.add(number)
        self._sort_out()
        if number in self._kept:
            self._keep_last(self._state.record.trials[number])

    def _sort_out(self) -> None:
        ranked = [t.number for t in self._state.record.ranked() if t.number in self._kept]
        best = set(ranked[: self._state.spec.search.keep_checkpoints])
        for number in self._kept - best:
            if self._state.store.names(_checkpoints(number)):
                self._state.store.remove(_checkpoints(number))
        self._kept &= best

    def _drop_ahead(self, trial: TrialRecord) -> None:
        """Delete checkpoints beyond the next report: a trial that went on from there would leave that one out.

        There are such if the journal has lost its end.
        """
        due = [0, *self._state.spec.finetune.eval_steps()][len(trial.reports)]
        folder, store = _checkpoints(trial.number), self._state.store
        for name in store.names(folder):
            if name > f"step-{due:08d}":
                store.remove(f"{folder}/{name}")

    def _keep_last(self, trial: TrialRecord) -> None:
        assert trial.checkpoint is not None
        folder, store = _checkpoints(trial.number), self._state.store
        for name in store.names(folder):
            if name != trial.checkpoint.rpartition("/")[2]:
                store.remove(f"{folder}/{name}")


def _checkpoints(number: int) -> str:
    return f"{trial_folder(number)}/{CHECKPOINTS}"
