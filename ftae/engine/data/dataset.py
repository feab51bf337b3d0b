"""Keeping images of some classes out of training: they are stored behind the others, where a slice leaves them out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ftae.engine.data.builtin_sources import content_of, source_of
from ftae.engine.data.cache import (
    FORMAT,
    StoredImages,
    cached_images,
    digest,
    recalled_keys,
    remember_keys,
    stored_images,
)
from ftae.engine.data.checks import (
    check_anomalies,
    check_classes,
    check_enough,
    check_folders,
    check_has_anomalies,
    check_labelled,
    check_some,
    check_val_classes,
    folder_notes,
    skipped_message,
)
from ftae.engine.data.decoding import Pixels, image_shape
from ftae.engine.data.listing import ImageFiles, list_images
from ftae.engine.data.sources import Labels, Source, folder_source, num_held_out
from ftae.engine.data.survey import Survey, check_levels, surveyed
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData, DataSpec, ImageFolder
from ftae.specs.finetune.run import FinetuneSpec


def normal_first(source: Source, anomalies: Sequence[str]) -> Source:
    """``source`` with the images of ``anomalies`` last, and these names last: the others are numbered from 0."""
    if source.labels is None or source.class_names is None or not anomalies:
        return source
    names = source.class_names
    classes = sorted(range(len(names)), key=lambda i: names[i] in anomalies)
    labels = np.argsort(classes)[source.labels]
    num_normal = sum(name not in anomalies for name in names)
    order = np.argsort(labels >= num_normal, kind="stable")

    def decode(i: int) -> Pixels:
        return source.decode(int(order[i]))

    return replace(
        source,
        names=[source.names[i] for i in order],
        decode=decode,
        labels=labels[order],
        factors=None if source.factors is None else source.factors[order],
        class_names=tuple(names[i] for i in classes),
    )


def parted(stored: StoredImages, anomalies: Sequence[str]) -> tuple[StoredImages, Pixels]:
    """What was stored ``normal_first``: the normal images with their classes, and the pixels of the others."""
    if stored.labels is None or stored.class_names is None or not anomalies:
        return stored, stored.images[:0]
    names = tuple(name for name in stored.class_names if name not in anomalies)
    count = int((stored.labels < len(names)).sum())
    factors = None if stored.factors is None else stored.factors[:count]
    normal = replace(
        stored, images=stored.images[:count], labels=stored.labels[:count], class_names=names, factors=factors
    )
    return normal, stored.images[count:]


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
    ``skipped``: the files that could not be decoded, each as "path: reason". ``notes``: what the user should know
    of the files, these among it, a line each.
    """

    train: ImageSet
    val: ImageSet
    anomalies: ImageSet | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    replay: "Dataset | None" = None

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)


@dataclass(frozen=True)
class _Folder:
    """The images of one folder as stored, their key, and what there is to say of their files."""

    stored: StoredImages
    key: str
    notes: tuple[str, ...] = ()


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
    check_folders(spec)
    dataset = _own_images(spec.model_copy(update={"fingerprint": own or None}))
    if spec.replay is None:
        return dataset
    pinned = {"fingerprint": of_replay} if of_replay else {}
    replay = load_dataset(spec.replay.model_copy(update=pinned))
    return replace(
        dataset,
        fingerprint=f"{dataset.fingerprint}+{replay.fingerprint}",
        skipped=dataset.skipped + replay.skipped,
        notes=dataset.notes + replay.notes,
        replay=replay,
    )


def data_of(run: FinetuneSpec) -> Dataset:
    """The images of a run, with the labels that its metrics need.

    Raises:
        FtaeError: as ``load_dataset``, or there are no such labels.
    """
    data = load_dataset(run.data)
    labels = data.train.labels
    classes = [] if labels is None else [str(label) for label in np.unique(labels[labels >= 0])]
    check_classes(run, classes, val_labelled=data.val.labels is not None)
    return data


def _own_images(spec: AnyData) -> Dataset:
    dataset = _as_pinned(spec, _from_folders(spec) if isinstance(spec, ImageFolder) else _builtin(spec))
    if spec.labelled_fraction < 1.0:
        check_labelled(spec, dataset.train.labels is not None)
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
    paths = [spec.train, spec.val] if isinstance(spec.val, str) else [spec.train]
    folders = _recalled(paths, spec) or _listed(paths, spec)
    keys = [folder.key for folder in folders]
    if isinstance(spec.val, str):
        train, val = (folder.stored for folder in folders)
        dataset = _joined(spec, train, val, digest(keys))
    else:
        dataset = _split(folders[0].stored, spec, keys[0])
    remember_keys(dataset.fingerprint, keys)
    notes = tuple(note for folder in folders for note in folder.notes)
    if dataset.skipped:
        notes = (skipped_message(dataset.skipped), *notes)
    return replace(dataset, notes=notes)


