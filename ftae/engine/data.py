"""The images of a run: decoded once per machine, memory-mapped, split into training and validation.

Both sets are in a fixed shuffled order that depends on the images' names alone, so the first few
validation images are a fair sample, and the split is the same for every trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ftae.engine.anomalies import normal_first, parted
from ftae.engine.builtin import content_of, source_of
from ftae.engine.image_cache import (
    FORMAT,
    StoredImages,
    content_fingerprint,
    digest,
    recalled_keys,
    remember_keys,
    stored_images,
)
from ftae.engine.sources import (
    Labels,
    Pixels,
    Source,
    folder_source,
    image_shape,
    list_images,
    num_held_out,
)
from ftae.errors import FtaeError
from ftae.specs.data import AnyData, DataSpec, ImageFolder, normal_classes


@dataclass(frozen=True)
class Origin:
    """A whole set of images: ``key`` is of no other."""

    key: str
    num_images: int


@dataclass(frozen=True)
class ImageSet:
    """Images and, if they have any, labels.

    ``images``: uint8 (N, side, side, channels), memory-mapped, read-only; side is
    ``DataSpec.decoded_side``. ``labels``: int64 (N,), indices into ``Dataset.class_names``.
    ``labels`` are -1 for an image without one. ``numbers``: where in the whole set each image is, for some
    that were taken from it; None for a whole set. ``factors``: int64 (N, F), the values of the factors of
    variation that the images were made of, where these are known. ``origin``: the whole set, of a dataset.
    Pickling copies the pixels: load the dataset where it is used instead.
    """

    images: Pixels
    labels: Labels | None
    numbers: npt.NDArray[np.int64] | None = None
    factors: Labels | None = None
    origin: Origin | None = None

    def taken(self, rows: slice | npt.NDArray[np.int64]) -> "ImageSet":
        """Some of the images, each still known by its number."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        labels, factors = (None if its is None else its[rows] for its in (self.labels, self.factors))
        return ImageSet(self.images[rows], labels, numbers[rows], factors, self.origin)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """Training and validation images.

    ``anomalies``: validation images of ``data.anomaly_classes``, without labels; None where it names none.
    ``replay``: those of ``data.replay``; its training images are mixed into the batches.
    ``fingerprint`` changes with any pixel, label, or the split, and with nothing else; behind a ``+``, that of
    the replayed images.
    ``skipped``: the files that could not be decoded, each as "path: reason".
    """

    train: ImageSet
    val: ImageSet
    anomalies: ImageSet | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[str, ...]
    replay: "Dataset | None" = None

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    def skipped_message(self) -> str:
        """One line that counts and names the images that were left out."""
        named = "; ".join(self.skipped[:5]) + ("; ..." if len(self.skipped) > 5 else "")
        return f"{len(self.skipped)} images cannot be read and are skipped: {named}"


class ImagesChanged(FtaeError):
    """The images are not those of ``data.fingerprint``."""


@lru_cache(maxsize=8)
def load_dataset(spec: AnyData) -> Dataset:
    """The images that ``spec`` describes; loaded once per process, decoded once per machine.

    Raises:
        FtaeError: the images are missing, all damaged, too few or too small for the split, ``val`` has
            classes that ``train`` lacks, there are no anomalies of a name, or the cache cannot be written.
        ImagesChanged: they are not those of ``spec.fingerprint``.
    """
    own, _, of_replay = (spec.fingerprint or "").partition("+")
    dataset = _own_images(spec.model_copy(update={"fingerprint": own or None}))
    if spec.replay is None:
        return dataset
    _check_not_trained_on(spec)
    pinned = {"fingerprint": of_replay} if of_replay else {}
    replay = load_dataset(spec.replay.model_copy(update=pinned))
    fingerprint, skipped = f"{dataset.fingerprint}+{replay.fingerprint}", dataset.skipped + replay.skipped
    return replace(dataset, fingerprint=fingerprint, skipped=skipped, replay=replay)


