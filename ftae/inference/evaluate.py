"""Evaluates a model: the fixed metrics over a set of images, and scores for each image."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.files.decoding import stored_shape, stored_type
from ftae.engine.data.files.listing import as_text, check_output
from ftae.engine.data.image_folder import levels_of
from ftae.engine.data.source_base import ImageSet
from ftae.engine.data.stored_parts import ImagesChanged
from ftae.engine.objectives.auxiliary import build_auxiliary_networks
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.metrics import mse, psnr
from ftae.engine.training.evaluator import (
    Metrics,
    check_metrics,
    evaluate,
    missing_for,
    missing_in_training,
    run_batch,
)
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import beside, heat, named_folder, pixels_of, save_sheet, validation_names
from ftae.inference.source import changed
from ftae.specs.finetune import needs
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.reading.problems import one_of

SCORES = {"mse": mse, "psnr": psnr}
SCORES_FILE, HEAT_MAPS_FILE = "scores.csv", "heatmaps.png"


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model by name, and the number of images they were measured on."""

    metrics: Metrics
    num_images: int


@dataclass(frozen=True)
class EvaluationImages:
    """Images to evaluate a model on: the normal images, with the labels of the model's classes, then any anomalies.

    Attributes:
        names: the name of each image; None where the image files are gone.
        classes: the class of each image; None without classes.
        notes: lines for the user about the image files.
    """

    images: ImageSet
    anomalies: ImageSet | None
    names: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts())

    def single(self, row: int) -> ImageSet:
        """Return image number ``row``, counted over both parts."""
        part, row = (self.images, row) if row < len(self.images) else (self.anomalies, row - len(self.images))
        assert part is not None
        return part.subset(slice(row, row + 1))

    def parts(self) -> list[ImageSet]:
        return [self.images] if self.anomalies is None else [self.images, self.anomalies]


