"""Where images come from: a folder, or one of scikit-learn's two sets. All become uint8 squares.

A source lists its images in the order in which they are stored: shuffled by a hash of their names,
so that any share held out is a slice, the same for every seed, and an image keeps its place among
the others when some are added or removed.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from PIL import Image

from ftae.engine.decoding import Pixels, decode_image, image_shape, mode_of, read_bytes, squared
from ftae.engine.listing import ImageFiles
from ftae.errors import FtaeError
from ftae.specs.data import DataSpec, Digits, Photos

Labels = npt.NDArray[np.int64]

SEED = 0


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


# -------------------------------------------------------------------------------------- built-in sets


def builtin_content(spec: Digits | Photos) -> list[object]:
    """All that the pixels of a built-in source depend on, besides side and colour."""
    if isinstance(spec, Digits):
        return [spec.source, version("scikit-learn"), sorted(set(spec.classes)), spec.shift]
    return [spec.source, version("scikit-learn"), spec.num_patches, spec.val]


def digits_source(spec: Digits) -> Source:
    """scikit-learn's digits of ``spec.classes``, shifted, then enlarged with a bicubic filter."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    classes = sorted(set(spec.classes))
    names = shuffled([f"digit-{i}" for i, target in enumerate(digits.target) if target in classes])
    rows = [int(name.removeprefix("digit-")) for name in names]
    labels = np.searchsorted(classes, digits.target[rows]).astype(np.int64)

    def decode(i: int) -> Pixels:
        pixels = np.rint(digits.images[rows[i]] * (255 / 16)).astype(np.uint8)
        return squared(Image.fromarray(_shifted(pixels, spec.shift, rows[i])).convert(mode_of(spec)), spec)

    return Source(names, image_shape(spec), decode, labels, tuple(str(c) for c in classes))


def _shifted(pixels: Pixels, shift: str, row: int) -> Pixels:
    """One 8x8 digit as the other domain shows it. Noise: Gaussian, sigma 0.2 of the range, clipped."""
    if shift == "invert":
        return 255 - pixels
    if shift == "rotate":
        return np.ascontiguousarray(np.rot90(pixels))
    if shift == "noise":
        noise = np.random.default_rng([SEED, row]).normal(0.0, 0.2 * 255, pixels.shape)
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return pixels


def photos_source(spec: Photos) -> Source:
    """Patches at random places, the validation patches last (see ``Photos``).

    Raises:
        FtaeError: a patch is larger than its part of the photographs.
    """
    from sklearn.datasets import load_sample_images

    photos: list[Pixels] = [np.asarray(Image.fromarray(p).convert(mode_of(spec))) for p in load_sample_images().images]
    height, width = photos[0].shape[:2]
    boundary = round(width * (1 - spec.val))
    num_val = num_held_out(spec.num_patches, spec.val)
    train = _places(spec, "training", spec.num_patches - num_val, height, 0, boundary)
    places = np.concatenate([train, _places(spec, "validation", num_val, height, boundary, width)])

    def decode(i: int) -> Pixels:
        photo, top, left = places[i]
        side = spec.decoded_side
        patch: Pixels = photos[photo][top : top + side, left : left + side].reshape(image_shape(spec))
        return patch

    return Source([f"patch-{i}" for i in range(len(places))], image_shape(spec), decode)


def _places(spec: Photos, part: str, num_patches: int, height: int, left: int, right: int) -> npt.NDArray[np.int64]:
    """(photo, top, left) of patches that lie between the columns ``left`` and ``right``: int64 (num_patches, 3)."""
    side = spec.decoded_side
    if side > min(height, right - left):
        raise FtaeError(
            f"data: a {part} patch of {side} x {side} pixels does not fit into the {right - left} x {height} pixels "
            f"of each photograph that val: {spec.val:g} leaves it; choose a smaller resolution or another val"
        )
    rng = np.random.default_rng([SEED, left])  # other places in the two parts
    return np.stack(
        [
            np.arange(num_patches) % 2,
            rng.integers(0, height - side + 1, num_patches),
            rng.integers(left, right - side + 1, num_patches),
        ],
        axis=1,
    )
