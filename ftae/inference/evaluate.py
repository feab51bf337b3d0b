"""How well a model does on images: the fixed metrics over all of them, and the error of each."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import ImagesChanged, load_dataset
from ftae.engine.data.image_names import named_folder, validation_names
from ftae.engine.data.image_set import ImageSet
from ftae.engine.data.listing import as_text
from ftae.engine.objectives.auxiliary import build_auxiliary_networks
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.metrics import mse, psnr
from ftae.engine.training.evaluator import Metrics, check_metrics, evaluate, missing_for, run_batch
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import beside, heat, pixels_of, save_sheet
from ftae.inference.source import changed
from ftae.specs.finetune import needs
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.reading.problems import one_of

SCORES = {"mse": mse, "psnr": psnr}


@dataclass(frozen=True)
class Judged:
    """Images to judge a model by: the normal ones, labelled by the model's classes, and any anomalies behind them.

    ``names``: None where the files of the images are gone. ``classes``: the class of each, None where there
    are none. ``notes``: what the user should know of them.
    """

    images: ImageSet
    anomalies: ImageSet | None
    names: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts())

    def one(self, row: int) -> ImageSet:
        """The image of this number among all."""
        part, row = (self.images, row) if row < len(self.images) else (self.anomalies, row - len(self.images))
        assert part is not None
        return part.subset(slice(row, row + 1))

    def parts(self) -> list[ImageSet]:
        return [self.images] if self.anomalies is None else [self.images, self.anomalies]


@dataclass(frozen=True)
class Scores:
    """The error of each image, in the order of ``Judged.images``: float64 (N,)."""

    mse: npt.NDArray[np.float64]
    psnr: npt.NDArray[np.float64]

    def worst(self, count: int) -> npt.NDArray[np.int64]:
        """The images of the largest error, the worst first."""
        return np.argsort(-self.mse, kind="stable")[:count]


def images_to_judge(model: TunedModel, folder: str | None) -> Judged:
    """The validation images of the run, or all those of ``folder``.

    Raises:
        FtaeError: there are none.
    """
    if folder is None:
        return _validation(model)
    found = named_folder(folder, model.spec.data)
    if not len(found.images):
        raise FtaeError(f"all images of {folder} are of data.anomaly_classes: there are no others to tell them from")
    known, labels = model.class_names or (), None
    if found.class_names is not None and set(found.class_names) <= set(known):
        labels = np.array([known.index(name) for name in found.class_names], dtype=np.int64)[found.images.labels]
    images = replace(found.images, labels=labels)
    return Judged(images, found.anomalies, found.names.images, found.names.classes, found.notes)


def _validation(model: TunedModel) -> Judged:
    spec, notes = model.spec.data, []
    try:
        data = load_dataset(spec)
    except ImagesChanged as error:
        spec = spec.model_copy(update={"fingerprint": None})
        data = load_dataset(spec)
        notes.append(f"{error}. These are the figures of the images as they are now")
    notes += data.notes
    names = validation_names(spec)
    if names is None:
        notes.append("the files of the images are gone or have changed; they are told by their number alone")
        return Judged(data.val, data.anomalies, None, None, tuple(notes))
    return Judged(data.val, data.anomalies, names.images, names.classes, tuple(notes))


def metrics_for(model: TunedModel, judged: Judged, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to measure: those ``wanted``, by default the run's, as far as the images have what they need.

    Raises:
        FtaeError: one of those wanted cannot be measured.
    """
    if wanted is None:
        return tuple(name for name in model.spec.metrics if _lacking(name, judged) is None)
    for name in wanted:
        if name not in METRICS:
            raise FtaeError(f"a metric {one_of(list(METRICS), name)}")
        if reason := _lacking(name, judged):
            raise FtaeError(f"{name} {reason}")
    return changed(model.spec, {"metrics": list(wanted)}).metrics


def left_out(model: TunedModel, judged: Judged) -> list[str]:
    """The metrics of the run that these images cannot have, each with the reason."""
    return [f"{name} {reason}" for name in model.spec.metrics if (reason := _lacking(name, judged))]


