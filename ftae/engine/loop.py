"""The training loop: one generator, the same for a trial and for a production run."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.autoencoder import Posterior
from ftae.engine.batches import Batch, train_batch
from ftae.engine.build import build_model, device_of
from ftae.engine.checkpoint import EvalReport, load_checkpoint, rng_state, save_checkpoint, set_rng_state
from ftae.engine.data import load_dataset
from ftae.engine.evaluation import evaluate, save_grid
from ftae.engine.losses import LossInputs, loss_terms, weighted_sum, weights_at
from ftae.engine.optim import WeightAverage, build_optimizer, set_lr
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.models import CustomModel


def finetune(spec: FinetuneSpec, workdir: Path, *, resume_from: Path | None = None) -> Iterator[EvalReport]:
    """Fine-tune, yielding a report after every evaluation; the consumer decides whether to go on.

    The first report is the baseline: the model as it was given, at step 0. With ``resume_from`` (a
    checkpoint folder) the first is that checkpoint's own report again, and what follows is, on a CPU,
    bit for bit what would have followed without the stop. Everything a report names is on disk below
    ``workdir`` before it is yielded; only the newest checkpoint is kept.

    Raises:
        FtaeError: the spec cannot be run (see ``build_model`` and ``load_dataset``).
        TrainingFailed: non-finite loss or gradient, out of memory, or posterior collapse.
    """
    with _out_of_memory_fails(step=lambda: 0):
        run = FinetuneRun(spec, workdir)
    with _out_of_memory_fails(step=lambda: run.step):
        report = run.resume(resume_from) if resume_from is not None else run.report()
    yield from run.keep_rng(report)
    for eval_step in spec.eval_steps():
        if eval_step > run.step:
            with _out_of_memory_fails(step=lambda: run.step):
                while run.step < eval_step:
                    run.train_step()
                report = run.report()
            yield from run.keep_rng(report)


class FinetuneRun:
    """The state of one run between two steps: model, optimizer, average, and what was measured since."""

    def __init__(self, spec: FinetuneSpec, workdir: Path) -> None:
        self.spec, self.workdir = spec, workdir
        self.device = device_of(spec)
        if spec.num_threads is not None:
            torch.set_num_threads(spec.num_threads)
        _be_deterministic(self.device)
        self.data = load_dataset(spec.data)
        classes = self.data.class_names
        self.autoencoder = build_model(spec, None if classes is None else len(classes))
        self.autoencoder.to(self.device)
        if not isinstance(spec.model, CustomModel):  # a user's own may call view() on its activations
            self.autoencoder.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.autoencoder, spec.optimizer)
        half_life = spec.ema_half_life_fraction
        self.average = None if half_life is None else WeightAverage(self.autoencoder, half_life * spec.max_steps)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.step = 0
        self._active_units: float | None = None
        self._start_window()

    def _start_window(self) -> None:
        self._sums: dict[str, float] = {}
        self._window_start, self._window_steps = time.monotonic(), 0

    # ------------------------------------------------------------------------------------ training

    def train_step(self) -> None:
        """One optimizer step over ``grad_accumulation`` batches.

        Raises:
            FtaeError: no loss term depends on anything that is trained.
            TrainingFailed: the loss or the gradient is not finite.
        """
        spec = self.spec
        self.autoencoder.train()
        weights = weights_at(spec.losses, self.step / spec.max_steps)
        lr = set_lr(self.optimizer, spec, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in range(spec.grad_accumulation):
            batch = train_batch(
                self.data.train,
                spec.data,
                batch_size=spec.batch_size,
                batch=self.step * spec.grad_accumulation + micro,
                seed=spec.seed,
                device=self.device,
            )
            terms = self._terms(batch, list(weights))
            loss = weighted_sum(terms, weights) / spec.grad_accumulation
            if not math.isfinite(loss.item()):
                raise TrainingFailed("non-finite loss", self.step)
            if not loss.requires_grad:
                raise FtaeError(f"freeze leaves nothing to train that losses ({', '.join(weights)}) depend on")
            loss.backward()  # type: ignore[no-untyped-call]
            self._measure({"loss": loss.item()} | {n: t.item() / spec.grad_accumulation for n, t in terms.items()})
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not math.isfinite(norm):
            raise TrainingFailed("non-finite gradient", self.step)
        if spec.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, spec.max_grad_norm, torch.tensor(norm))
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._measure({"grad_norm": norm, "lr": lr})
        self.step += 1
        self._window_steps += 1

    def _terms(self, batch: Batch, names: list[str]) -> dict[str, Tensor]:
        """Forward pass (in bf16 where asked for), then every loss term in fp32."""
        ae, target = self.autoencoder, self.autoencoder.to_range(batch.images)
        bf16 = torch.autocast(self.device.type, torch.bfloat16) if self.spec.precision == "bf16" else nullcontext()
        with bf16:
            encoded = ae.encode(target)
            if isinstance(encoded, Posterior):
                latents = encoded.sample() if self.spec.sample_posterior else encoded.mean
            else:
                latents = encoded
            reconstruction = ae.decode(latents)
            logits = ae.head(latents) if ae.head is not None else None
        reconstruction = reconstruction.float()
        inputs = LossInputs(
            target=target,
            reconstruction=reconstruction,
            target_unit=batch.images,
            reconstruction_unit=ae.to_unit(reconstruction),
            posterior=encoded if isinstance(encoded, Posterior) else None,
            logits=None if logits is None else logits.float(),
            labels=batch.labels,
            huber_delta=self.spec.losses.huber_delta,
        )
        return loss_terms(inputs, names)

    def _measure(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    # ----------------------------------------------------------------------------------- reporting

    def report(self) -> EvalReport:
        """Evaluate the (averaged) weights, write picture and checkpoint, start a new window.

        Raises:
            TrainingFailed: a metric is not finite, or no latent unit carries information any more.
        """
        train_seconds = time.monotonic() - self._window_start
        name = f"step-{self.step:08d}"
        picture = Path("images") / f"{name}.png"
        with self.average.applied() if self.average is not None else nullcontext():
            metrics, active_units = evaluate(self.autoencoder, self.data.val, self.spec, device=self.device)
            save_grid(self.autoencoder, self.data.val, self.spec, self.workdir / picture, device=self.device)
        # A model from scratch may not have active units yet: only losing them is a collapse.
        if self._active_units and active_units == 0:
            raise TrainingFailed("posterior collapse", self.step)
        self._active_units = active_units
        checkpoint = Path("checkpoints") / name if self.step > 0 else None
        report = EvalReport(
            step=self.step,
            metrics={f"val/{n}": v for n, v in metrics.items()} | self._train_metrics(),
            timing=self._timing(train_seconds),
            checkpoint=None if checkpoint is None else str(checkpoint),
            images=str(picture),
        )
        _check_finite(report)
        if checkpoint is not None:
            self._save(report, self.workdir / checkpoint)
        self._start_window()
        return report

    def _train_metrics(self) -> dict[str, float]:
        return {f"train/{name}": total / self._window_steps for name, total in self._sums.items()}

    def _timing(self, train_seconds: float) -> dict[str, float]:
        timing = {"time/eval_seconds": time.monotonic() - self._window_start - train_seconds}
        if self._window_steps:
            images = self._window_steps * self.spec.batch_size * self.spec.grad_accumulation
            timing |= {"time/train_seconds": train_seconds, "time/images_per_second": images / train_seconds}
        return timing

    def _save(self, report: EvalReport, folder: Path) -> None:
        save_checkpoint(folder, report, self.spec, self.autoencoder, self.optimizer, self.average, self._active_units)
        remove_older_checkpoints(folder)

    def resume(self, checkpoint: Path) -> EvalReport:
        """Take up the state of a checkpoint; returns the report made with it."""
        report, self._active_units = load_checkpoint(
            checkpoint, self.spec, self.autoencoder, self.optimizer, self.average
        )
        self.step = report.step
        self._start_window()
        return report

    def keep_rng(self, report: EvalReport) -> Iterator[EvalReport]:
        """Yield, and undo what the consumer did to the random generators meanwhile."""
        state = rng_state()
        yield report
        set_rng_state(state)


@contextmanager
def _out_of_memory_fails(step: Callable[[], int]) -> Iterator[None]:
    """A configuration that does not fit the device is at fault itself."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingFailed("out of memory", step()) from error


def remove_older_checkpoints(newest: Path) -> None:
    """Leave only ``newest``, the last written; what a process that was killed had half-written goes too."""
    # By name, not by step: a run that began again in this folder must not be resumed from its predecessor.
    older = [folder for folder in newest.parent.glob("step-*") if folder.name != newest.name]
    for folder in [*older, *newest.parent.glob(".step-*.tmp")]:
        shutil.rmtree(folder, ignore_errors=True)


def _be_deterministic(device: torch.device) -> None:
    """Same spec, seed and machine give the same numbers, as far as CUDA has such kernels (it warns of the others)."""
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
        torch.use_deterministic_algorithms(True, warn_only=True)


def _check_finite(report: EvalReport) -> None:
    for name, value in report.metrics.items():
        if not math.isfinite(value):
            if report.step == 0:
                raise FtaeError(f"{name} of the model as it was given is {value}; its weights cannot be used")
            raise TrainingFailed(f"non-finite {name}", report.step)
