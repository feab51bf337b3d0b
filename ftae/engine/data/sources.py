"""The table of all sources, and the built-in ones: scikit-learn's digits and photographs, and drawn shapes."""

import math
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ftae.engine.data.archives.source import ArchiveSource
from ftae.engine.data.arrays import ArraysSource
from ftae.engine.data.domains import UnpairedSource
from ftae.engine.data.files.decoding import Pixels, fitted, image_shape, mode_of, stored_shape
from ftae.engine.data.image_folder import ImageFolderSource
from ftae.engine.data.pairs import PairsSource
from ftae.engine.data.shards.source import ShardsSource
from ftae.engine.data.source_base import ListedImages, Part, Source, num_held_out, shuffled
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.finetune.sources.builtin import (
    SHAPE_FACTORS,
    SHAPE_KINDS,
    DigitDomains,
    DigitEdges,
    Digits,
    Photos,
    Shapes,
)
from ftae.specs.finetune.sources.folders import Archive, ImageFolder, Shards
from ftae.specs.finetune.sources.two_sided import Pairs, Unpaired

SEED = 0

# ------------------------------------------------------------------------------------------- digits


class DigitsSource(Source[Digits]):
    """scikit-learn's digits of ``spec.classes``, shifted, then enlarged with a bicubic filter."""

    @cached_property
    def _classes(self) -> list[int]:
        return sorted(set(self.spec.classes))

    def class_names(self) -> tuple[str, ...] | None:
        return tuple(map(str, self._classes))

    def num_images(self) -> tuple[int]:
        return (len(self._listed().names),)

    def parts(self) -> tuple[Part]:
        content = [self.spec.source, version("scikit-learn"), self._classes, self.spec.shift]
        return (Part(content, self._listed),)

    def _listed(self) -> ListedImages:
        from sklearn.datasets import load_digits

        digits, spec = load_digits(), self.spec
        names = shuffled([f"digit-{i}" for i, target in enumerate(digits.target) if target in self._classes])
        numbers = [int(name.removeprefix("digit-")) for name in names]
        labels = np.searchsorted(self._classes, digits.target[numbers]).astype(np.int64)

        def decode(i: int) -> Pixels:
            pixels = np.rint(digits.images[numbers[i]] * (255 / 16)).astype(np.uint8)
            return fitted(Image.fromarray(_shifted(pixels, spec.shift, numbers[i])).convert(mode_of(spec)), spec)

        return ListedImages(names, image_shape(spec), decode, labels, self.class_names())


def _shifted(pixels: Pixels, shift: str, number: int) -> Pixels:
    """One 8x8 digit as the other domain shows it. Noise: Gaussian, sigma 0.2 of the range, clipped."""
    if shift == "invert":
        return 255 - pixels
    if shift == "rotate":
        return np.ascontiguousarray(np.rot90(pixels))
    if shift == "noise":
        noise = np.random.default_rng([SEED, number]).normal(0.0, 0.2 * 255, pixels.shape)
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return pixels


EDGES_VERSION = 1  # raise it when the same digit would have other edges
EDGE_SLOPE = 0.5  # least change of brightness over two pixels, as a share of the range, at an edge


class DigitEdgesSource(DigitsSource):
    """The edges of the digits of ``DigitsSource``, white on black, before the digits themselves."""

    def parts(self) -> tuple[Part]:
        (part,) = super().parts()
        return (replace(part, content=[part.content, EDGES_VERSION]),)

    def _listed(self) -> ListedImages:
        listed = super()._listed()

        def decode(i: int) -> Pixels:
            digit = listed.decode(i)
            return np.concatenate([_edges(digit), digit], axis=2)

        return replace(listed, shape=stored_shape(self.spec), decode=decode)


def _edges(pixels: Pixels) -> Pixels:
    """White where the mean over colours is steep, black elsewhere: the shape of ``pixels``, (side, side, channels)."""
    down, right = np.gradient(pixels.mean(axis=2) / 255)
    steep = 2 * np.hypot(down, right) > EDGE_SLOPE
    return np.repeat(np.where(steep, 255, 0).astype(np.uint8)[..., None], pixels.shape[2], axis=2)


class DigitDomainsSource(DigitsSource):
    """The digits of ``DigitsSource``, as A and as B show them."""

    def class_names(self) -> None:
        return None

    def _listed(self) -> ListedImages:
        plain = DigitsSource(self.spec.model_copy(update={"shift": "none"}))._listed()
        shifted = super()._listed()

        def decode(i: int) -> Pixels:
            return np.concatenate([plain.decode(i), shifted.decode(i)], axis=2)

        return ListedImages(plain.names, stored_shape(self.spec), decode)


# ------------------------------------------------------------------------------------------- photos


