"""Where images come from: a folder, or one of scikit-learn's two sets. All become uint8 squares.

A source lists its images in the order in which they are stored: shuffled by a hash of their names,
so that any share held out is a slice, the same for every seed, and an image keeps its place among
the others when some are added or removed.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ftae.engine.data.decoding import Pixels, decode_image, image_shape, read_bytes
from ftae.engine.data.listing import ImageFiles
from ftae.specs.finetune.data import DataSpec

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Images that are decoded one by one, in the order in which they are to be stored.

    ``decode(i)`` gives uint8 ``shape``, which is (side, side, channels), or raises
    ``UnreadableImage``; it may run in any thread. ``labels`` index ``class_names``, one for each name.
    ``factors``: (N, F), the values that each image was made of, from 0.
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


def num_held_out(num_images: int, share: float) -> int:
    """How many of ``num_images`` are validation images: the share, rounded, and at least 1 on each side."""
    return min(max(round(share * num_images), 1), num_images - 1)


# ------------------------------------------------------------------------------------- image folder


def folder_source(files: ImageFiles, spec: DataSpec) -> Source:
    """The images of a folder, labelled by the sub-folder directly below it."""
    names = shuffled(files.names)
    labels = None
    if files.class_names is not None:
        index = {name: i for i, name in enumerate(files.class_names)}
        labels = np.array([index[n.split("/")[0]] for n in names], dtype=np.int64)

    def decode(i: int) -> Pixels:
        return decode_image(read_bytes(files.root / names[i]), spec)

    return Source(names, image_shape(spec), decode, labels, files.class_names)


def shuffled(names: Sequence[str]) -> tuple[str, ...]:
    """In the order of a hash of each, so that a name keeps its place among the others whatever comes and goes."""
    return tuple(sorted(names, key=lambda n: hashlib.blake2b(os.fsencode(n), digest_size=16).digest()))