def _own_images(spec: AnyData) -> Dataset:
    dataset = _as_pinned(spec, _from_folders(spec) if isinstance(spec, ImageFolder) else _builtin(spec))
    if spec.labelled_fraction < 1.0:
        train = replace(dataset.train, labels=_partly_labelled(dataset, spec.labelled_fraction))
        dataset = replace(dataset, train=train)
    return _with_origins(dataset)


def _with_origins(dataset: Dataset) -> Dataset:
    sets = {name: getattr(dataset, name) for name in ("train", "val", "anomalies")}
    known = {
        name: its and replace(its, origin=Origin(f"{dataset.fingerprint}-{name}", len(its)))
        for name, its in sets.items()
    }
    return replace(dataset, **known)


def _from_folders(spec: ImageFolder) -> Dataset:
    known: Sequence[str | None] = (spec.fingerprint and recalled_keys(spec.fingerprint)) or [None]
    train, key = _folder(spec.train, spec, known[0])
    if isinstance(spec.val, float):
        dataset, keys = _split(train, spec, key), [key]
    else:
        _check_apart(("data.train", spec.train), ("data.val", spec.val))
        val, val_key = _folder(spec.val, spec, known[-1])
        dataset, keys = _joined(spec, train, val, digest([key, val_key])), [key, val_key]
    remember_keys(dataset.fingerprint, keys)
    return dataset


def _partly_labelled(dataset: Dataset, share: float) -> Labels:
    """The training labels, of each class only the first ``share`` left: the order is that of a hash of the names."""
    labels = dataset.train.labels
    if labels is None:
        raise FtaeError(
            f"data.labelled_fraction ({share:g}) needs labels: put the images of each class into a sub-folder of "
            "data.train"
        )
    kept = np.full_like(labels, -1)
    for label in np.unique(labels):
        its = np.flatnonzero(labels == label)
        kept[its[: max(1, round(share * len(its)))]] = label
    kept.setflags(write=False)
    return kept


def _as_pinned(spec: AnyData, dataset: Dataset) -> Dataset:
    if spec.fingerprint in (None, dataset.fingerprint):
        return dataset
    where = spec.train if isinstance(spec, ImageFolder) else spec.source
    raise ImagesChanged(
        f"the images of {where} are not those of data.fingerprint {spec.fingerprint}: files came, went or changed, "
        "and this machine has no copy of them as they were. Put them back, or begin anew with the images as they are"
    )


def _builtin(spec: AnyData) -> Dataset:
    assert not isinstance(spec, ImageFolder)
    key = image_key(content_of(spec), spec)

    def source() -> Source:
        return normal_first(source_of(spec), spec.anomaly_classes)

    return _split(stored_images(key, source), spec, key)


def _folder(path: str, spec: DataSpec, known_key: str | None) -> tuple[StoredImages, str]:
    """The images of one folder, and their key; skipped files named from ``path`` on.

    ``known_key``: they are cached under it, whatever is in the folder now.
    """
    key = known_key
    if known_key is None:
        files = list_images(Path(path).expanduser())
        key = image_key(content_fingerprint(files), spec)
    assert key is not None
    stored = stored_images(key, lambda: normal_first(folder_source(files, spec), spec.anomaly_classes))
    return replace(stored, skipped=tuple(str(Path(path) / entry) for entry in stored.skipped)), key


def image_key(content: object, spec: DataSpec) -> str:
    """What images of this content are cached under, in the size, colour and order of ``spec``."""
    behind = [sorted(spec.anomaly_classes)] if spec.anomaly_classes else []
    return digest([FORMAT, content, *image_shape(spec), *behind])


