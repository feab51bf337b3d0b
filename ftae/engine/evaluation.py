"""Judging a model on the validation images: metrics, and a picture of some of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.artifacts import GRID_IMAGES, GRID_MIN_SIDE
from ftae.engine.autoencoder import Autoencoder
from ftae.engine.batches import Batch, val_batches
from ftae.engine.data import ImageSet
from ftae.engine.judged import EvalInputs, Subject
from ftae.engine.metrics import Evaluation, Vitals
from ftae.engine.prefix import Prefix
from ftae.specs.finetune import FinetuneSpec

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


class Grid:
    """A picture of fixed validation images, each as input | reconstruction | absolute difference.

    Where the input is degraded, the third is the clean image. What it shows are reconstructions that an evaluation
    makes anyway.
    """

    def __init__(self, spec: FinetuneSpec, num_images: int) -> None:
        self._spec, self._columns = spec, 2 if num_images >= GRID_IMAGES else 1
        self._chosen = np.linspace(0, num_images - 1, min(GRID_IMAGES, num_images)).astype(int)
        self._seen = 0
        self._cells: list[Tensor] = []  # (n, C, H, 3W)

    def update(self, inputs: EvalInputs) -> None:
        """The next batch, in order."""
        rows = self._chosen - self._seen
        rows = rows[(rows >= 0) & (rows < len(inputs.target))]
        given, made, wanted = (images[rows] for images in (inputs.given, inputs.reconstruction, inputs.target))
        third = (wanted - made).abs() if self._spec.data.degrade is None else wanted
        self._cells.append(torch.cat([given, made, third], dim=3).cpu())
        self._seen += len(inputs.target)

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        cells = torch.cat(self._cells)
        rows = cells.reshape(-1, self._columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows, H, columns, 3W, C)
        picture = (rows * 255).round().to(torch.uint8).flatten(2, 3).flatten(0, 1).numpy()
        scale = max(1, -(-GRID_MIN_SIDE // self._spec.data.resolution))
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(path)


def evaluate_all(judged: Sequence[Judged], grid: Grid | None = None) -> tuple[Metrics, dict[str, float]]:
    """Every metric as reports name it (``val/psnr``), and the vital signs: these, as ``grid``, of the first part."""
    grids = [grid, *[None] * len(judged[1:])]
    results = [(part.name, *evaluate(part.subject, part.images, its)) for part, its in zip(judged, grids, strict=True)]
    metrics = {f"{name}/{metric}": value for name, values, _ in results for metric, value in values.items()}
    return metrics, results[0][2]


def evaluate(subject: Subject, images: ImageSet, grid: Grid | None = None) -> tuple[Metrics, dict[str, float]]:
    """The metrics of the subject over all of ``images``, and its vital signs; ``grid`` is given every batch of them.

    Draws nothing from the random generators.
    """
    judging = Judging(subject, images, grid)
    judging.show()
    return judging.results()


class Judging:
    """One evaluation in its parts, of which ``show`` alone takes longer the more images there are."""

    def __init__(self, subject: Subject, images: ImageSet, grid: Grid | None = None) -> None:
        subject.autoencoder.eval()
        self._subject, self._images, self._grid = subject, images, grid
        self._evaluation, self._vitals = Evaluation(subject), Vitals(subject.spec)

    @torch.no_grad()
    def show(self) -> None:
        """Have the model make every image again, and all that judges it look on."""
        for inputs in self._runs(self._images):
            self._evaluation.update(inputs)
            self._vitals.update(inputs)
            if self._grid is not None:
                self._grid.update(inputs)
        if self._subject.anomalies is not None:
            for inputs in self._runs(self._subject.anomalies):
                self._evaluation.update_anomalies(inputs)

    def results(self) -> tuple[Metrics, dict[str, float]]:
        """Metrics, and vital signs."""
        return self._evaluation.compute(), self._vitals.compute()

    def _runs(self, images: ImageSet) -> Iterator[EvalInputs]:
        subject = self._subject
        spec = subject.spec
        for batch in val_batches(images, spec.data, batch_size=spec.batch_size, device=subject.device):
            yield run_batch(subject.autoencoder, batch, prefix=subject.prefix)


def run_batch(
    autoencoder: Autoencoder, batch: Batch, *, with_head: bool = True, prefix: Prefix | None = None
) -> EvalInputs:
    """What the model makes of a batch, on the mode of its posterior; ``prefix``: its own, if there is one."""
    encoding, made = (prefix or Prefix(autoencoder)).run(autoencoder.to_range(batch.inputs), batch)
    reconstruction = autoencoder.to_unit(made).float().clamp(0.0, 1.0)
    logits = autoencoder.head(encoding.latents) if autoencoder.head is not None and with_head else None
    return EvalInputs(batch.images, batch.inputs, reconstruction, encoding, logits, batch.labels, batch.factors)
