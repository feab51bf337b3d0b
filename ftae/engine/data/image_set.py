"""A set of images: rows of a stored array, with their labels and factors of variation."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ftae.engine.data.decoding import Pixels

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
