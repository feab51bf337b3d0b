"""One image file as pixels of one size: converted to 8 bits, turned upright, laid on white, resized and cropped."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
"""A stored image, (H, W, channels): uint8, uint16 where ``DataSpec.meaning`` is given, float32 where ``of_floats``."""
Box = tuple[float, float, float, float]
ORIENTATION, LEAST_TURNED = 0x0112, 5  # of EXIF: its tag, and the least value that swaps width and height
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Pillow leaves transparent values as in the file, but stretches or cuts these pixels to 8 bits.
_TO_8_BITS = {"L;2": lambda value: value * 85, "L;4": lambda value: value * 17, "RGB;16B": lambda value: value >> 8}


@dataclass(frozen=True)
class Frame:
    """The values of one image, (H, W, bands), in the type of its file; ``is_inverted``: the largest is black."""

    values: npt.NDArray[Any]
    is_inverted: bool = False


class UnreadableImage(Exception):
    """The content of one file is not an image that can be decoded; the message says why."""


def image_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(H, W, channels) of a decoded image."""
    return *spec.decoded_size, spec.channels


def stored_shape(spec: DataSpec) -> tuple[int, int, int]:
    """(H, W, channels) of an array in the cache: of an image, or of a pair, whose channels follow each other."""
    return *spec.decoded_size, spec.stored_channels


def stored_type(spec: DataSpec) -> np.dtype[Any]:
    """The type of the arrays in the cache."""
    if spec.of_floats:
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if spec.meaning is None else np.uint16)


def read_bytes(path: Path) -> bytes:
    """The content of ``path``.

    Raises:
        FtaeError: the file cannot be read. That does not make it a corrupt image: it may be readable tomorrow.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FtaeError(f"cannot read the image {path}: {error.strerror}") from error


def decode_image(data: bytes, spec: DataSpec) -> Pixels:
    """The content of an image file of 8 bits as uint8 (H, W, channels).

    The image is turned by its EXIF orientation, laid on white where it is transparent, and the centre that has the
    aspect ratio of ``spec.decoded_size`` is resized to it. Only the first frame or page is used, and the upper 8 of 16
    bits.

    Raises:
        UnreadableImage: ``data`` is not an image, or a damaged one.
    """
    with opened(data) as image:
        # JPEG can decode at 1/2, 1/4 or 1/8 of its size (8x faster for a 12-megapixel photo). No less than twice the
        # side, so that the filter of the resize below still decides about sharpness.
        height, width = spec.decoded_size
        image.draft(None, (2 * width, 2 * height))
        opaque = _upright(image, spec)
    return fitted(opaque, spec)


def read_picture(data: bytes, spec: DataSpec, page: int) -> Frame:
    """A page of an image file of 8 bits, upright and on white, of its own size.

    Raises:
        UnreadableImage: as ``decode_image``, or there is no such page.
    """
    with opened(data) as image:
        if page:
            image.seek(page)
        pixels = np.asarray(_upright(image, spec))
    return Frame(pixels.reshape(*pixels.shape[:2], spec.channels))


def decode_halves(data: bytes, spec: DataSpec) -> tuple[Pixels, Pixels]:
    """The left and the right half of an image of even width, each as ``decode_image`` gives an image.

    Raises:
        UnreadableImage: ``data`` is not an image, or a damaged one.
    """
    with opened(data) as image:
        whole = _upright(image, spec)
    middle = whole.width // 2
    left, right = (0, 0, middle, whole.height), (middle, 0, whole.width, whole.height)
    return fitted(whole.crop(left), spec), fitted(whole.crop(right), spec)


def _upright(image: ImageFile.ImageFile, spec: DataSpec) -> Image.Image:
    correct_transparency(image)
    ImageOps.exif_transpose(image, in_place=True)
    return _on_white(_eight_bit(image)).convert(mode_of(spec))


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image file, turned by its EXIF orientation; nothing is decoded.

    Raises:
        UnreadableImage: ``data`` is not an image, or a damaged one.
    """
    with opened(data) as image:
        is_turned = image.getexif().get(ORIENTATION, 1) >= LEAST_TURNED
        return (image.height, image.width) if is_turned else image.size


@contextmanager
def opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """Opens the content of an image file without decoding it.

    Raises:
        UnreadableImage: ``data`` is no image; or Pillow raised something inside the ``with`` block.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        kind = (
            "a TIFF that is damaged, or that needs data.intensity or data.bands to be read"
            if data[:4] in TIFF_MAGIC
            else None
        )
        raise UnreadableImage(kind or "not an image in a known format") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise anything
        raise UnreadableImage(str(error) or type(error).__name__) from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow and pydicom from writing about odd files to stderr: ftae itself names files that it cannot use."""
    handler, loggers = logging.NullHandler(), [logging.getLogger(name) for name in ("PIL", "pydicom")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def raw_mode(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """Pillow's name for the way in which the file stores its pixels, and further arguments of its decoder.

    Only before the image is decoded.
    """
    if not image.tile:
        return ("",)
    args = image.tile[0].args
    return args if isinstance(args, tuple) and args else (args or "",)


def is_grey16(image: Image.Image) -> bool:
    """Whether the image is grey of 16 bits. A PGM file has 16 bits where Pillow says 32."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def correct_transparency(image: ImageFile.ImageFile) -> bool:
    """Scale a transparent value as Pillow scales the pixels; returns whether Pillow's own value may have been wrong."""
    value, scale = image.info.get("transparency"), _TO_8_BITS.get(raw_mode(image)[0])
    if value is None or (scale is None and not is_grey16(image)):
        return False
    if scale is not None:
        image.info["transparency"] = tuple(map(scale, value)) if isinstance(value, tuple) else scale(value)
    return True


def mode_of(spec: DataSpec) -> str:
    """Pillow's name for the colours of the decoded image."""
    return "RGB" if spec.color == "rgb" else "L"


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey images scaled down, with their transparent value white; Pillow would clip them to white."""
    if is_grey16(image):
        values = np.asarray(image).astype(np.int64)
        scaled = (values >> 8).astype(np.uint8)
        scaled[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(scaled)
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no known range, say what they mean by data.intensity")
    return image


def fitted(image: Image.Image, spec: DataSpec) -> Pixels:
    """The centre of an image, resized to ``spec.decoded_size``: uint8 (H, W, channels)."""
    height, width = spec.decoded_size
    box = centre_box(image.size, spec)
    return np.asarray(image.resize((width, height), resample(box, spec), box=box)).reshape(image_shape(spec))


def centre_box(size: tuple[int, int], spec: DataSpec) -> Box:
    """The largest part around the centre, (left, top, right, bottom), that has the aspect ratio of the decoded image.

    ``size``: width and height of the image.
    """
    height, width = spec.decoded_size
    scale = min(size[0] / width, size[1] / height)
    # Rounded, the longer side may come out larger than the image by the last digit, which Pillow refuses.
    wide, high = min(width * scale, size[0]), min(height * scale, size[1])
    if width == height:
        wide = high = min(size)
    left, top = (size[0] - wide) / 2, (size[1] - high) / 2
    return left, top, left + wide, top + high


def resample(box: Box, spec: DataSpec) -> Image.Resampling:
    """Lanczos where the part of an image is made smaller, bicubic where it is enlarged."""
    return Image.Resampling.LANCZOS if box[3] - box[1] > spec.decoded_size[0] else Image.Resampling.BICUBIC
