"""The engine, simulated: a run costs nothing, and all else of a search is real."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftae.engine.run_folder import CHECKPOINTS, KEPT
from ftae.engine.sizing import Probe
from ftae.engine.training.checkpoint import EvalReport
from ftae.errors import TrainingFailed
from ftae.search.ray import trial
from ftae.specs.finetune.run import FinetuneSpec

PROBE = Probe(step_seconds=0.1, eval_seconds=1.0, peak_bytes=2**28, memory_bytes=None, device="cpu", node="here")
PICTURES = "FTAE_BENCHMARK_PICTURES"  # set: every report has a picture, as it has in a real search


def run_trial(config: dict[str, Any], *, search: dict[str, Any], fingerprint: str) -> None:
    """``ftae.search.ray.trial.run_trial`` with the simulated engine."""
    trial.finetune, trial.dry_run_step = finetune, lambda *_: PROBE
    trial.run_trial(config, search=search, fingerprint=fingerprint)


def finetune(spec: FinetuneSpec, workdir: Path, **_: Any) -> Iterator[EvalReport]:
    """What ``ftae.engine.training.loop.finetune`` yields, by a formula; checkpoints are folders of one small file.

    Curves saturate, and cross: a high learning rate damages the model first and overtakes later.

    Raises:
        TrainingFailed: the learning rate is among the highest tenth of its range.
    """
    for step in [0, *spec.eval_steps()]:
        if spec.optimizer.lr > 0.005 and step > 0:
            raise TrainingFailed("non-finite loss", step)
        name = f"step-{step:08d}"
        checkpoint = f"{CHECKPOINTS}/{name}" if step else None
        if checkpoint is not None:
            _save(workdir / checkpoint)
        picture = f"images/{name}.png" if PICTURES in os.environ else ""
        if picture:
            _draw(workdir / picture, step)
        yield EvalReport(step, metrics(spec, step), _timing(step), checkpoint, picture)


def psnr(spec: FinetuneSpec, step: int) -> float:
    """The objective of a run after ``step`` steps, in dB: 18 at first, 30 at best."""
    progress = step / spec.max_steps
    lr = math.log10(spec.optimizer.lr)
    gain = 12.0 - 3.0 * (lr + 3.2) ** 2 - 0.5 * abs(math.log10(spec.losses.kl) + 3.5) - 0.3 * spec.freeze_depth
    damage = 4.0 * (lr + 5.0) * progress * (1.0 - progress) ** 3
    return 18.0 + gain * (1.0 - math.exp(-4.0 * progress)) - damage


def metrics(spec: FinetuneSpec, step: int) -> dict[str, float]:
    value = psnr(spec, step)
    metrics = {"val/psnr": value, "val/ssim": 1.0 - 10.0 / value**2, "val/kl": 0.01 / (1 + step)}
    if step:
        metrics |= {"train/mse": 10 ** (-value / 10), "train/kl": 0.02, "train/loss": 10 ** (-value / 10)}
        metrics |= {"train/grad_norm": 1.0 / step, "train/lr": spec.optimizer.lr}
    return metrics


def _timing(step: int) -> dict[str, float]:
    train = {"time/train_seconds": 12.345678901234567, "time/images_per_second": 98.76543210987654} if step else {}
    return {"time/eval_seconds": 1.2345678901234567, **train}


def _save(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"0" * 1000)
    for older in sorted(folder.parent.iterdir())[:-KEPT]:
        (older / "weights").unlink()
        older.rmdir()


def _draw(path: Path, step: int) -> None:
    import PIL.Image

    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.radial_gradient("L").point(lambda level: (level + step) % 256).resize((512, 256)).save(path)
