"""The images of a run: decoded once per machine, memory-mapped, split into training and validation.

Both sets are in a fixed shuffled order that depends on the images' names alone, so the first few
validation images are a fair sample, and the split is the same for every trial.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ftae.engine.image_cache import FORMAT, StoredImages, content_fingerprint, digest, stored_images
from ftae.engine.sources import (
    Labels,
    Pixels,
    builtin_content,
    digits_source,
    folder_source,
    image_shape,
    list_images,
    num_held_out,
    photos_source,
)
from ftae.errors import FtaeError
from ftae.specs.data import AnyData, DataSpec, Digits, ImageFolder


@dataclass(frozen=True)
class ImageSet:
    """Images and, if they have any, labels.

    ``images``: uint8 (N, side, side, channels), memory-mapped, read-only; side is
    ``DataSpec.decoded_side``. ``labels``: int64 (N,), indices into ``Dataset.class_names``.
    Pickling copies the pixels: load the dataset where it is used instead.
    """

    images: Pixels
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """Training and validation images.

    ``fingerprint`` changes with any pixel, label, or the split, and with nothing else.
    ``skipped``: the files that could not be decoded, each as "path: reason".
    """

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[str, ...]

    def skipped_message(self) -> str:
        """One line that counts and names the images that were left out."""
        named = "; ".join(self.skipped[:5]) + ("; ..." if len(self.skipped) > 5 else "")
        return f"{len(self.skipped)} images cannot be read and are skipped: {named}"


@lru_cache(maxsize=4)
def load_dataset(spec: AnyData) -> Dataset:
    """The images that ``spec`` describes; loaded once per process, decoded once per machine.

    Raises:
        FtaeError: the images are missing, all damaged, too few or too small for the split, ``val`` has
            classes that ``train`` lacks, or the cache cannot be written.
    """
    if not isinstance(spec, ImageFolder):
        return _builtin(spec)
    train, key = _folder(spec.train, spec)
    if isinstance(spec.val, float):
        return _split(train, spec.val, key)
    _check_apart(spec.train, spec.val)
    val, val_key = _folder(spec.val, spec)
    val_set = ImageSet(val.images, _labels_as_in_train(spec, train, val))
    train_set = ImageSet(train.images, train.labels)
    return Dataset(train_set, val_set, train.class_names, digest([key, val_key]), train.skipped + val.skipped)


def _builtin(spec: AnyData) -> Dataset:
    assert not isinstance(spec, ImageFolder)
    key = _key(builtin_content(spec), spec)
    stored = stored_images(key, lambda: digits_source(spec) if isinstance(spec, Digits) else photos_source(spec))
    return _split(stored, spec.val, key)


def _folder(path: str, spec: DataSpec) -> tuple[StoredImages, str]:
    """The images of one folder, and their key; skipped files named from ``path`` on."""
    files = list_images(Path(path).expanduser())
    key = _key(content_fingerprint(files), spec)
    stored = stored_images(key, lambda: folder_source(files, spec))
    skipped = tuple(str(Path(path) / entry) for entry in stored.skipped)
    return StoredImages(stored.images, stored.labels, stored.class_names, skipped), key


def _key(content: object, spec: DataSpec) -> str:
    return digest([FORMAT, content, *image_shape(spec)])


def _split(stored: StoredImages, share: float, key: str) -> Dataset:
    """The last ``share`` of the images for validation."""
    if len(stored.images) < 2:
        raise FtaeError(
            "data.val as a share needs at least 2 readable images, found 1; add images or name a val folder"
        )
    num_train = len(stored.images) - num_held_out(len(stored.images), share)
    labels = stored.labels
    train = ImageSet(stored.images[:num_train], None if labels is None else labels[:num_train])
    val = ImageSet(stored.images[num_train:], None if labels is None else labels[num_train:])
    return Dataset(train, val, stored.class_names, digest([key, num_train]), stored.skipped)


def _check_apart(train: str, val: str) -> None:
    train_path, val_path = Path(train).expanduser().resolve(), Path(val).expanduser().resolve()
    if train_path.is_relative_to(val_path) or val_path.is_relative_to(train_path):
        raise FtaeError(
            f"data.train ({train}) and data.val ({val}) must be separate folders, neither inside the other: "
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