class PhotosSource(Source[Photos]):
    """Patches at random places, the validation patches last (see ``Photos``).

    ``parts()[0].listed()`` and ``check_listed`` raise FtaeError where a patch is larger than the part of the
    photographs that it is cut from.
    """

    def class_names(self) -> None:
        return None

    def num_images(self) -> tuple[int]:
        return (self.spec.num_patches,)

    def parts(self) -> tuple[Part]:
        content = [self.spec.source, version("scikit-learn"), self.spec.num_patches, self.spec.val]
        return (Part(content, self._listed),)

    def check_listed(self) -> None:
        self._listed()

    def _listed(self) -> ListedImages:
        from sklearn.datasets import load_sample_images

        spec = self.spec
        images = load_sample_images().images
        photos: list[Pixels] = [np.asarray(Image.fromarray(p).convert(mode_of(spec))) for p in images]
        height, width = photos[0].shape[:2]
        boundary = round(width * (1 - spec.val))
        num_val = num_held_out(spec.num_patches, spec.val)
        train = _places(spec, "training", spec.num_patches - num_val, height, 0, boundary)
        places = np.concatenate([train, _places(spec, "validation", num_val, height, boundary, width)])

        def decode(i: int) -> Pixels:
            photo, top, left = places[i]
            high, wide = spec.decoded_size
            patch: Pixels = photos[photo][top : top + high, left : left + wide].reshape(image_shape(spec))
            return patch

        return ListedImages([f"patch-{i}" for i in range(len(places))], image_shape(spec), decode)


def _places(spec: Photos, part: str, num_patches: int, height: int, left: int, right: int) -> npt.NDArray[np.int64]:
    """(photo, top, left) of patches that lie between the columns ``left`` and ``right``: int64 (num_patches, 3)."""
    high, wide = spec.decoded_size
    if high > height or wide > right - left:
        raise FtaeError(
            f"data: a {part} patch of {wide} x {high} pixels does not fit into the {right - left} x {height} pixels "
            f"of each photograph that val: {spec.val:g} leaves for it; choose a smaller resolution or another val"
        )
    rng = np.random.default_rng([SEED, left])  # training and validation draw different places
    return np.stack(
        [
            np.arange(num_patches) % 2,
            rng.integers(0, height - high + 1, num_patches),
            rng.integers(left, right - wide + 1, num_patches),
        ],
        axis=1,
    )


# ------------------------------------------------------------------------------------------- shapes

SUBPIXELS = 4  # along each side of a pixel, which is their average
SHAPES_VERSION = 1  # raise it when the same spec would draw other pixels


class ShapesSource(Source[Shapes]):
    """The first ``num_images`` combinations of factor values, in an order that depends on their numbers alone."""

    def class_names(self) -> tuple[str, ...]:
        return SHAPE_KINDS

    def num_images(self) -> tuple[int]:
        return (self.spec.num_images,)

    def parts(self) -> tuple[Part]:
        return (Part([self.spec.source, SHAPES_VERSION, self.spec.num_images], self._listed),)

    def _listed(self) -> ListedImages:
        spec = self.spec
        names = shuffled([f"shape-{i}" for i in range(math.prod(SHAPE_FACTORS.values()))])[: spec.num_images]
        numbers = [int(name.removeprefix("shape-")) for name in names]
        factors = np.stack(np.unravel_index(numbers, tuple(SHAPE_FACTORS.values())), axis=1).astype(np.int64)

        def decode(i: int) -> Pixels:
            grey = _drawn(factors[i], spec.decoded_size[0])
            return np.repeat(grey[..., None], spec.channels, axis=2)

        return ListedImages(names, image_shape(spec), decode, factors[:, 0], SHAPE_KINDS, factors)


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


# --------------------------------------------------------------------------------------- all sources

# A new source: its spec in ``ftae.specs.finetune.sources``, and its class here.
SOURCES: dict[type[DataSpec], type[Source[Any]]] = {
    ImageFolder: ImageFolderSource,
    Archive: ArchiveSource,
    Shards: ShardsSource,
    Pairs: PairsSource,
    Unpaired: UnpairedSource,
    Arrays: ArraysSource,
    Digits: DigitsSource,
    DigitEdges: DigitEdgesSource,
    DigitDomains: DigitDomainsSource,
    Photos: PhotosSource,
    Shapes: ShapesSource,
}


def source_of(spec: DataSpec) -> Source[Any]:
    """The source of a spec; replayed images have the source of the spec that theirs is derived from."""
    return next(SOURCES[kind] for kind in type(spec).__mro__ if kind in SOURCES)(spec)


def normal_class_names(spec: DataSpec) -> tuple[str, ...] | None:
    """The classes that a model is trained on, without anomalies; None where images have no labels. Decodes nothing.

    Raises:
        FtaeError: a folder of images is missing or unfit.
    """
    names = source_of(spec).class_names()
    return names and tuple(name for name in names if name not in spec.anomaly_classes)


def num_images(spec: DataSpec) -> tuple[int, int]:
    """The approximate numbers of training and evaluated images of a run, replayed ones included. Decodes nothing."""
    first, *second = source_of(spec).num_images()
    if second:
        train, val = first, second[0]
    else:
        assert not isinstance(spec.val, str)
        val = num_held_out(first, spec.val)
        train = first - val
    replayed = (0, 0) if spec.replay is None else num_images(spec.replay)
    return train + replayed[0], val + replayed[1]
