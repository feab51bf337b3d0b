"""Where images come from: a folder, or one of scikit-learn's two sets. All become uint8 squares.

A source lists its images in the order in which they are stored: shuffled by a hash of their names,
so that any share held out is a slice, the same for every seed, and an image keeps its place among
the others when some are added or removed.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ftae.errors import FtaeError
from ftae.specs.data import DataSpec, Digits, Photos

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SEED = 0


class UnreadableImage(Exception):
    """The content of one file is not an image that can be decoded; the message says why."""


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


def image_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(side, side, channels) of a decoded image."""
    return spec.decoded_side, spec.decoded_side, spec.channels


def num_held_out(num_images: int, share: float) -> int:
    """How many of ``num_images`` are validation images: the share, rounded, and at least 1 on each side."""
    return min(max(round(share * num_images), 1), num_images - 1)


# ------------------------------------------------------------------------------------- image folder


@dataclass(frozen=True)
class ImageFiles:
    """The images below ``root``: sorted relative names, and the sub-folders that are their classes."""

    root: Path
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None


def list_images(root: Path) -> ImageFiles:
    """Find the images in ``root`` and its sub-folders, links followed, hidden files and folders left out.

    Raises:
        FtaeError: there is no such folder, it cannot be read or holds no images, or images lie both
            directly in it and in sub-folders.
    """
    if root.is_file():
        raise FtaeError(f"{root} is a file; expected a folder of images")
    if not root.is_dir():
        raise FtaeError(f"there is no image folder {root} (looked from {Path.cwd()})")
    paths = list(_walk(root))
    names = sorted(p for p in paths if p.lower().endswith(SUFFIXES))
    if not names:
        raise FtaeError(
            f"{root} holds no images: looked for {' '.join(SUFFIXES)} in it and its sub-folders, "
            f"found {len(paths)} other files"
        )
    in_classes = [n for n in names if "/" in n]
    if in_classes and len(in_classes) < len(names):
        directly = next(n for n in names if "/" not in n)
        raise FtaeError(
            f"{root} holds {len(names) - len(in_classes)} images directly ({directly}, ...) and {len(in_classes)} in "
            f"sub-folders ({in_classes[0]}, ...). Sub-folders are the labels: put every image in one, or none"
        )
    classes = tuple(sorted({n.split("/")[0] for n in in_classes}))
    return ImageFiles(root, tuple(names), classes or None)


def _walk(folder: Path, prefix: str = "", above: frozenset[Path] = frozenset()) -> Iterator[str]:
    real = folder.resolve()
    if real in above:  # a link back, which would go round for ever
        return
    try:
        entries = [(path.name, path.is_dir()) for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise FtaeError(f"cannot read the folder {folder}: {error.strerror}") from error
    for name, is_folder in sorted(entries):
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}/", above | {real})
        else:
            yield prefix + name


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


def read_bytes(path: Path) -> bytes:
    """The content of ``path``. A file that cannot be read is no corrupt image: it may be readable tomorrow.

    Raises:
        FtaeError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FtaeError(f"cannot read the image {path}: {error.strerror}") from error


def shuffled(names: Sequence[str]) -> tuple[str, ...]:
    """In the order of a hash of each, so that a name keeps its place among the others whatever comes and goes."""
    return tuple(sorted(names, key=lambda n: hashlib.blake2b(os.fsencode(n), digest_size=16).digest()))


# ------------------------------------------------------------------------------------------ decoding


def decode_image(data: bytes, spec: DataSpec) -> Pixels:
    """The content of an image file as uint8 (side, side, channels).

    Turned by its EXIF orientation, transparency laid on white, the short side resized to
    ``spec.decoded_side``, the centre square cut out. Of an animation, the first frame.

    Raises:
        UnreadableImage: it is not an image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # JPEG can decode at 1/2, 1/4, 1/8 (8x faster on a 12-megapixel photo); no smaller than
            # twice the side, so that the filter below still decides what is seen.
            image.draft(None, (2 * spec.decoded_side, 2 * spec.decoded_side))
            ImageOps.exif_transpose(image, in_place=True)
            opaque = _eight_bit(_on_white(image)).convert(_mode(spec))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image in a known format") from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them stumble over
        raise UnreadableImage(str(error) or type(error).__name__) from error
    return _square(opaque, spec)


def _mode(spec: DataSpec) -> str:
    return "RGB" if spec.color == "rgb" else "L"


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey images scaled down; Pillow's own conversion clips them to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save the image with 8 or 16 bits")
    return image


def _square(image: Image.Image, spec: DataSpec) -> Pixels:
    side = spec.decoded_side
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    resample = Image.Resampling.LANCZOS if short > side else Image.Resampling.BICUBIC
    square = image.resize((side, side), resample, box=(left, top, left + short, top + short))
    return np.asarray(square).reshape(image_shape(spec))


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
        return _square(Image.fromarray(_shifted(pixels, spec.shift, rows[i])).convert(_mode(spec)), spec)

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

    photos: list[Pixels] = [np.asarray(Image.fromarray(p).convert(_mode(spec))) for p in load_sample_images().images]
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
