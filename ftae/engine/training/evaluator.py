"""Evaluating a model on validation images: metrics, and a picture of some of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.data.batches import Batch, val_batches
from ftae.engine.data.checks import missing_images, missing_labels, missing_to_train
from ftae.engine.data.dataset import Dataset
from ftae.engine.data.image_set import ImageSet
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.latent_metrics import probe_rows, varying
from ftae.engine.objectives.metrics import CollapseDetector, Evaluation
from ftae.engine.run_folder import GRID_IMAGES, GRID_MIN_SIDE
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import count

LEAST_FACTORS = {"mig": 1, "dci": 2}  # that vary

OF_EDGES = ("sharpness", "edge_distance")


def check_images(spec: FinetuneSpec, data: Dataset) -> None:
    """Hold the metrics of a run against its images.

    Raises:
        FtaeError: one has no value on them.
    """
    check_enough(spec.metrics, data.train, data.val)
    if data.replay is not None:
        check_enough(spec.source_metrics(), data.replay.train, data.replay.val, "data.replay")


def check_enough(metrics: Sequence[str], train: ImageSet, val: ImageSet, data: str = "data") -> None:
    """Raises as ``check_images``; ``data``: the leaf that names these images."""
    for metric in metrics:
        if reason := lacking_to_train(metric, train, data) or lacking(metric, val, data):
            raise FtaeError(f"metrics: {metric} needs {reason}")


def lacking(metric: str, val: ImageSet, data: str = "data") -> str | None:
    """What a metric needs of the validation images that they have not; None if nothing."""
    factors = LEAST_FACTORS.get(metric, 0)
    if reason := missing_images(metric, len(val), data) or missing_labels(metric, val.labels is not None, data):
        return reason
    if factors and (val.factors is None or varying(val.factors).sum() < factors):
        return f"at least {count(factors, 'factor')} of variation with more than one value in validation"
    rows = range(len(val)) if val.rows is None else val.rows
    if metric in OF_EDGES and all((val.stored[row] == val.stored[row][:1, :1]).all() for row in rows):
        return f"edges: each validation image of {data} is of one colour"
    return None


def lacking_to_train(metric: str, train: ImageSet, data: str = "data") -> str | None:
    """What a metric needs of the training images that they have not; None if nothing."""
    labels = train.labels
    num_classes = 0 if labels is None else len(np.unique(labels[probe_rows(labels)]))
    return missing_to_train(metric, num_classes, data)


Metrics = dict[str, float]


@dataclass(frozen=True)
class EvalSet:
    """Validation images by the name under which reports have their metrics, and what is judged on them."""

    name: str
    subject: EvalContext
    images: ImageSet

    def few(self, count: int) -> "EvalSet":
        """The same on the first images, ``count`` of each kind."""
        anomalies = self.subject.anomalies
        few = None if anomalies is None else anomalies.subset(slice(count))
        return EvalSet(self.name, replace(self.subject, anomalies=few), self.images.subset(slice(count)))

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

    def update(self, inputs: EvalBatch) -> None:
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


def evaluate_all(eval_sets: Sequence[EvalSet], grid: Grid | None = None) -> tuple[Metrics, dict[str, float]]:
    """Every metric as reports name it (``val/psnr``), and the vital signs: these, as ``grid``, of the first part."""
    grids = [grid, *[None] * len(eval_sets[1:])]
    results = [
        (part.name, *evaluate(part.subject, part.images, its)) for part, its in zip(eval_sets, grids, strict=True)
    ]
    metrics = {f"{name}/{metric}": value for name, values, _ in results for metric, value in values.items()}
    return metrics, results[0][2]


def evaluate(subject: EvalContext, images: ImageSet, grid: Grid | None = None) -> tuple[Metrics, dict[str, float]]:
    """The metrics of the subject over all of ``images``, and its vital signs; ``grid`` is given every batch of them.

    Draws nothing from the random generators.
    """
    judging = Judging(subject, images, grid)
    judging.show()
    return judging.results()


class Judging:
    """One evaluation in its parts, of which ``show`` alone takes longer the more images there are."""

    def __init__(self, subject: EvalContext, images: ImageSet, grid: Grid | None = None) -> None:
        subject.autoencoder.eval()
        self._subject, self._images, self._grid = subject, images, grid
        self._evaluation, self._collapse_signs = Evaluation(subject), CollapseDetector(subject.spec)

    @torch.no_grad()
    def show(self) -> None:
        """Have the model make every image again, and all that judges it look on."""
        for inputs in self._runs(self._images):
            self._evaluation.update(inputs)
            self._collapse_signs.update(inputs)
            if self._grid is not None:
                self._grid.update(inputs)
        if self._subject.anomalies is not None:
            for inputs in self._runs(self._subject.anomalies):
                self._evaluation.update_anomalies(inputs)

    def results(self) -> tuple[Metrics, dict[str, float]]:
        """Metrics, and vital signs."""
        return self._evaluation.compute(), self._collapse_signs.compute()

    def _runs(self, images: ImageSet) -> Iterator[EvalBatch]:
        subject = self._subject
        spec = subject.spec
        for batch in val_batches(images, spec.data, batch_size=spec.batch_size, device=subject.device):
            yield run_batch(subject.autoencoder, batch, frozen_cache=subject.frozen_cache)


def run_batch(
    autoencoder: Autoencoder,
    batch: Batch,
    *,
    with_head: bool = True,
    frozen_cache: FrozenFeatureCache | None = None,
) -> EvalBatch:
    """The model's reconstructions of a batch, from the mode of its posterior; ``frozen_cache``: the model's, if any."""
    encoding, made = (frozen_cache or FrozenFeatureCache(autoencoder)).run(autoencoder.to_range(batch.inputs), batch)
    reconstruction = autoencoder.to_unit(made).float().clamp(0.0, 1.0)
    logits = autoencoder.head(encoding.latents) if autoencoder.head is not None and with_head else None
    return EvalBatch(batch.images, batch.inputs, reconstruction, encoding, logits, batch.labels, batch.factors)
