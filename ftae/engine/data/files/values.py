"""The exact values in an image file, of any type and number of bands, and what they become for a model."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ftae.engine.data.files.decoding import (
    TIFF_MAGIC,
    Array,
    Frame,
    UnreadableImage,
    centre_box,
    decode_halves,
    decode_image,
    image_shape,
    is_grey16,
    opened,
    raw_mode,
    resample,
    stored_type,
)
from ftae.engine.data.files.dicom import is_dicom, read_dicom
from ftae.engine.data.files.nifti import is_nifti
from ftae.engine.data.files.tiff import num_tiff_pages, read_tiff
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.images import Intensity

Values = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow makes grey of colours
VALUES_VERSION = 1  # raise it when the same files would give other pixels
SIGMAS = 3.0  # on each side of the mean of an image, for ``zscore``
PNG_MAGIC = b"\x89PNG"


def decode_values(data: bytes, spec: DataSpec) -> Array:
    """The content of an image file as ``spec`` says what its values mean: an array of ``image_shape(spec)``.

    It is uint16 where ``spec.meaning`` is given, with black as 0 and white as 65,535; otherwise uint8, as in the file.
    The centre of the aspect ratio of ``spec.decoded_size`` is cut out and resized, after values outside are clipped.

    Raises:
        UnreadableImage: ``data`` is not an image, a damaged one, or its values or bands are not those of ``spec``.
    """
    return stored(read_frame(data, spec), spec)


def decode_file(data: bytes, spec: DataSpec) -> Array:
    """The content of an image file: by its values where ``spec`` says what they, or its bands, mean, and of DICOM.

    Raises:
        UnreadableImage: as ``decode_image`` and ``decode_values``.
    """
    return decode_values(data, spec) if has_values(data, spec) else decode_image(data, spec)


def decode_pair(data: bytes, spec: DataSpec) -> tuple[Array, Array]:
    """The left and the right half of an image of even width, each as ``decode_file`` gives an image."""
    if not has_values(data, spec):
        return decode_halves(data, spec)
    whole = read_frame(data, spec)
    left, right = (replace(whole, values=half) for half in np.split(whole.values, 2, axis=1))
    return stored(left, spec), stored(right, spec)


def reads_values(spec: DataSpec) -> bool:
    """Whether files are read by their values, not as pictures of 8 bits."""
    return spec.meaning is not None or spec.chosen_bands is not None or spec.stacks_pages


def has_values(data: bytes, spec: DataSpec) -> bool:
    """Whether a file is read by its values: because of ``spec``, or since it is no picture."""
    return reads_values(spec) or is_dicom(data) or is_nifti(data)


def read_frame(data: bytes, spec: DataSpec, page: int = 0) -> Frame:
    """A page of a file, or all of them as bands, where ``spec`` says that.

    Raises:
        UnreadableImage: as ``read_values``, or a volume, whose slices are samples.
    """
    if is_dicom(data):
        return read_dicom(data)
    if is_nifti(data):
        raise UnreadableImage("a volume: data.slices of image_folder and archive makes samples of its slices")
    if not spec.stacks_pages:
        return Frame(read_values(data, page))
    pages = [read_values(data, page) for page in range(num_pages(data))]
    if len({values.shape for values in pages}) > 1:
        raise UnreadableImage("its pages differ in size, so that they are no channels of one image")
    return Frame(np.concatenate(pages, axis=2))


def num_pages(data: bytes) -> int:
    """The number of pages of a TIFF, or of frames of another picture; previews that cameras add do not count.

    Raises:
        UnreadableImage: ``data`` is not an image, or a damaged one.
    """
    if data[:4] in TIFF_MAGIC:
        return num_tiff_pages(data)
    with opened(data) as image:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def stored(frame: Frame, spec: DataSpec) -> Array:
    """An image as it is kept. Raises as ``decode_values``."""
    chosen = _channels(frame.values, spec)
    if spec.meaning is None:
        if chosen.dtype != np.uint8:
            raise UnreadableImage(f"its values are {chosen.dtype}, say what they mean by data.intensity")
        unit: Floats = chosen.astype(np.float32) / np.float32(255)
    else:
        unit = _unit(chosen, spec.meaning)
    if frame.is_inverted:
        unit = np.float32(1.0) - unit
    kind = stored_type(spec)
    result: Array = np.rint(_resized(unit, spec).clip(0.0, 1.0) * np.iinfo(kind).max).astype(kind)
    return result.reshape(image_shape(spec))


def ends(frame: Frame, spec: DataSpec) -> tuple[float, float]:
    """The values of an image that ``stored`` makes black and white. Raises as ``stored``."""
    if spec.meaning is None:
        return 0.0, 255.0
    chosen = _channels(frame.values, spec)
    return _levels(chosen.astype(np.float64), chosen.dtype, spec.meaning)


def read_values(data: bytes, page: int = 0) -> Values:
    """All bands of a page of a picture: (H, W, bands), in the type of the file.

    Raises:
        UnreadableImage: ``data`` is not an image, a damaged one, or has no such page.
    """
    values = read_tiff(data, page) if data[:4] in TIFF_MAGIC else None
    return _read_with_pillow(data, page) if values is None else values


def _read_with_pillow(data: bytes, page: int) -> Values:
    with opened(data) as file:
        if page:
            file.seek(page)
        image: Image.Image = file
        if data[:4] == PNG_MAGIC and ";16" in str(raw_mode(file)[0]) and not is_grey16(image):
            return _read_png16(data)
        if image.mode in ("P", "1", "CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return _with_axis(np.asarray(ImageOps.exif_transpose(image)))


def _with_axis(values: Values) -> Values:
    return values[..., None] if values.ndim == 2 else values


def _read_png16(data: bytes) -> Values:
    """Colours of 16 bits, of which Pillow keeps 8."""
    import torch
    from torchvision.io import ImageReadMode, decode_png  # this import takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch copies what it cannot write to
        bytes_read = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return np.ascontiguousarray(decode_png(bytes_read, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy())


def _channels(values: Values, spec: DataSpec) -> Values:
    """The bands that are the channels of ``spec``."""
    bands = values.shape[2]
    chosen = spec.chosen_bands
    if chosen is not None:
        if max(chosen) >= bands:
            raise UnreadableImage(f"it has {bands} bands, data.bands names band {max(chosen)}, counted from 0")
        return values[..., list(chosen)]
    if bands not in (1, 3):
        what = "transparency" if bands in (2, 4) else "no colours"
        raise UnreadableImage(f"its {bands} bands are {what}: say by data.bands which of them are the channels")
    if bands == spec.channels:
        return values
    if bands == 1:
        return np.repeat(values, 3, axis=2)
    return (values.astype(np.float32) @ np.array(LUMA, np.float32))[..., None].astype(values.dtype)


def _unit(values: Values, meaning: Intensity) -> Floats:
    """Black as 0 and white as 1; values outside are not clipped yet."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UnreadableImage("some of its values are not finite numbers")
    low, high = _levels(numbers, values.dtype, meaning)
    unit: Floats = ((numbers - low) / (high - low if high > low else 1.0)).astype(np.float32).clip(0.0, 1.0)
    return unit


def _levels(numbers: npt.NDArray[np.float64], kind: np.dtype[Any], meaning: Intensity) -> tuple[float, float]:
    if meaning.per_image == "minmax":
        return float(numbers.min()), float(numbers.max())
    if meaning.per_image == "zscore":
        mean, spread = float(numbers.mean()), SIGMAS * float(numbers.std())
        return mean - spread, mean + spread
    assert meaning.levels is not None, "percentiles are measured before images are decoded"
    return meaning.levels


def _resized(unit: Floats, spec: DataSpec) -> Floats:
    """The centre of the image at ``spec.decoded_size``, channel by channel."""
    height, width = spec.decoded_size
    if unit.shape[:2] == (height, width):
        return unit
    size = (unit.shape[1], unit.shape[0])
    box = centre_box(size, spec)
    planes: Sequence[Any] = [
        Image.fromarray(np.ascontiguousarray(unit[..., i])).resize((width, height), resample(box, spec), box=box)
        for i in range(unit.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
