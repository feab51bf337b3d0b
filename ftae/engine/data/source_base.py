"""What every source of images offers: its parts, its images in order, and the sets they become."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import Array
from ftae.engine.data.stores.on_demand import ImagesOnDemand
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.wording import count

if TYPE_CHECKING:
    import torch

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Levels = tuple[float, float]
Values = npt.NDArray[np.float64]
EIGHT_BITS: Levels = (0.0, 255.0)
MOST_UNREADABLE = 1000  # images one after another
BYTES: np.dtype[Any] = np.dtype(np.uint8)


@dataclass(frozen=True)
class SetId:
    """Identifies a complete set of a dataset: ``key`` differs for any other images or another order of them."""

    key: str
    num_images: int


@dataclass(frozen=True)
class ImageSet:
    """N images and, if they have any, their labels.

    ``stored``: uint8, uint16 or float32 (M, H, W, channels), memory-mapped, read-only, of ``DataSpec.decoded_size``; or
    images that are decoded as they are needed. ``pixels`` reads either.
    ``labels``: int64 (N,), indices into ``Dataset.class_names``, -1 for an image without a label.
    ``factors``: int64 (N, F), the values of the factors of variation that the images were made of, where known.
    ``rows``: int64 (N,), the row of ``stored`` of each image; None where the set is all of ``stored``.
    ``positions``: int64 (N,), the place of each image in the complete set; None where this is the complete set.
    ``complete``: the complete set of the dataset that these images are from; None outside a dataset.
    ``levels``: the values in the files that are black and white; None where images share none.
    ``groups``: int64 (N,), the group of each image, such as its patient; None where every image is by itself.
    ``digests``: uint64 (N,), equal where decoded pixels are; None where the cache has none.
    ``scale``: of arrays, the values in the file that are 0 and 1: (2, 1, 1, channels), or (2, 1, W, 1) of vectors.
    ``on_gpu``: ``stored`` on a GPU, for batches that are made there; uint16 as int16, which torch can index.
    Pickling copies the pixels: load the dataset where it is used instead.
    """

    stored: Array | ImagesOnDemand
    labels: Labels | None
    factors: Labels | None = None
    rows: Indices | None = None
    positions: Indices | None = None
    complete: SetId | None = None
    levels: Levels | None = EIGHT_BITS
    groups: Labels | None = None
    digests: Digests | None = None
    scale: Values | None = None
    on_gpu: "torch.Tensor | None" = None

    def __len__(self) -> int:
        return len(self.stored) if self.rows is None else len(self.rows)

    @property
    def images(self) -> Array:
        """All pixels, (N, H, W, channels). Read from the disk as a whole where ``rows`` is not None."""
        return self.pixels(slice(None))

    def pixels(self, indices: slice | Indices) -> Array:
        """Some images of the set, (B, H, W, channels).

        Where images are decoded as they are needed, the nearest readable one before it, or else after it, of the same
        label takes the place of an unreadable one.

        Raises:
            FtaeError: images must be decoded, and cannot.
        """
        if not isinstance(self.stored, ImagesOnDemand):
            return self.stored[self.rows_at(indices)]
        wanted: Indices = np.arange(len(self))[indices]
        found, is_readable = self.stored.take(self._stored_rows(wanted))
        for place in np.flatnonzero(~is_readable):
            found[place] = self._substitute(self.stored, int(wanted[place]))
        return found

    def _substitute(self, stored: ImagesOnDemand, index: int) -> Array:
        others: Indices = np.concatenate([np.arange(index - 1, -1, -1), np.arange(index + 1, len(self))])
        if self.labels is not None:
            others = others[self.labels[others] == self.labels[index]]
        for other in others[:MOST_UNREADABLE]:
            found, is_readable = stored.take(self._stored_rows(np.array([other])))
            if is_readable[0]:
                return np.asarray(found[0])
        raise FtaeError(f"no image can be decoded, {count(min(len(others), MOST_UNREADABLE) + 1, 'file')} tried")

    def _stored_rows(self, indices: Indices) -> Indices:
        return indices if self.rows is None else self.rows[indices]

    def rows_at(self, indices: slice | Indices) -> slice | Indices:
        """The rows of ``stored`` that hold these images of the set."""
        return indices if self.rows is None else self.rows[indices]

    def positions_at(self, indices: slice | Indices) -> Indices:
        """The places of these images in the complete set."""
        positions: Indices = np.arange(len(self)) if self.positions is None else self.positions
        return positions[indices]

    def subset(self, indices: slice | Indices) -> "ImageSet":
        """Some of the images; nothing is read from the disk. Each keeps its position in the complete set."""
        if isinstance(indices, slice) and indices.step not in (None, 1):
            indices = np.arange(len(self))[indices]
        columns = {name: getattr(self, name) for name in ("labels", "factors", "groups", "digests")}
        own: dict[str, Any] = {name: values if values is None else values[indices] for name, values in columns.items()}
        chosen = replace(self, **own, positions=self.positions_at(indices))
        if self.rows is None and isinstance(indices, slice):
            on_gpu = None if self.on_gpu is None else self.on_gpu[indices]
            return replace(chosen, stored=self.stored[indices], on_gpu=on_gpu)
        rows: Indices = np.arange(len(self)) if self.rows is None else self.rows
        return replace(chosen, rows=rows[indices])


SpecT = TypeVar("SpecT", bound=DataSpec)


@dataclass(frozen=True)
class ListedImages:
    """Images in the order in which they are stored, not decoded yet.

    ``decode(i)`` gives an array of ``shape``, which is (H, W, channels), and of the type ``kind``, or raises
    ``UnreadableImage``; it may run in any thread. ``labels`` index ``class_names``, one for each name. ``factors``:
    int64 (N, F), the values of the factors of variation of each image, counted from 0. ``levels``, ``scale``: as for
    ``ImageSet``. ``groups``: int64 (N, 2), the group of each image, and its place in the sets. ``reading_order``,
    ``reads_at_once``: how ``decode`` is fastest, as for ``ImageFiles``. ``decode_in_order``: does the same,
    perhaps faster where all images are decoded in this order; None where only ``decode`` is there.
    """

    names: Sequence[str]
    shape: tuple[int, int, int]
    decode: Callable[[int], Array]
    labels: Labels | None = None
    class_names: tuple[str, ...] | None = None
    factors: Labels | None = None
    kind: np.dtype[Any] = BYTES
    levels: Levels | None = EIGHT_BITS
    groups: Labels | None = None
    scale: Values | None = None
    reading_order: Indices | None = None
    reads_at_once: int | None = None
    decode_in_order: Callable[[int], Array] | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.names) * int(np.prod(self.shape)) * self.kind.itemsize


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


def num_held_out(num_images: int, val: float | int) -> int:
    """The number of validation images among ``num_images``: a share, rounded, or a count; at least 1 on each side."""
    wanted = val if isinstance(val, int) else round(val * num_images)
    return min(max(wanted, 1), num_images - 1)


def shuffled(names: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of their hashes: a name keeps its place among the others when some come or go."""
    return tuple(sorted(names, key=lambda n: hashlib.blake2b(os.fsencode(n), digest_size=16).digest()))
