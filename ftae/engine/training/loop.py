"""The training loop: one generator, the same for a trial and for a production run."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from ftae.engine.rng import rng_state, set_rng_state
from ftae.engine.run_folder import CHECKPOINTS
from ftae.engine.training.checkpoint import CheckpointWriter, EvalReport, load_checkpoint, remove_older_checkpoints
from ftae.engine.training.distributed import ALONE, Group
from ftae.engine.training.evaluator import Grid, evaluate_all
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Training, configuration_fails
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec


def finetune(
    spec: FinetuneSpec,
    workdir: Path,
    *,
    resume_from: Path | None = None,
    group: Group = ALONE,
    warm: ModelReuse | None = None,
) -> Iterator[EvalReport]:
    """Fine-tune, yielding a report after every evaluation; the consumer decides whether to go on.

    The first report is the baseline: the model as it was given, at step 0. With ``resume_from`` (a
    checkpoint folder) the first is that checkpoint's own report again, and what follows is, on a CPU,
    bit for bit what would have followed without the stop. Everything a report names is on disk below
    ``workdir`` before it is yielded; the two newest checkpoints are kept. ``group``: the processes that
    train, of which this is rank 0; whatever fails in one of them is raised here. ``warm``: what earlier
    runs of this process have left; by default everything is built anew, to the same effect.

    Raises:
        FtaeError: the spec cannot be run (see ``build_model`` and ``load_dataset``).
        TrainingFailed: for one of ``Reason``, a metric that is not finite, or what the model raised.
        OSError: files cannot be read or written.
    """
    with configuration_fails(step=lambda: 0):
        run = FinetuneRun(spec, workdir, group, warm)
    with configuration_fails(step=lambda: run.step):
        report = run.resume(resume_from) if resume_from is not None else run.report()
    yield from run.keep_rng(report)
    for eval_step in spec.eval_steps():
        if eval_step > run.step:
            with group.failing_together(), configuration_fails(step=lambda: run.step):
                run.train_to(eval_step)
                report = run.report()
            yield from run.keep_rng(report)


def follow(spec: FinetuneSpec, group: Group) -> NoReturn:
    """What a rank above 0 does: it trains as ``finetune`` does on rank 0, until it is ended. Raises as that."""
    with configuration_fails(step=lambda: 0):
        training = Training(spec, group)
    with configuration_fails(step=lambda: training.step):
        training.follow()


class FinetuneRun(Training):
    """Training, and what rank 0 alone does: evaluation, pictures and checkpoints."""

    def __init__(self, spec: FinetuneSpec, workdir: Path, group: Group = ALONE, warm: ModelReuse | None = None) -> None:
        super().__init__(spec, group, warm)
        self.workdir = workdir
        self._collapse_signs: dict[str, float] = {}

    def report(self) -> EvalReport:
        """Evaluate the (averaged) weights, write picture and checkpoint, start a new window.

        Raises:
            TrainingFailed: a metric is not finite, or a sign of life is lost (``metrics.CollapseDetector``).
        """
        train_seconds = time.monotonic() - self.window_start
        name = f"step-{self.step:08d}"
        picture = Path("images") / f"{name}.png"
        checkpoint = Path(CHECKPOINTS) / name if self.step > 0 else None
        with nullcontext() if checkpoint is None else self._saving(self.workdir / checkpoint) as saving:
            metrics, collapse_signs = self._judge(self.workdir / picture)
            report = EvalReport(
                step=self.step,
                metrics=metrics | (self.measured() if self.window_steps else {}),
                timing=self._timing(train_seconds),
                checkpoint=None if checkpoint is None else str(checkpoint),
                images=str(picture),
            )
            _check_finite(report)
            # A model from scratch may not show them yet: only losing one is a collapse.
            for reason, sign in collapse_signs.items():
                if sign == 0 and self._collapse_signs.get(reason, 0) > 0:
                    raise TrainingFailed(reason, self.step)
            self._collapse_signs = collapse_signs
            if saving is not None:
                saving.finish(report, collapse_signs)
        if checkpoint is not None:
            remove_older_checkpoints(self.workdir / checkpoint)
        self.start_window()
        return report

    def _saving(self, folder: Path) -> CheckpointWriter:
        """Of the state before the evaluation, which changes nothing of it and so need not be waited for."""
        return CheckpointWriter(
            folder, self.spec, self.autoencoder, self.optimizer, self.average, adversary=self.adversary
        )

    def _judge(self, picture: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics and vital signs; of the model as it was given what is known of it."""
        if self.step > 0:
            return self._evaluate(picture)
        return self._warm.baseline(self.spec, self.data.fingerprint, self.device, picture, self._evaluate)

    def _evaluate(self, picture: Path) -> tuple[dict[str, float], dict[str, float]]:
        grid = Grid(self.spec, len(self.data.val))
        with self.average.applied() if self.average is not None else nullcontext():
            found = evaluate_all(self.eval_sets, grid)
        grid.save(picture)
        return found

    def _timing(self, train_seconds: float) -> dict[str, float]:
        timing = {"time/eval_seconds": time.monotonic() - self.window_start - train_seconds}
        if self.window_steps:
            images = self.window_steps * self.spec.batch_size * self.spec.grad_accumulation
            timing |= {"time/train_seconds": train_seconds, "time/images_per_second": images / train_seconds}
        return timing

    def resume(self, checkpoint: Path) -> EvalReport:
        """Take up the state of a checkpoint; returns the report made with it."""
        report, self._collapse_signs = load_checkpoint(
            checkpoint, self.spec, self.autoencoder, self.optimizer, self.average, adversary=self.adversary
        )
        self.step = report.step
        self.start_window()
        return report

    def keep_rng(self, report: EvalReport) -> Iterator[EvalReport]:
        """Yield, and undo what the consumer did to the random generators meanwhile."""
        state = rng_state()
        yield report
        set_rng_state(state)


def _check_finite(report: EvalReport) -> None:
    for name, value in report.metrics.items():
        if not math.isfinite(value):
            if report.step == 0:
                raise FtaeError(f"{name} of the model as it was given is {value}; its weights cannot be used")
            raise TrainingFailed(f"non-finite {name}", report.step)
