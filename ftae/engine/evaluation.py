"""Judging a model on the validation images: metrics, and a picture of some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ftae.engine.autoencoder import Autoencoder
from ftae.engine.batches import Batch, val_batches
from ftae.engine.data import ImageSet
from ftae.engine.judged import EvalInputs, Subject
from ftae.engine.metrics import Evaluation, Vitals
from ftae.engine.prefix import Prefix
from ftae.specs.finetune import FinetuneSpec

GRID_IMAGES = 12  # in two columns of three cells each: a square, which MLflow shows best
GRID_MIN_SIDE = 96  # pixels; smaller images are enlarged so that the picture can be looked at
Metrics = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """Validation images by the name under which reports have their metrics, and what is judged on them."""

    name: str
    subject: Subject
    images: ImageSet

    def few(self, count: int) -> "Judged":
        """The same on the first images, ``count`` of each kind."""
        anomalies = self.subject.anomalies
        few = None if anomalies is None else anomalies.taken(slice(count))
        return Judged(self.name, replace(self.subject, anomalies=few), self.images.taken(slice(count)))

    def __len__(self) -> int:
        anomalies = self.subject.anomalies
        return len(self.images) + (0 if anomalies is None else len(anomalies))


def evaluate_all(judged: Sequence[Judged]) -> tuple[Metrics, dict[str, float]]:
    """Every metric as reports name it (``val/psnr``), and the vital signs on the first of ``judged``."""
    results = [(part.name, *evaluate(part.subject, part.images)) for part in judged]
    metrics = {f"{name}/{metric}": value for name, values, _ in results for metric, value in values.items()}
    return metrics, results[0][2]


@torch.no_grad()
def evaluate(subject: Subject, images: ImageSet) -> tuple[Metrics, dict[str, float]]:
    """The metrics of the subject over all of ``images``, and its vital signs.

    Draws nothing from the random generators.
    """
    subject.autoencoder.eval()
    spec, evaluation, vitals = subject.spec, Evaluation(subject), Vitals(subject.spec)
    for batch in val_batches(images, spec.data, batch_size=spec.batch_size, device=subject.device):
        inputs = run_batch(subject.autoencoder, batch, prefix=subject.prefix)
        evaluation.update(inputs)
        vitals.update(inputs)
    if subject.anomalies is not None:
        for batch in val_batches(subject.anomalies, spec.data, batch_size=spec.batch_size, device=subject.device):
            evaluation.update_anomalies(run_batch(subject.autoencoder, batch, prefix=subject.prefix))
    return evaluation.compute(), vitals.compute()


@torch.no_grad()
def save_grid(
    autoencoder: Autoencoder, images: ImageSet, spec: FinetuneSpec, path: Path, *, device: torch.device
) -> None:
    """Write a PNG of fixed validation images, each as input | reconstruction | absolute difference.

    Where the input is degraded, the third is the clean image.
    """
    autoencoder.eval()
    num_columns = 2 if len(images) >= GRID_IMAGES else 1
    chosen = np.linspace(0, len(images) - 1, min(GRID_IMAGES, len(images))).astype(int)
    batch = next(val_batches(images.taken(chosen), spec.data, batch_size=len(chosen), device=device))
    inputs = run_batch(autoencoder, batch, with_head=False)
    wanted, made = inputs.target, inputs.reconstruction
    third = (wanted - made).abs() if spec.data.degrade is None else wanted
    cells = torch.cat([inputs.given, made, third], dim=3).cpu()  # (N, C, H, 3W)
    rows = cells.reshape(-1, num_columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows, H, columns, 3W, C)
    picture = (rows * 255).round().to(torch.uint8).flatten(2, 3).flatten(0, 1).numpy()
    scale = max(1, -(-GRID_MIN_SIDE // spec.data.resolution))
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(path)


def run_batch(
    autoencoder: Autoencoder, batch: Batch, *, with_head: bool = True, prefix: Prefix | None = None
) -> EvalInputs:
    """What the model makes of a batch, on the mode of its posterior; ``prefix``: its own, if there is one."""
    encoding, made = (prefix or Prefix(autoencoder)).run(autoencoder.to_range(batch.inputs), batch)
    reconstruction = autoencoder.to_unit(made).float().clamp(0.0, 1.0)
    logits = autoencoder.head(encoding.latents) if autoencoder.head is not None and with_head else None
    return EvalInputs(batch.images, batch.inputs, reconstruction, encoding, logits, batch.labels, batch.factors)
