"""The training loop: one generator, the same for a trial and for a production run."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from ftae.engine.objectives.mode_collapse import with_mode_collapse
from ftae.engine.process import rng_state, set_rng_state
from ftae.engine.run_folder import CHECKPOINTS
from ftae.engine.training.checkpoint import CheckpointWriter, EvalReport, load_checkpoint, remove_older_checkpoints
from ftae.engine.training.distributed import ALONE, Group
from ftae.engine.training.evaluator import Findings, Grid, evaluate_all
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Trainer, configuration_fails
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec


def finetune(
    spec: FinetuneSpec,
    workdir: Path,
    *,
    resume_from: Path | None = None,
    group: Group = ALONE,
    reuse: ModelReuse | None = None,
) -> Iterator[EvalReport]:
    """Fine-tune, yielding a report after every evaluation; the consumer decides whether to continue.

    The first report is the baseline: the untuned model, at step 0. With ``resume_from`` (a checkpoint folder) the
    first report is the one saved with that checkpoint, and the following ones are, on a CPU, bit for bit those of a
    run that never stopped. Everything that a report names is on disk below ``workdir`` before it is yielded; the two
    newest checkpoints are kept. ``group``: the processes that train, of which this one is rank 0; an error in any of
    them is raised here. ``reuse``: models and results that this process keeps from earlier runs; they change no
    result. By default everything is built anew.

    The run and its consumer do not disturb each other: each has its own state of the random generators and of
    torch's settings (``ProcessState``), and the consumer's is in force whenever it has control.

    Raises:
        FtaeError: the spec cannot be run (see ``build_model`` and ``load_dataset``).
        TrainingFailed: for one of ``Reason``, a metric that is not finite, or an error that the model raised.
        OSError: files cannot be read or written.
    """
    reports = _reports(spec, workdir, resume_from, group, reuse)
    state: ProcessState | None = None
    while True:
        with process_state_kept():
            if state is not None:
                state.restore()
            report = next(reports, None)
            state = ProcessState.now()
        if report is None:
            return
        yield report


def _reports(
    spec: FinetuneSpec, workdir: Path, resume_from: Path | None, group: Group, reuse: ModelReuse | None
) -> Iterator[EvalReport]:
    """As ``finetune``, which keeps the run and its consumer apart."""
    with configuration_fails(step=lambda: 0):
        run = FinetuneRun(spec, workdir, group, reuse)
    with configuration_fails(step=lambda: run.step):
        report = run.resume(resume_from) if resume_from is not None else run.report()
    yield report
    for eval_step in spec.eval_steps():
        if eval_step > run.step:
            with group.failing_together(), configuration_fails(step=lambda: run.step):
                run.train_to(eval_step)
                report = run.report()
            yield report


def follow(spec: FinetuneSpec, group: Group) -> NoReturn:
    """On a rank above 0: train as rank 0 does in ``finetune``, until this process is ended. Raises as ``finetune``."""
    with configuration_fails(step=lambda: 0):
        trainer = Trainer(spec, group)
    with configuration_fails(step=lambda: trainer.step):
        trainer.follower_loop()


class FinetuneRun(Trainer):
    """A trainer, with what rank 0 alone does: evaluation, pictures and checkpoints."""

    def __init__(
        self, spec: FinetuneSpec, workdir: Path, group: Group = ALONE, reuse: ModelReuse | None = None
    ) -> None:
        super().__init__(spec, group, reuse)
        self.workdir = workdir
        self._collapse_signs: dict[str, float] = {}

    def report(self) -> EvalReport:
        """Evaluate the (averaged) weights, write picture and checkpoint, start a new window of measurements.

        Raises:
            TrainingFailed: a metric is not finite, or the model has collapsed (see ``CollapseDetector``).
        """
        train_seconds = time.monotonic() - self.window_start
        name = f"step-{self.step:08d}"
        picture = Path("images") / f"{name}.png"
        checkpoint = Path(CHECKPOINTS) / name if self.step > 0 else None
        # The checkpoint is written during the evaluation, which does not change what is in it.
        with nullcontext() if checkpoint is None else self._writer(self.workdir / checkpoint) as writer:
            metrics, signs = self._findings(self.workdir / picture)
            report = EvalReport(
                step=self.step,
                metrics=metrics | (self.measured() if self.window_steps else {}),
                timing=self._timing(train_seconds),
                checkpoint=None if checkpoint is None else str(checkpoint),
                images=str(picture),
            )
            _check_finite(report)
            self._check_collapse(with_mode_collapse(signs, metrics, self._collapse_signs))
            if writer is not None:
                writer.finish(report, self._collapse_signs)
        if checkpoint is not None:
            remove_older_checkpoints(self.workdir / checkpoint)
        self.start_window()
        return report

    def _writer(self, folder: Path) -> CheckpointWriter:
        return CheckpointWriter(folder, self.spec, self.task)

    def _findings(self, picture: Path) -> Findings:
        """Metrics and collapse signs; those of the untuned model may be known from an earlier run."""
        if self.step > 0:
            return self._evaluate(picture)
        return self._reuse.baseline(self.spec, self.data.fingerprint, self.device, picture, self._evaluate)

    def _evaluate(self, picture: Path) -> Findings:
        grid = Grid(self.spec, len(self.data.val))
        with self.averaged():
            found = evaluate_all(self.eval_sets, grid)
        grid.save(picture)
        return found

    def _check_collapse(self, signs: dict[str, float]) -> None:
        # An untrained model may have no sign yet: a collapse is the loss of one that it had.
        for reason, sign in signs.items():
            if sign == 0 and self._collapse_signs.get(reason, 0) > 0:
                raise TrainingFailed(reason, self.step)
        self._collapse_signs = signs

    def _timing(self, train_seconds: float) -> dict[str, float]:
        timing = {"time/eval_seconds": time.monotonic() - self.window_start - train_seconds}
        if self.window_steps:
            images = self.window_steps * self.spec.batch_size * self.spec.grad_accumulation
            timing |= {"time/train_seconds": train_seconds, "time/images_per_second": images / train_seconds}
        return timing

    def resume(self, checkpoint: Path) -> EvalReport:
        """Restore the state of a checkpoint; returns the report that was saved with it."""
        report, self._collapse_signs = load_checkpoint(checkpoint, self.spec, self.task)
        self.step = report.step
        self.start_window()
        return report


def _check_finite(report: EvalReport) -> None:
    for name, value in report.metrics.items():
        if not math.isfinite(value):
            if report.step == 0:
                raise FtaeError(f"{name} of the model as it was given is {value}; its weights cannot be used")
            raise TrainingFailed(f"non-finite {name}", report.step)


CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set for deterministic kernels


@dataclass(frozen=True)
class ProcessState:
    """The state of this process that a run changes: random generators, and torch's threads and choice of kernels."""

    rng: dict[str, Any]
    num_threads: int
    cudnn_benchmark: bool
    deterministic: tuple[bool, bool]  # whether at all, and whether as a warning
    cublas: str | None

    @classmethod
    def now(cls) -> Self:
        """As it is at this moment."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        return cls(
            rng_state(),
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
            (deterministic, torch.is_deterministic_algorithms_warn_only_enabled()),
            os.environ.get(CUBLAS),
        )

    def restore(self) -> None:
        """Put everything back. Settings that have not changed are not set again, which would take time."""
        now = ProcessState.now()
        set_rng_state(self.rng)
        if now.num_threads != self.num_threads:
            torch.set_num_threads(self.num_threads)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if now.deterministic != self.deterministic:
            enabled, warn_only = self.deterministic
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if now.cublas != self.cublas:
            os.environ.pop(CUBLAS, None)
            os.environ.update({} if self.cublas is None else {CUBLAS: self.cublas})


@contextmanager
def process_state_kept() -> Iterator[None]:
    """What changes inside the block is undone at its end."""
    before = ProcessState.now()
    try:
        yield
    finally:
        before.restore()
