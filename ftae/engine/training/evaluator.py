"""Evaluates a model on validation images: metrics, and a picture of some reconstructions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.data.batches import Batch, evaluation_noise, val_batches
from ftae.engine.data.checks import missing_images, missing_labels, missing_to_train
from ftae.engine.data.dataset import Dataset
from ftae.engine.data.source_base import ImageSet
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.latent_metrics import probe_rows, varying
from ftae.engine.objectives.metrics import CollapseDetector, Evaluation
from ftae.engine.run_folder import GRID_IMAGES, GRID_MAX_WIDTH, GRID_MIN_SIDE, GRID_SAMPLE_COLUMNS, GRID_SAMPLES
from ftae.errors import FtaeError
from ftae.specs.finetune import needs
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import count

LEAST_FACTORS = {"mig": 1, "dci": 2}  # factors of variation that must vary
NUM_SAMPLES = 1000  # of a generator, unless the spec says otherwise
EDGE_METRICS = ("sharpness", "edge_distance")
Metrics = dict[str, float]
Findings = tuple[Metrics, dict[str, float]]  # the metrics of an evaluation, and its collapse signs


def check_images(spec: FinetuneSpec, data: Dataset) -> None:
    """Check that the metrics of a run can be computed on its images.

    Raises:
        FtaeError: one cannot.
    """
    check_metrics(spec.metrics, data.train, data.val)
    if data.replay is not None:
        check_metrics(spec.source_metrics(), data.replay.train, data.replay.val, "data.replay")


def check_metrics(metrics: Sequence[str], train: ImageSet, val: ImageSet, data: str = "data") -> None:
    """Raises as ``check_images``; ``data``: the field of the spec that describes these images."""
    for metric in metrics:
        if reason := missing_in_training(metric, train, data) or missing_for(metric, val, data):
            raise FtaeError(f"metrics: {metric} needs {reason}")


def missing_for(metric: str, val: ImageSet, data: str = "data") -> str | None:
    """What a metric needs and the validation images do not have; None if nothing is missing."""
    factors = LEAST_FACTORS.get(metric, 0)
    if reason := missing_images(metric, len(val), data) or missing_labels(metric, val.labels is not None, data):
        return reason
    if factors and (val.factors is None or varying(val.factors).sum() < factors):
        return f"at least {count(factors, 'factor')} of variation with more than one value in validation"
    singles = (val.pixels(slice(i, i + 1)) for i in range(len(val)))
    if metric in EDGE_METRICS and all((image == image[:, :1, :1]).all() for image in singles):
        return f"edges: each validation image of {data} is of one colour"
    return None


def missing_in_training(metric: str, train: ImageSet, data: str = "data") -> str | None:
    """What a metric needs and the training images do not have; None if nothing is missing."""
    if needs.features in METRICS[metric].needs and not len(train):
        return f"the training images of {data}, which give features their scale"
    if len(train) < (least := METRICS[metric].least_train_images):
        return f"at least {count(least, 'training image')}, {data} has {len(train)}"
    labels = train.labels
    num_classes = 0 if labels is None else len(np.unique(labels[probe_rows(labels)]))
    return missing_to_train(metric, num_classes, data)


@dataclass(frozen=True)
class EvalSet:
    """Validation images, the model to evaluate on them, and the name that comes before the metrics in reports."""

    name: str
    context: EvalContext
    images: ImageSet

    def first(self, number: int) -> "EvalSet":
        """The same with the first ``number`` normal images and the first ``number`` anomalies."""
        context, anomalies = self.context, self.context.anomalies
        if anomalies is not None:
            context = replace(context, anomalies=anomalies.subset(slice(number)))
        return EvalSet(self.name, context, self.images.subset(slice(number)))

    def __len__(self) -> int:
        anomalies = self.context.anomalies
        return len(self.images) + (0 if anomalies is None else len(anomalies))


class Grid:
    """A picture of fixed validation images, each as input | reconstruction | absolute difference.

    Where the input is degraded, the third is the clean image; pairs show it between reconstruction and difference. A
    generator shows what it makes of fixed noise alone. A model that translates both ways shows input | output | what
    the way back makes of it, and the true output where it is known. The outputs are those of the evaluation, so the
    picture costs no forward pass.
    """

    def __init__(self, spec: FinetuneSpec, num_images: int) -> None:
        self._spec, self._columns = spec, 2 if num_images >= GRID_IMAGES else 1
        most = GRID_IMAGES
        if spec.model.takes_noise:
            most, self._columns = GRID_SAMPLES, min(GRID_SAMPLE_COLUMNS, num_images)
            num_images -= num_images % self._columns  # whole rows
        self._chosen = np.linspace(0, num_images - 1, min(most, num_images)).astype(int)
        self._seen = 0
        self._cells: list[Tensor] = []  # (images, C, H, n * W)

    def update(self, batch: EvalBatch) -> None:
        """Take the chosen images of the next batch; all batches must come, in order."""
        rows = self._chosen - self._seen
        rows = rows[(rows >= 0) & (rows < len(batch.target))]
        self._cells.append(self._cells_of(batch, rows).cpu())
        self._seen += len(batch.target)

    def _cells_of(self, batch: EvalBatch, rows: npt.NDArray[np.int64]) -> Tensor:
        if self._spec.model.takes_noise:
            return batch.reconstruction[rows]
        given, reconstructed, target = (images[rows] for images in (batch.given, batch.reconstruction, batch.target))
        data, difference = self._spec.data, (target - reconstructed).abs()
        if batch.cycled is not None:
            others = [batch.cycled[rows], *([target] if data.truly_paired else [])]
        else:
            others = [target, difference] if data.paired else [difference if data.degrade is None else target]
        return torch.cat([given, reconstructed, *others], dim=3)

    def save(self, path: Path) -> None:
        """Write the picture as PNG."""
        cells = visible(torch.cat(self._cells))
        rows = cells.reshape(-1, self._columns, *cells.shape[1:]).permute(0, 3, 1, 4, 2)  # (rows, H, columns, n * W, C)
        if self._spec.data.of_floats:
            rows = rows.clamp(0.0, 1.0)
        picture = (rows * 255).round().to(torch.uint8).flatten(2, 3).flatten(0, 1).numpy()
        scale = max(1, min(-(-GRID_MIN_SIDE // min(self._spec.data.size)), GRID_MAX_WIDTH // picture.shape[1]))
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(path)


def visible(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as pictures (B, 1 or 3, H, W): of more channels the first three, of two their mean."""
    return images.mean(1, keepdim=True) if images.shape[1] == 2 else images[:, :3]


