"""The built-in shapes: images of which every factor of variation is known, as disentanglement needs.

After dSprites (Matthey et al. 2017), smaller: one bright shape on black, anti-aliased.
"""

import math

import numpy as np
import numpy.typing as npt

from ftae.engine.decoding import Pixels, image_shape
from ftae.engine.sources import Source, shuffled
from ftae.specs.data import SHAPE_FACTORS, SHAPE_KINDS, Shapes

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
