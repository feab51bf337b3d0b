"""One image file as a square of pixels: brought to 8 bits, turned upright, laid on white, resized and cut."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ftae.errors import FtaeError
from ftae.specs.finetune.data import DataSpec

Pixels = npt.NDArray[np.uint8]

ALL_LEVELS = (0, 65535)  # of 16-bit grey

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Pillow gives transparent values as the file has them, but these pixels stretched or cut to 8 bits.
_AS_PIXELS = {"L;2": lambda value: value * 85, "L;4": lambda value: value * 17, "RGB;16B": lambda value: value >> 8}


class UnreadableImage(Exception):
    """The content of one file is not an image that can be decoded; the message says why."""


def image_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(side, side, channels) of a decoded image."""
    return spec.decoded_side, spec.decoded_side, spec.channels


def read_bytes(path: Path) -> bytes:
    """The content of ``path``. A file that cannot be read is no corrupt image: it may be readable tomorrow.

    Raises:
        FtaeError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FtaeError(f"cannot read the image {path}: {error.strerror}") from error


def decode_image(data: bytes, spec: DataSpec) -> Pixels:
    """The content of an image file as uint8 (side, side, channels).

    Turned by its EXIF orientation, transparency laid on white, the short side resized to
    ``spec.decoded_side``, the centre square cut out. Of several frames or pages, the first. Of 16-bit grey,
    ``spec.grey_levels`` become black and white.

    Raises:
        UnreadableImage: it is not an image, or a damaged one.
    """
    with opened(data) as image:
        # JPEG can decode at 1/2, 1/4, 1/8 (8x faster on a 12-megapixel photo); no smaller than
        # twice the side, so that the filter below still decides what is seen.
        image.draft(None, (2 * spec.decoded_side, 2 * spec.decoded_side))
        correct_transparency(image)
        ImageOps.exif_transpose(image, in_place=True)
        opaque = _on_white(_eight_bit(image, spec.grey_levels or ALL_LEVELS)).convert(mode_of(spec))
    return squared(opaque, spec)


@contextmanager
def opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """The content of an image file, not decoded yet.

    Raises:
        UnreadableImage: it is no image, or whatever Pillow raises inside.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        kind = (
            "a TIFF that is damaged, or has bands or bits that ftae does not read" if data[:4] in TIFF_MAGIC else None
        )
        raise UnreadableImage(kind or "not an image in a known format") from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them stumble over
        raise UnreadableImage(str(error) or type(error).__name__) from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Inside it Pillow says nothing of odd files on stderr: those that cannot be used are named by ftae itself."""
    handler, logger = logging.NullHandler(), logging.getLogger("PIL")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.removeHandler(handler)


def raw_mode(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """How the file stores its pixels, in Pillow's words, and what else its decoder is told; before it decodes."""
    if not image.tile:
        return ("",)
    args = image.tile[0].args
    return args if isinstance(args, tuple) and args else (args or "",)


def is_grey16(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits. PGM is of 16 where Pillow says 32."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def correct_transparency(image: ImageFile.ImageFile) -> bool:
    """Give a transparent value as Pillow gives the pixels; returns whether one was other than Pillow has it."""
    value, scaled = image.info.get("transparency"), _AS_PIXELS.get(raw_mode(image)[0])
    if value is None or (scaled is None and not is_grey16(image)):
        return False
    if scaled is not None:
        image.info["transparency"] = tuple(map(scaled, value)) if isinstance(value, tuple) else scaled(value)
    return True


def mode_of(spec: DataSpec) -> str:
    """Pillow's word for the colour of the decoded image."""
    return "RGB" if spec.color == "rgb" else "L"


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _eight_bit(image: Image.Image, levels: tuple[int, int]) -> Image.Image:
    """16-bit grey images scaled down, their transparent value white; Pillow's own conversion clips them to white."""
    if is_grey16(image):
        low, high = levels
        values = np.asarray(image).astype(np.int64)
        scaled = ((values.clip(low, high) - low) * 256 // (high - low + 1)).astype(np.uint8)
        scaled[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(scaled)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range; save the image with 8 or 16 bits")
    return image


def squared(image: Image.Image, spec: DataSpec) -> Pixels:
    """The centre square, resized: uint8 (side, side, channels)."""
    side = spec.decoded_side
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    resample = Image.Resampling.LANCZOS if short > side else Image.Resampling.BICUBIC
    square = image.resize((side, side), resample, box=(left, top, left + short, top + short))
    return np.asarray(square).reshape(image_shape(spec))