def _lacking(metric: str, judged: Judged) -> str | None:
    """What of these images a metric would need that they have not; None if nothing."""
    facts = METRICS[metric]
    if judged.images.labels is None and {needs.labels, needs.head} & set(facts.needs):
        return "needs the classes the model was trained with; these images have none of them"
    if judged.anomalies is None and needs.anomalies in facts.needs:
        return "needs images of data.anomaly_classes; there are none"
    reason = missing_for(metric, judged.images)
    return None if reason is None else f"needs {reason}"


def measure(model: TunedModel, judged: Judged, metrics: tuple[str, ...]) -> Metrics:
    """The metrics over all the images: as the run reports them.

    Raises:
        FtaeError: one compares with the training images or with a model, and they are not here.
    """
    # Of the losses only those whose parts metrics look at: no other network is to be loaded.
    losses = model.spec.losses.model_copy(update={term: 0.0 for term in Losses.TERMS if term != "ce"})
    spec = model.spec.model_copy(update={"metrics": metrics, "losses": losses})
    num_classes = None if model.class_names is None else len(model.class_names)
    auxiliary = build_auxiliary_networks(spec, num_classes, model.device)
    train = _training_images(model)
    check_metrics(metrics, train, judged.images)
    subject = EvalContext(model.autoencoder, spec, auxiliary, train, model.device, judged.anomalies)
    return evaluate(subject, judged.images)[0]


def score(model: TunedModel, judged: Judged) -> Scores:
    """The error of every image."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    for inputs in (run for part in judged.parts() for run in _runs(model, part)):
        for name, values in SCORES.items():
            found[name] += values(inputs).double().tolist()
    return Scores(**{name: np.array(values) for name, values in found.items()})


def write_scores(judged: Judged, scores: Scores, path: Path) -> None:
    """One line an image: name (or number), class if any, anomaly (1 or 0) if there are any, mse, psnr (dB)."""
    columns: dict[str, Iterable[object]] = {"image": map(as_text, judged.names) if judged.names else range(len(judged))}
    if judged.classes is not None:
        columns["label"] = map(as_text, judged.classes)
    if judged.anomalies is not None:
        columns["anomaly"] = [0] * len(judged.images) + [1] * len(judged.anomalies)
    columns |= {name: getattr(scores, name) for name in SCORES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_heat_maps(model: TunedModel, judged: Judged, rows: npt.NDArray[np.int64], path: Path) -> float:
    """One row for each of these images: given | reconstruction | absolute error, mean over channels.

    The colours go from black for no error to light yellow for the largest of all of them, which is
    returned, in shares of the image range.
    """
    # A degraded image is always degraded in the same way, by its number in its set.
    runs = [run for row in rows for run in _runs(model, judged.one(int(row)))]
    given, target, made = (
        torch.cat([getattr(run, part) for run in runs]) for part in ("given", "target", "reconstruction")
    )
    errors = (target - made).abs().mean(1).double().cpu().numpy()
    largest = float(errors.max())
    cells = beside(pixels_of(given), pixels_of(made), heat(errors / max(largest, 1e-12)))
    save_sheet(cells, path, columns=1)
    return largest


@torch.no_grad()
def _runs(model: TunedModel, images: ImageSet) -> Iterator[EvalBatch]:
    for batch in val_batches(images, model.spec.data, batch_size=model.spec.batch_size, device=model.device):
        yield run_batch(model.autoencoder, batch, with_head=False)


def _training_images(model: TunedModel) -> ImageSet:
    """Some metrics look at them; the others can be measured where they are not. As they were, if they are kept."""
    data = model.spec.data
    for spec in (data, data.model_copy(update={"fingerprint": None})):
        with suppress(FtaeError):
            return load_dataset(spec).train
    return ImageSet(np.empty((0, data.decoded_side, data.decoded_side, data.channels), np.uint8), None)