@dataclass(frozen=True)
class ImageScores:
    """The scores of each image, float64 (N,), in the order of ``EvaluationImages``."""

    mse: npt.NDArray[np.float64]
    psnr: npt.NDArray[np.float64]

    def worst(self, count: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the images with the largest error, the worst first."""
        return np.argsort(-self.mse, kind="stable")[:count]


def evaluate_model(
    model: TunedModel,
    folder: str | None,
    metrics: Sequence[str] | None,
    *,
    out: Path | None,
    heatmaps: int,
    notify: Callable[[str], None],
) -> Evaluation:
    """Measure a model on the images of ``folder``, by default on the validation images of its run.

    Args:
        metrics: the metrics to measure; by default those of the run that these images allow.
        out: a folder for ``scores.csv``, which holds the scores of each image.
        heatmaps: how many of the worst images to draw in ``heatmaps.png`` in ``out``.
        notify: receives notes about the images, and each metric that cannot be measured.

    Raises:
        FtaeError: there are no images, a metric cannot be measured on them, or ``out`` lies among images.
    """
    if heatmaps and out is None:
        raise FtaeError("--heatmaps needs --out, the folder for the pictures")
    if out is not None and model.spec.use == "sample":
        raise FtaeError(f"{model.spec.model.family} makes no image of an image: leave out --out and --heatmaps")
    if out is not None:
        folders = model.spec.data.image_folders() | ({} if folder is None else {"--data": folder})
        check_output(out, folders, writes_folders=False)
    images = evaluation_images(model, folder)
    for note in images.notes:
        notify(note)
    chosen = choose_metrics(model, images, metrics)
    for reason in unavailable_metrics(model, images) if metrics is None else []:
        notify(f"not measured: {reason}")
    found = Evaluation(measure(model, images, chosen), len(images))
    if out is not None:
        _write(model, images, out, heatmaps, notify)
    return found


def evaluation_images(model: TunedModel, folder: str | None) -> EvaluationImages:
    """Return the validation images of the run, or all images of ``folder``.

    Raises:
        FtaeError: there are none.
    """
    if folder is None:
        return _validation(model)
    found = named_folder(folder, model.data, model.scale)
    if not len(found.images):
        raise FtaeError(f"all images of {folder} are of data.anomaly_classes: there are no normal images")
    known, labels = model.class_names or (), None
    if found.class_names is not None and set(found.class_names) <= set(known):
        labels = np.array([known.index(name) for name in found.class_names], dtype=np.int64)[found.images.labels]
    images = replace(found.images, labels=labels)
    return EvaluationImages(images, found.anomalies, found.names.images, found.names.classes, found.notes)


def _validation(model: TunedModel) -> EvaluationImages:
    spec, notes = model.spec.data, []
    try:
        data = load_dataset(spec)
    except ImagesChanged as error:
        spec = spec.model_copy(update={"fingerprint": None})
        data = load_dataset(spec)
        notes.append(f"{error}. The metrics are of the images as they are now")
    notes += data.notes
    names = validation_names(spec)
    if names is None:
        notes.append("the image files are gone or have changed; images are identified by their number alone")
        return EvaluationImages(data.val, data.anomalies, None, None, tuple(notes))
    return EvaluationImages(data.val, data.anomalies, names.images, names.classes, tuple(notes))


def choose_metrics(model: TunedModel, images: EvaluationImages, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to measure: ``wanted``, or by default the metrics of the run that these images allow.

    Raises:
        FtaeError: a wanted metric does not exist or cannot be measured.
    """
    if wanted is None:
        return tuple(name for name in model.spec.metrics if _obstacle(name, model, images) is None)
    for name in wanted:
        if name not in METRICS:
            raise FtaeError(f"a metric {one_of(list(METRICS), name)}")
        if reason := _obstacle(name, model, images):
            raise FtaeError(f"{name} {reason}")
    return changed(model.spec, {"metrics": list(wanted)}).metrics


def unavailable_metrics(model: TunedModel, images: EvaluationImages) -> list[str]:
    """Return the metrics of the run that these images do not allow, each with the reason."""
    return [f"{name} {reason}" for name in model.spec.metrics if (reason := _obstacle(name, model, images))]


def _obstacle(metric: str, model: TunedModel, images: EvaluationImages) -> str | None:
    """Return why a metric cannot be measured on these images; None if it can."""
    facts = METRICS[metric]
    if images.images.labels is None and {needs.labels, needs.head} & set(facts.needs):
        return "needs the classes the model was trained with; these images have none of them"
    if images.anomalies is None and needs.anomalies in facts.needs:
        return "needs images of data.anomaly_classes; there are none"
    if needs.discriminator in facts.needs:
        return "needs the discriminator, which only the run itself has"
    reason = missing_for(metric, images.images)
    if reason is None and needs.features in facts.needs:
        reason = missing_in_training(metric, _training_images(model))
    return None if reason is None else f"needs {reason}"


def measure(model: TunedModel, images: EvaluationImages, metrics: tuple[str, ...]) -> Metrics:
    """Measure metrics over all the images, exactly as a run does for its reports.

    Raises:
        FtaeError: a metric compares with the training images or with another model, and those are missing.
    """
    # Metrics use parts of the classification loss only; with the other losses off, their networks are not loaded.
    losses = model.spec.losses.model_copy(update={term: 0.0 for term in Losses.TERMS if term != "ce"})
    spec = model.spec.model_copy(update={"metrics": metrics, "losses": losses})
    num_classes = None if model.class_names is None else len(model.class_names)
    with model.settings():
        auxiliary = build_auxiliary_networks(spec, num_classes, model.device)
        train = _training_images(model)
        check_metrics(metrics, train, images.images)
        context = EvalContext(model.autoencoder, spec, auxiliary, train, model.device, images.anomalies)
        return evaluate(context, images.images)[0]


def score_images(model: TunedModel, images: EvaluationImages) -> ImageScores:
    """Measure the scores of every image."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    with model.settings():
        for batch in (batch for part in images.parts() for batch in _reconstructed(model, part)):
            for name, values in SCORES.items():
                found[name] += values(batch).double().tolist()
    return ImageScores(**{name: np.array(values) for name, values in found.items()})


def _write(
    model: TunedModel, images: EvaluationImages, out: Path, heatmaps: int, notify: Callable[[str], None]
) -> None:
    scores = score_images(model, images)
    write_scores(images, scores, out / SCORES_FILE)
    notify(f"{out / SCORES_FILE}: the scores of each of {len(images)} images")
    if heatmaps:
        worst = scores.worst(heatmaps)
        largest = write_heat_maps(model, images, worst, out / HEAT_MAPS_FILE)
        notify(
            f"{out / HEAT_MAPS_FILE}: input, reconstruction and error of the {len(worst)} worst images, the worst "
            f"on top; the lightest colour is an error of {largest:.3g} of the image range"
        )


def write_scores(images: EvaluationImages, scores: ImageScores, path: Path) -> None:
    """Write a CSV file with a row for each image.

    The columns: ``image`` (name or number), ``label`` where there are classes, ``anomaly`` (1 or 0) where there are
    anomalies, ``mse`` and ``psnr`` (dB).
    """
    names = map(as_text, images.names) if images.names else range(len(images))
    columns: dict[str, Iterable[object]] = {"image": names}
    if images.classes is not None:
        columns["label"] = map(as_text, images.classes)
    if images.anomalies is not None:
        columns["anomaly"] = [0] * len(images.images) + [1] * len(images.anomalies)
    columns |= {name: getattr(scores, name) for name in SCORES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_heat_maps(model: TunedModel, images: EvaluationImages, rows: npt.NDArray[np.int64], path: Path) -> float:
    """Draw the error of some images, a row each: input | reconstruction | absolute error, averaged over channels.

    The colours go from black for no error to light yellow for the largest error of these images. Returns that error,
    as a fraction of the image range.
    """
    # The degradation of an image depends on its number within its set, so it is the same here as in the scores.
    with model.settings():
        runs = [batch for row in rows for batch in _reconstructed(model, images.single(int(row)))]
    given, target, made = (
        torch.cat([getattr(run, part) for run in runs]) for part in ("given", "target", "reconstruction")
    )
    errors = (target - made).abs().mean(1).double().cpu().numpy()
    largest = float(errors.max())
    cells = beside(pixels_of(given), pixels_of(made), heat(errors / max(largest, 1e-12)))
    save_sheet(cells, path, columns=1)
    return largest


@torch.no_grad()
def _reconstructed(model: TunedModel, images: ImageSet) -> Iterator[EvalBatch]:
    for batch in val_batches(images, model.spec.data, batch_size=model.spec.batch_size, device=model.device):
        yield run_batch(model.autoencoder, batch, with_head=False)


def _training_images(model: TunedModel) -> ImageSet:
    """Return the training images, pinned if they still exist in that state; an empty set if they are missing.

    Only some metrics use them; the others can be measured without.
    """
    data = model.spec.data
    for spec in (data, data.model_copy(update={"fingerprint": None})):
        with suppress(FtaeError):
            return load_dataset(spec).train
    empty = np.empty((0, *stored_shape(data)), stored_type(data))
    return ImageSet(empty, None, levels=levels_of(data))
