"""Judging a model on the validation images: metrics, and a picture of some of them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.autoencoder import Autoencoder, Posterior
from ftae.engine.batches import Batch, val_batches
from ftae.engine.data import ImageSet
from ftae.engine.metrics import ActiveUnits, EvalInputs, Evaluation
from ftae.specs.finetune import FinetuneSpec

GRID_IMAGES = 12  # in two columns of three cells each: a square, which MLflow shows best
GRID_MIN_SIDE = 96  # pixels; smaller images are enlarged so that the picture can be looked at
Metrics = dict[str, float]


@torch.no_grad()
def evaluate(
    autoencoder: Autoencoder, images: ImageSet, spec: FinetuneSpec, *, device: torch.device
) -> tuple[Metrics, float | None]:
    """The metrics of ``spec`` over all of ``images``, and the number of active latent units.

    The units are None for a model without a posterior. Draws nothing from the random generators.
    """
    autoencoder.eval()
    evaluation, units = Evaluation(spec.metrics), ActiveUnits()
    has_posterior = False
    for batch in val_batches(images, spec.data, batch_size=spec.batch_size, device=device):
        inputs = _run(autoencoder, batch)
        evaluation.update(inputs)
        if inputs.posterior is not None:
            has_posterior = True
            units.update(inputs)
    return evaluation.compute(), units.compute() if has_posterior else None


@torch.no_grad()
def save_grid(
    autoencoder: Autoencoder, images: ImageSet, spec: FinetuneSpec, path: Path, *, device: torch.device
) -> None:
    """Write a PNG of fixed validation images, each as input | reconstruction | absolute difference."""
    autoencoder.eval()
    num_columns = 2 if len(images) >= GRID_IMAGES else 1
    chosen = np.linspace(0, len(images) - 1, min(GRID_IMAGES, len(images))).astype(int)
    few = ImageSet(images.images[chosen], None)
    batch = next(val_batches(few, spec.data, batch_size=len(chosen), device=device))
    inputs = _run(autoencoder, batch, with_head=False)
    difference = (inputs.target - inputs.reconstruction).abs()
    cells = torch.cat([inputs.target, inputs.reconstruction, difference], dim=3).cpu()  # (N, C, H, 3W)
    rows = cells.reshape(-1, num_columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows, H, columns, 3W, C)
    picture = (rows * 255).round().to(torch.uint8).flatten(2, 3).flatten(0, 1).numpy()
    scale = max(1, -(-GRID_MIN_SIDE // spec.data.resolution))
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(path)


def _run(autoencoder: Autoencoder, batch: Batch, *, with_head: bool = True) -> EvalInputs:
    encoded = autoencoder.encode(autoencoder.to_range(batch.images))
    posterior = encoded if isinstance(encoded, Posterior) else None
    latents: Tensor = encoded.mean if isinstance(encoded, Posterior) else encoded
    reconstruction = autoencoder.to_unit(autoencoder.decode(latents)).float().clamp(0.0, 1.0)
    logits = autoencoder.head(latents) if autoencoder.head is not None and with_head else None
    return EvalInputs(batch.images, reconstruction, posterior, logits, batch.labels)
