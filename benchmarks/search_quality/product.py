"""ftae's own decisions in a replayed search: its ``SearchState``, with journal, sampler and scheduler."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.search_quality.recorded_task import RecordedTask
from benchmarks.search_quality.unit_space import Params
from ftae.engine.training.checkpoint import EvalReport
from ftae.search.state import SearchState
from ftae.storage.backends import FolderStore

MEMORY = Path("/dev/shm")  # where it exists, a journal there need not wait for a disk


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder, in memory if possible."""
    return tempfile.TemporaryDirectory(prefix="ftae-benchmark-", dir=MEMORY if MEMORY.is_dir() else None)


class FtaeSearch:
    """Asks a ``SearchState`` for trials and reports to it, as the driver does. ``overrides`` are those of ``--set``."""

    def __init__(
        self, task: RecordedTask, *, seed: int, budget: float, workers: int, overrides: Sequence[str] = ()
    ) -> None:
        self._task, self._folder = task, scratch()
        spec = task.search([f"search.seed={seed}", *overrides])
        # More than can be started: one ends at its first evaluation at the earliest, or diverges before that.
        most = math.ceil(20 * budget + budget * spec.finetune.num_evals) + workers
        settings = spec.search.model_copy(update={"num_trials": most, "max_concurrent": workers})
        self._spec = spec.model_copy(update={"search": settings})
        self._goal, self._params = spec.objective.first, dict[int, Params]()
        self.eval_steps = spec.finetune.eval_steps()
        self._state = SearchState(self._spec, FolderStore(Path(self._folder.name)))

    def next(self) -> tuple[int, Params] | None:
        assignment = self._state.next_trial()
        if assignment is not None and assignment.kind == "baseline":
            untuned = self._task.median if self._task.baseline is None else self._task.baseline
            self.report(assignment.number, 0, untuned)
            assignment = self._state.next_trial()
        if assignment is None:
            return None
        self._params[assignment.number] = assignment.params
        return assignment.number, assignment.params

    def report(self, number: int, step: int, value: float) -> bool:
        metrics = self._task.metrics(self._params.get(number, self._spec.file_params()))
        return self._state.report(number, evaluation(self._goal.metric, step, self._goal.sign * value, metrics))

    def diverged(self, number: int) -> None:
        self._state.end(number, "diverged")

    def best(self) -> Params | None:
        ranked = self._state.record.ranked()
        return ranked[0].params if ranked and self._state.record.is_feasible(ranked[0]) else None

    def close(self) -> None:
        self._state.close("complete")
        self._folder.cleanup()


def evaluation(metric: str, step: int, value: float, others: Mapping[str, float] = {}) -> EvalReport:
    """A report of an evaluation, with what else it measured."""
    return EvalReport(step, {metric: value, **others}, {}, f"checkpoints/step-{step:08d}" if step else None, "")
