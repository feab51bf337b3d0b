"""What a source of images is: listed in a fixed order, decoded one by one into uint8 squares.

Images are stored in the order of a hash of their names, so that any share held out is a slice, the same for every
seed, and an image keeps its place among the others when some are added or removed.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ftae.engine.data.decoding import Pixels
from ftae.engine.data.image_set import Labels
from ftae.specs.finetune.data import DataSpec

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
