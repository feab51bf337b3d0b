"""Rules that images must keep to. Each is checked on the list of files before decoding and again on loaded images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ftae.engine.data.files.listing import legible
from ftae.errors import FtaeError
from ftae.specs.finetune import needs
from ftae.specs.finetune.data_spec import DataSpec, normal_classes
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import count

MOST_NAMED = 5  # files named in one message

# ------------------------------------------------------------------------------------------- the split


def check_folders_apart(spec: DataSpec) -> None:
    """No folder of validation images may also be one of training images, neither here nor in the replayed domain."""
    folders = spec.image_folders()
    for train in (leaf for leaf in folders if leaf.endswith((".train", ".inputs"))):
        for val in (leaf for leaf in folders if leaf.endswith((".val", ".val_inputs"))):
            train_path, val_path = (Path(folders[leaf]).expanduser().resolve() for leaf in (train, val))
            if train_path.is_relative_to(val_path) or val_path.is_relative_to(train_path):
                raise FtaeError(
                    f"{train} ({folders[train]}) and {val} ({folders[val]}) must be separate folders or archives, "
                    "neither inside the other: validation images must not be trained on. A val between 0 and 1 holds "
                    "out a share of train"
                )


def check_anomaly_classes(spec: DataSpec, class_names: Iterable[str]) -> None:
    """``data.anomaly_classes`` must name existing classes, and leave at least one class to train on."""
    names = tuple(class_names)
    if spec.anomaly_classes and not names:
        raise FtaeError("data.anomaly_classes needs classes: put the images of each into a sub-folder of data.train")
    try:
        normal_classes(names, spec.anomaly_classes)
    except ValueError as error:
        raise FtaeError(str(error)) from error


def check_anomalies_found(spec: DataSpec, num_anomalies: int) -> None:
    """Validation must have images of ``data.anomaly_classes``, where these are named."""
    if spec.anomaly_classes and not num_anomalies:
        raise FtaeError(f"data.anomaly_classes: no validation image is of {', '.join(spec.anomaly_classes)}")


def check_enough_to_split(num_images: int, val: float | int) -> None:
    """A share can be held out of at least 2 images, a count of more images than it."""
    if num_images < 2:
        raise FtaeError(
            f"data.val as a share needs at least 2 readable images, found {num_images}; add images or name a val folder"
        )
    if isinstance(val, int) and val >= num_images:
        raise FtaeError(
            f"data.val: {val} images to hold out must be fewer than all, found {count(num_images, 'readable image')}"
        )


def check_not_empty(leaf: str, folder: str, num_images: int) -> None:
    """A folder, named by ``leaf``, must hold images that are no anomalies; ``num_images``: how many there are."""
    if not num_images:
        raise FtaeError(f"{leaf} ({folder}) has no readable image that is not of data.anomaly_classes")


def check_val_classes(val_folder: str, train: Iterable[str], val: Iterable[str]) -> None:
    """The validation folder must not have classes, other than anomalies, that the training folder lacks."""
    known = tuple(train)
    unknown = [legible(name) for name in val if name not in known]
    if unknown:
        has = f"has only {', '.join(map(legible, known))}" if known else "has no class folders"
        raise FtaeError(f"data.val ({val_folder}) has the class folders {', '.join(unknown)}, but data.train {has}")


def check_labelled_fraction(spec: DataSpec, has_labels: bool) -> None:
    """A share of the labels can be kept only where there are labels."""
    if spec.labelled_fraction < 1.0 and not has_labels:
        raise FtaeError(f"data.labelled_fraction ({spec.labelled_fraction:g}) needs {_labels_in('data.train')}")


# ------------------------------------------------------------------------------------ losses and metrics


def check_labels(run: FinetuneSpec, *, num_classes: int, val_labelled: bool) -> None:
    """The labels must serve the losses and metrics of a run.

    Args:
        num_classes: the number of different labels of the training images; 0 where they have no labels.
        val_labelled: whether the validation images have labels.
    """
    if run.losses.ce > 0.0 and not num_classes:
        raise FtaeError(f"losses.ce needs {_labels_in('data.train')}")
    for metric in run.metrics:
        if reason := missing_to_train(metric, num_classes) or missing_labels(metric, val_labelled):
            raise FtaeError(f"metrics: {metric} needs {reason}")


def missing_images(metric: str, num_val: int, data: str = "data") -> str | None:
    """What a metric needs if ``num_val`` validation images are too few; None if they are enough."""
    least = METRICS[metric].least_images
    return f"at least {count(least, 'validation image')}, {data} has {num_val}" if num_val < least else None


def missing_labels(metric: str, val_labelled: bool, data: str = "data") -> str | None:
    """What a metric needs if it compares with labels and validation images have none; None otherwise."""
    compares = {needs.labels, needs.head} & set(METRICS[metric].needs)
    return _labels_in(f"{data}.val") if compares and not val_labelled else None


def missing_to_train(metric: str, num_classes: int, data: str = "data") -> str | None:
    """What a metric that is fitted to labels needs of the training images, of ``num_classes``; None if nothing."""
    if needs.labels not in METRICS[metric].needs or num_classes > 1:
        return None
    if num_classes == 0:
        return _labels_in(f"{data}.train")
    return f"training images of at least 2 classes, {data} has {num_classes}"


def _labels_in(leaf: str) -> str:
    return f"labels: put the images of each class into a sub-folder of {leaf}"


# ------------------------------------------------------------------------------------------- messages


def skipped_message(skipped: Sequence[str]) -> str:
    """One line that counts and names the images left out, each given as "name: reason"."""
    named = "; ".join(map(legible, skipped[:MOST_NAMED])) + ("; ..." if len(skipped) > MOST_NAMED else "")
    verb = "is" if len(skipped) == 1 else "are"
    return f"{count(len(skipped), 'image')} cannot be read and {verb} skipped: {named}"
