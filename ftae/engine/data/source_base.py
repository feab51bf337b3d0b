"""What every source of images offers: its parts, its images in order, and the sets they become."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ftae.engine.data.decoding import Pixels
from ftae.specs.finetune.data_spec import DataSpec

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetId:
    """Identifies a complete set of a dataset: ``key`` differs for any other images or another order of them."""

    key: str
    num_images: int


@dataclass(frozen=True)
class ImageSet:
    """N images and, if they have any, their labels.

    ``stored``: uint8 (M, side, side, channels), memory-mapped, read-only; side is ``DataSpec.decoded_side``.
    ``labels``: int64 (N,), indices into ``Dataset.class_names``, -1 for an image without a label.
    ``factors``: int64 (N, F), the values of the factors of variation that the images were made of, where known.
    ``rows``: int64 (N,), the row of ``stored`` of each image; None where the set is all of ``stored``.
    ``positions``: int64 (N,), the place of each image in the complete set; None where this is the complete set.
    ``complete``: the complete set of the dataset that these images are from; None outside a dataset.
    Pickling copies the pixels: load the dataset where it is used instead.
    """

    stored: Pixels
    labels: Labels | None
    factors: Labels | None = None
    rows: Indices | None = None
    positions: Indices | None = None
    complete: SetId | None = None

    def __len__(self) -> int:
        return len(self.stored) if self.rows is None else len(self.rows)

    @property
    def images(self) -> Pixels:
        """All pixels, uint8 (N, side, side, channels). Read from the disk as a whole where ``rows`` is not None."""
        return self.stored if self.rows is None else self.stored[self.rows]

    def rows_at(self, indices: slice | Indices) -> slice | Indices:
        """The rows of ``stored`` that hold these images of the set."""
        return indices if self.rows is None else self.rows[indices]

    def positions_at(self, indices: slice | Indices) -> Indices:
        """The places of these images in the complete set."""
        positions: Indices = np.arange(len(self)) if self.positions is None else self.positions
        return positions[indices]

    def subset(self, indices: slice | Indices) -> "ImageSet":
        """Some of the images; nothing is read from the disk. Each keeps its position in the complete set."""
        labels, factors = (None if values is None else values[indices] for values in (self.labels, self.factors))
        chosen = replace(self, labels=labels, factors=factors, positions=self.positions_at(indices))
        if self.rows is None and isinstance(indices, slice):
            return replace(chosen, stored=self.stored[indices])
        rows: Indices = np.arange(len(self)) if self.rows is None else self.rows
        return replace(chosen, rows=rows[indices])


SpecT = TypeVar("SpecT", bound=DataSpec)


@dataclass(frozen=True)
class ListedImages:
    """Images in the order in which they are stored, not decoded yet.

    ``decode(i)`` gives uint8 ``shape``, which is (side, side, channels), or raises ``UnreadableImage``; it may run in
    any thread. ``labels`` index ``class_names``, one for each name. ``factors``: int64 (N, F), the values of the
    factors of variation of each image, counted from 0.
    """

    names: Sequence[str]
    shape: tuple[int, int, int]
    decode: Callable[[int], Pixels]
    labels: Labels | None = None
    class_names: tuple[str, ...] | None = None
    factors: Labels | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.names) * int(np.prod(self.shape))


@dataclass(frozen=True)
class Part:
    """Images of a source that are stored as one array.

    ``content``: a JSON value that changes whenever the images do, whatever their side and colour. ``pixel_key``: what
    else the decoded pixels depend on. ``listed()`` lists the images. ``unusable``: files that are no regular files,
    each as "name: reason". ``notes``: what the user should know of the files.
    """

    content: object
    listed: Callable[[], ListedImages]
    pixel_key: Sequence[object] = ()
    unusable: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Listing:
    """What the list of files tells of the split, before any image is decoded. Images of anomalies are not trained on.

    ``train_classes``: the classes of the training images; empty where they have no labels. ``num_val``: the number of
    validation images, anomalies included. ``notes``: what the user should know of the files.
    """

    train_classes: tuple[str, ...]
    num_val: int
    val_labelled: bool
    notes: tuple[str, ...] = ()


class Source(ABC, Generic[SpecT]):
    """The images of one data spec. One class for each type of spec; ``SOURCES`` has them all.

    ``folders``: one entry for each part, which messages put before the names of its images; empty where they lie in
    no folder. A source of one part holds out the share ``data.val`` of it, a source of two parts has the training
    images in the first and the validation images in the second.
    """

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    @property
    def folders(self) -> tuple[str, ...]:
        return ("",)

    @property
    def location(self) -> str:
        """The name of the images in messages."""
        return self.spec.source

    @abstractmethod
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the training images, anomalies included; None where images have no labels."""

    @abstractmethod
    def num_images(self) -> tuple[int, ...]:
        """The number of images of each part; nothing is decoded."""

    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The images to store.

        Raises:
            FtaeError: the images are missing, or cannot be read as the spec says.
        """

    def check_listed(self) -> Listing | None:
        """Refuse what loading would refuse, as far as the list of the images tells.

        Returns None where the split is known only once the images are loaded.

        Raises:
            FtaeError: the images are missing or unfit.
        """
        return None


def num_held_out(num_images: int, share: float) -> int:
    """The number of validation images among ``num_images``: the share, rounded, and at least 1 on each side."""
    return min(max(round(share * num_images), 1), num_images - 1)


def shuffled(names: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of their hashes: a name keeps its place among the others when some come or go."""
    return tuple(sorted(names, key=lambda n: hashlib.blake2b(os.fsencode(n), digest_size=16).digest()))
