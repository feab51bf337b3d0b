"""The built-in sources: scikit-learn's digits and photographs, and drawn shapes."""

import math
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from PIL import Image

from ftae.engine.data.decoding import Pixels, image_shape, mode_of, squared
from ftae.engine.data.sources import Source, num_held_out, shuffled
from ftae.errors import FtaeError
from ftae.specs.finetune.data import SHAPE_FACTORS, SHAPE_KINDS, Digits, Photos, Shapes

SEED = 0

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


SUBPIXELS = 4  # a side: what each pixel averages

VERSION = 1  # raise it when the same spec would draw other pixels


def shapes_source(spec: Shapes) -> Source:
    """The first ``num_images`` combinations of factor values, in an order that depends on their numbers alone."""
    names = shuffled([f"shape-{i}" for i in range(math.prod(SHAPE_FACTORS.values()))])[: spec.num_images]
    numbers = [int(name.removeprefix("shape-")) for name in names]
    factors = np.stack(np.unravel_index(numbers, tuple(SHAPE_FACTORS.values())), axis=1).astype(np.int64)

    def decode(i: int) -> Pixels:
        grey = _drawn(factors[i], spec.decoded_side)
        return np.repeat(grey[..., None], spec.channels, axis=2)

    return Source(names, image_shape(spec), decode, factors[:, 0], SHAPE_KINDS, factors)


def _drawn(factors: npt.NDArray[np.int64], side: int) -> Pixels:
    """uint8 (side, side). Radius 0.08 to 0.2, centre 0.25 to 0.75 of the side, brightness 0.4 to 1."""
    shares = factors[1:] / (np.array(list(SHAPE_FACTORS.values())[1:]) - 1)
    radius, left, top, brightness = np.array([0.08, 0.25, 0.25, 0.4]) + shares * np.array([0.12, 0.5, 0.5, 0.6])
    points = (np.arange(side * SUBPIXELS) + 0.5) / (side * SUBPIXELS)
    right, down = np.abs(points[None] - left), points[:, None] - top
    inside = {
        "square": np.maximum(right, np.abs(down)) <= radius,
        "circle": right**2 + down**2 <= radius**2,
        "triangle": (np.abs(down) <= radius) & (right <= (down + radius) / 2),
    }[SHAPE_KINDS[factors[0]]]
    covered = inside.reshape(side, SUBPIXELS, side, SUBPIXELS).mean(axis=(1, 3))
    pixels: Pixels = np.rint(covered * brightness * 255).astype(np.uint8)
    return pixels


Builtin = Digits | Photos | Shapes


def content_of(spec: Builtin) -> list[object]:
    """All that the pixels depend on, besides side and colour."""
    return [spec.source, VERSION, spec.num_images] if isinstance(spec, Shapes) else builtin_content(spec)


def source_of(spec: Builtin) -> Source:
    if isinstance(spec, Shapes):
        return shapes_source(spec)
    return digits_source(spec) if isinstance(spec, Digits) else photos_source(spec)