def _split(stored: StoredImages, spec: AnyData, key: str) -> Dataset:
    """The last share of the normal images for validation, and all others."""
    assert isinstance(spec.val, float)
    _check_anomalies(spec, stored.class_names or ())
    normal, others = parted(stored, spec.anomaly_classes)
    count = len(normal.images)
    if count < 2:
        raise FtaeError(
            f"data.val as a share needs at least 2 readable images, found {count}; add images or name a val folder"
        )
    num_train = count - num_held_out(count, spec.val)
    everything = ImageSet(normal.images, normal.labels, factors=normal.factors)
    train, val = (replace(everything.taken(rows), numbers=None) for rows in (slice(num_train), slice(num_train, None)))
    anomalies = _anomalies(spec, others)
    return Dataset(train, val, anomalies, normal.class_names, digest([key, num_train]), stored.skipped)


def _joined(spec: ImageFolder, train: StoredImages, val: StoredImages, fingerprint: str) -> Dataset:
    """Two folders; the anomalies of the validation folder alone are looked at."""
    _check_anomalies(spec, sorted({*(train.class_names or ()), *(val.class_names or ())}))
    skipped = train.skipped + val.skipped
    train, _ = parted(train, spec.anomaly_classes)
    val, others = parted(val, spec.anomaly_classes)
    for name, path, found in (("train", spec.train, train), ("val", spec.val, val)):
        if not len(found.images):
            raise FtaeError(f"data.{name} ({path}) has no readable image that is not of data.anomaly_classes")
    train_set = ImageSet(train.images, train.labels)
    val_set = ImageSet(val.images, _labels_as_in_train(spec, train, val))
    return Dataset(train_set, val_set, _anomalies(spec, others), train.class_names, fingerprint, skipped)


def _check_anomalies(spec: DataSpec, class_names: Sequence[str]) -> None:
    if spec.anomaly_classes and not class_names:
        raise FtaeError("data.anomaly_classes needs classes: put the images of each into a sub-folder of data.train")
    try:
        normal_classes(class_names, spec.anomaly_classes)
    except ValueError as error:
        raise FtaeError(str(error)) from error


def _anomalies(spec: DataSpec, images: Pixels) -> ImageSet | None:
    if spec.anomaly_classes and not len(images):
        raise FtaeError(f"data.anomaly_classes: no validation image is of {', '.join(spec.anomaly_classes)}")
    return ImageSet(images, None) if spec.anomaly_classes else None


def _check_not_trained_on(spec: AnyData) -> None:
    """The validation folders must not be training folders of the other domain."""
    replay = spec.replay
    if isinstance(spec, ImageFolder) and isinstance(replay, ImageFolder):
        if isinstance(spec.val, str):
            _check_apart(("data.replay.train", replay.train), ("data.val", spec.val))
        if isinstance(replay.val, str):
            _check_apart(("data.train", spec.train), ("data.replay.val", replay.val))


def _check_apart(train: tuple[str, str], val: tuple[str, str]) -> None:
    """Of two folders, each with the name of its leaf."""
    train_path, val_path = (Path(path).expanduser().resolve() for _, path in (train, val))
    if train_path.is_relative_to(val_path) or val_path.is_relative_to(train_path):
        raise FtaeError(
            f"{train[0]} ({train[1]}) and {val[0]} ({val[1]}) must be separate folders, neither inside the other: "
            "validation images must not be trained on. A val between 0 and 1 holds out a share of train"
        )


def _labels_as_in_train(spec: ImageFolder, train: StoredImages, val: StoredImages) -> Labels | None:
    """``val``'s labels as indices into ``train``'s classes; None where ``val`` has no class folders."""
    if val.class_names is None or val.labels is None:
        return None
    known = train.class_names or ()
    unknown = [name for name in val.class_names if name not in known]
    if unknown:
        has = f"has only {', '.join(known)}" if known else "has no class folders"
        raise FtaeError(f"data.val ({spec.val}) has the class folders {', '.join(unknown)}, but data.train {has}")
    labels: Labels = np.array([known.index(name) for name in val.class_names], dtype=np.int64)[val.labels]
    return labels