def evaluate_all(eval_sets: Sequence[EvalSet], grid: Grid | None = None) -> Findings:
    """The metrics of all sets as reports name them (``val/psnr``); collapse signs and ``grid`` are of the first set."""
    grids = [grid, *[None] * len(eval_sets[1:])]
    results = [
        (eval_set.name, *evaluate(eval_set.context, eval_set.images, its_grid))
        for eval_set, its_grid in zip(eval_sets, grids, strict=True)
    ]
    metrics = {f"{name}/{metric}": value for name, values, _ in results for metric, value in values.items()}
    return metrics, results[0][2]


def evaluate(context: EvalContext, images: ImageSet, grid: Grid | None = None) -> Findings:
    """The metrics of a model over all of ``images``, and its collapse signs; ``grid`` sees every batch of them.

    Draws nothing from the random generators.
    """
    evaluation = EvaluationPass(context, images, grid)
    evaluation.run()
    return evaluation.results()


class EvaluationPass:
    """One evaluation in its parts; only ``run`` takes longer the more images there are."""

    def __init__(self, context: EvalContext, images: ImageSet, grid: Grid | None = None) -> None:
        context.autoencoder.eval()
        self._context, self._images, self._grid = context, images, grid
        self._evaluation, self._collapse_signs = Evaluation(context), CollapseDetector(context.spec)

    @torch.no_grad()
    def run(self) -> None:
        """Run the model on every image, and update all metrics."""
        for outputs in self._outputs(self._images):
            self._evaluation.update(outputs)
            self._collapse_signs.update(outputs)
            if self._grid is not None:
                self._grid.update(outputs)
        if self._context.anomalies is not None:
            for outputs in self._outputs(self._context.anomalies):
                self._evaluation.update_anomalies(outputs)

    def results(self) -> Findings:
        for samples in self._further_samples():
            self._evaluation.update_samples(samples)
        return self._evaluation.compute(), self._collapse_signs.compute()

    def _outputs(self, images: ImageSet) -> Iterator[EvalBatch]:
        context = self._context
        spec, noise_dim = context.spec, context.autoencoder.noise_dim
        batches = val_batches(images, spec.data, batch_size=spec.batch_size, device=context.device, noise_dim=noise_dim)
        for batch in batches:
            yield run_batch(context.autoencoder, batch, frozen_cache=context.frozen_cache)

    @torch.no_grad()
    def _further_samples(self) -> Iterator[Tensor]:
        """What a generator makes of further noise, (B, C, H, W) in [0, 1]."""
        context = self._context
        autoencoder, spec = context.autoencoder, context.spec
        if autoencoder.noise_dim is None or not self._evaluation.takes_samples:
            return
        numbers = range(len(self._images), spec.num_samples or NUM_SAMPLES)
        for start in numbers[:: spec.batch_size]:
            noise = evaluation_noise(numbers[start - numbers.start :][: spec.batch_size], autoencoder.noise_dim)
            _, made = autoencoder.run(noise.to(context.device))
            yield autoencoder.to_unit(made).float().clamp(0.0, 1.0)


def run_batch(
    autoencoder: Autoencoder, batch: Batch, *, with_head: bool = True, frozen_cache: FrozenFeatureCache | None = None
) -> EvalBatch:
    """The outputs of the model for a batch, on the mode of its posterior.

    ``frozen_cache``: runs this model with cached features of its frozen start; None to compute everything.
    """
    encoding, decoded = (frozen_cache or FrozenFeatureCache(autoencoder)).run(autoencoder.as_input(batch.inputs), batch)
    reconstruction = autoencoder.to_unit(decoded).float().clamp(0.0, 1.0)
    logits = autoencoder.head(encoding.latents) if autoencoder.head is not None and with_head else None
    cycled = None
    if autoencoder.reverse is not None:
        cycled = autoencoder.to_unit(autoencoder.reverse(decoded)).float().clamp(0.0, 1.0)
    truth = (batch.labels, batch.factors, batch.ids)
    return EvalBatch(batch.images, batch.inputs, reconstruction, encoding, logits, *truth, cycled)
