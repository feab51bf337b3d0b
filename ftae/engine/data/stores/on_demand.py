"""Images that are decoded when they are first needed, by whichever process needs them, and kept as far as they fit.

images_on_demand/<key>/about.json     shape and type of the images, class names, the values of black and white
images_on_demand/<key>/labels.npy     and factors.npy: as for images that are decoded at once
images_on_demand/<key>/...            the images that are there, and which they are: see rows.py
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import Array, UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.stores.rows import BAD, DECODED, MISSING, Numbers, Rows


class Decodable(Protocol):
    """What ``ListedImages`` is, as far as it matters here."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def decode(self) -> Callable[[int], Array]: ...
    @property
    def reading_order(self) -> Numbers | None: ...
    @property
    def reads_at_once(self) -> int | None: ...


class ImagesOnDemand:
    """Images (N, H, W, channels) of which each is decoded when it is first taken. A slice is a part of them.

    ``list_images`` is called when an image must be decoded, not before.

    Raises:
        OSError, ValueError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], list_images: Callable[[], Decodable]
    ) -> None:
        self.dtype, self._listed = dtype, cache(list_images)
        self._rows = Rows(folder, shape, dtype)
        self._first, self.shape = 0, (len(self._rows.state), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> "ImagesOnDemand":
        first, stop, step = part.indices(len(self))
        assert step == 1
        chosen = ImagesOnDemand.__new__(ImagesOnDemand)
        vars(chosen).update(vars(self), _first=self._first + first, shape=(max(stop - first, 0), *self.shape[1:]))
        return chosen

    def take(self, images: Numbers) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Some images, and which of them are readable; the others are black.

        Raises:
            FtaeError: files cannot be read, or the cache cannot be written.
        """
        wanted, places = np.unique(images + self._first, return_inverse=True)
        found = np.zeros((len(wanted), *self.shape[1:]), dtype=self.dtype)
        state = self._rows.read(wanted, found)
        missing = np.flatnonzero(state == MISSING)
        if len(missing):
            state[missing] = self._decode(wanted[missing], found, missing)
        return found[places], (state == DECODED)[places]

    @property
    def held(self) -> object:
        """Lives as long as any part of these images."""
        return self._rows.state

    def num_decoded(self) -> int:
        """How many images are decoded, of all in the folder."""
        return int((self._rows.state == DECODED).sum())

    def states(self) -> npt.NDArray[np.uint8]:
        """Of every image of the part: ``MISSING``, ``DECODED`` or ``BAD``."""
        return np.array(self._rows.state[self._first : self._first + len(self)])

    def unreadable(self) -> list[str]:
        """The images that were found to be unreadable, each as "name: reason"."""
        return self._rows.unreadable()

    def _decode(self, images: Numbers, into: Array, places: Numbers) -> npt.NDArray[np.uint8]:
        """Decode ``images`` into the ``places`` of an array, and keep them as far as they fit; returns their states."""
        listed = self._listed()
        assert len(listed.names) == len(self._rows.state)
        place, reasons = dict(zip(images.tolist(), places.tolist(), strict=True)), {}

        def decode(image: int) -> tuple[int, Array | UnreadableImage]:
            try:
                return image, listed.decode(image)
            except UnreadableImage as unreadable:
                return image, unreadable

        with quiet_pillow():
            for image, decoded in in_order(decode, self._in_reading_order(images), threads=listed.reads_at_once):
                if isinstance(decoded, UnreadableImage):
                    reasons[image] = legible(f"{listed.names[image]}: {decoded}")
                else:
                    assert decoded.shape == self.shape[1:]
                    assert decoded.dtype == self.dtype
                    into[place[image]] = decoded
        bad = np.isin(images, list(reasons))
        self._rows.add(images[~bad], into[places[~bad]], reasons)
        return np.where(bad, BAD, DECODED).astype(np.uint8)

    def _in_reading_order(self, images: Numbers) -> list[int]:
        order = self._listed().reading_order
        if order is not None:
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            images = images[np.argsort(rank[images])]
        return [int(image) for image in images]