def _recalled(paths: Sequence[str], spec: ImageFolder) -> list[_Folder] | None:
    """As the cache holds them, whatever became of their files; None where it does not."""
    keys = (spec.fingerprint and recalled_keys(spec.fingerprint)) or []
    if len(keys) != len(paths):
        return None
    folders = []
    for path, key in zip(paths, keys, strict=True):
        if (stored := cached_images(key, image_shape(spec))) is None:
            return None
        folders.append(_Folder(_named_from(path, stored), key))
    return folders


def _listed(paths: Sequence[str], spec: ImageFolder) -> list[_Folder]:
    listed = [list_images(Path(path).expanduser()) for path in paths]
    surveys = [surveyed(files) for files in listed]
    check_levels(surveys, spec, ", ".join(paths))
    folders = []
    for path, files, survey in zip(paths, listed, surveys, strict=True):
        stored, key = stored_folder(files, survey, spec)
        folders.append(_Folder(_named_from(path, stored, files.unusable), key, folder_notes(path, files, survey, spec)))
    return folders


def stored_folder(files: ImageFiles, survey: Survey, spec: DataSpec) -> tuple[StoredImages, str]:
    """The images of a folder, those of anomalies behind the others, and what they are cached under."""
    key = image_key(survey.content, spec, survey.pixel_key(spec))

    def source() -> Source:
        return normal_first(folder_source(files, spec), spec.anomaly_classes)

    return stored_images(key, image_shape(spec), source), key


def _named_from(path: str, stored: StoredImages, unusable: Sequence[str] = ()) -> StoredImages:
    """With all files that are skipped, and those ``unusable``, named from ``path`` on."""
    return replace(stored, skipped=tuple(str(Path(path) / entry) for entry in sorted([*stored.skipped, *unusable])))


def _partly_labelled(dataset: Dataset, share: float) -> Labels:
    """The training labels, of each class only the first ``share`` left: the order is that of a hash of the names."""
    labels = dataset.train.labels
    assert labels is not None
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

    return _split(stored_images(key, image_shape(spec), source), spec, key)


def image_key(content: object, spec: DataSpec, pixels: Sequence[object] = ()) -> str:
    """What images of this content are cached under, in the size, colour and order of ``spec``.

    ``pixels``: what else the pixels depend on.
    """
    behind = [sorted(spec.anomaly_classes)] if spec.anomaly_classes else []
    return digest([FORMAT, content, *image_shape(spec), *behind, *pixels])


def _split(stored: StoredImages, spec: AnyData, key: str) -> Dataset:
    """The last share of the normal images for validation, and all others."""
    assert isinstance(spec.val, float)
    check_anomalies(spec, stored.class_names or ())
    normal, others = parted(stored, spec.anomaly_classes)
    count = len(normal.images)
    check_enough(count)
    num_train = count - num_held_out(count, spec.val)
    everything = ImageSet(normal.images, normal.labels, factors=normal.factors)
    train, val = (replace(everything.taken(rows), numbers=None) for rows in (slice(num_train), slice(num_train, None)))
    anomalies = _anomalies(spec, others)
    return Dataset(train, val, anomalies, normal.class_names, digest([key, num_train]), stored.skipped)


def _joined(spec: ImageFolder, train: StoredImages, val: StoredImages, fingerprint: str) -> Dataset:
    """Two folders; the anomalies of the validation folder alone are looked at."""
    check_anomalies(spec, sorted({*(train.class_names or ()), *(val.class_names or ())}))
    skipped = train.skipped + val.skipped
    train, _ = parted(train, spec.anomaly_classes)
    val, others = parted(val, spec.anomaly_classes)
    for name, path, found in (("train", spec.train, train), ("val", spec.val, val)):
        check_some(f"data.{name}", str(path), len(found.images))
    train_set = ImageSet(train.images, train.labels)
    val_set = ImageSet(val.images, _labels_as_in_train(spec, train, val))
    return Dataset(train_set, val_set, _anomalies(spec, others), train.class_names, fingerprint, skipped)


def _anomalies(spec: DataSpec, images: Pixels) -> ImageSet | None:
    check_has_anomalies(spec, len(images))
    return ImageSet(images, None) if spec.anomaly_classes else None


def _labels_as_in_train(spec: ImageFolder, train: StoredImages, val: StoredImages) -> Labels | None:
    """``val``'s labels as indices into ``train``'s classes; None where ``val`` has no class folders."""
    if val.class_names is None or val.labels is None:
        return None
    known = train.class_names or ()
    check_val_classes(spec, known, val.class_names)
    labels: Labels = np.array([known.index(name) for name in val.class_names], dtype=np.int64)[val.labels]
    return labels
