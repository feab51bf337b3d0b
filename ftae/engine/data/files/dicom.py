"""DICOM files: their frames with values as the scanner's unit has them, and what their tags say."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ftae.engine.data.files.decoding import Frame, UnreadableImage
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm",)
MEDICAL = "pip install 'ftae[medical]'"


def is_dicom(data: bytes) -> bool:
    """Whether the beginning of a file is that of DICOM."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, frame: int | None = None) -> Frame:
    """One frame; None for the only one of a file.

    Grey values are those of the Modality LUT, such as HU; nothing is windowed. Where no value is defined, outside the
    circle of a scan, they are those of the darkest pixel. Colours are RGB.

    Raises:
        UnreadableImage: the file is damaged, has no pixels or several frames, or needs a decoder that is missing.
        FtaeError: pydicom is missing.
    """
    with _opened(data) as dataset:
        if frame is None and (frames := _num_frames(dataset)) > 1:
            raise UnreadableImage(
                f"it has {frames} frames, which are samples only of image_folder and archive without tiles"
            )
        return _frame(dataset, frame or 0)


def num_frames(data: bytes) -> int:
    """The number of frames. Raises as ``read_dicom``."""
    with _opened(data) as dataset:
        return _num_frames(dataset)


def tag_text(data: bytes, keyword: str) -> str:
    """The value of a tag as text, empty where the file has none.

    Raises:
        FtaeError: there is no such tag in DICOM, or pydicom is missing.
        UnreadableImage: the file is damaged.
    """
    from_keyword = _pydicom().datadict.tag_for_keyword
    if from_keyword(keyword) is None:
        raise FtaeError(f"data.groups.tag must be the keyword of a tag of DICOM, such as PatientID, got {keyword}")
    with _opened(data) as dataset:
        return str(dataset.get(keyword) or "").strip()


def dicom_facts(data: bytes) -> tuple[Frame, bool]:
    """The middle frame, and whether its values are HU. Raises as ``read_dicom``."""
    with _opened(data) as dataset:
        is_hu = dataset.get("Modality") == "CT" and dataset.get("RescaleType", "HU") == "HU"
        return _frame(dataset, _num_frames(dataset) // 2), is_hu


def _frame(dataset: "Dataset", frame: int) -> Frame:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    raw = pixel_array(dataset, index=frame)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(raw, dataset)
        return Frame(colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8))
    if raw.ndim == 3:
        return Frame(raw)
    is_inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    values = apply_modality_lut(raw, dataset)
    values = values.astype(values.dtype.newbyteorder("="))
    undefined = _undefined(raw, dataset)
    if undefined.any() and not undefined.all():
        defined = values[~undefined]
        values[undefined] = defined.max() if is_inverted else defined.min()
    return Frame(values[..., None], is_inverted)


def _undefined(raw: "np.ndarray[Any, Any]", dataset: "Dataset") -> "np.ndarray[Any, Any]":
    """The pixels outside the circle of a scan."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(raw.shape, dtype=bool)
    low, high = sorted([int(first), int(dataset.get("PixelPaddingRangeLimit", first))])
    return (raw >= low) & (raw <= high)


def _num_frames(dataset: "Dataset") -> int:
    return int(dataset.get("NumberOfFrames") or 1)


@contextmanager
def _opened(data: bytes) -> "Iterator[Dataset]":
    """Turns whatever pydicom raises on damaged files into ``UnreadableImage``."""
    pydicom = _pydicom()
    try:
        yield pydicom.dcmread(io.BytesIO(data))
    except (MemoryError, FtaeError, UnreadableImage):
        raise
    except Exception as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise FtaeError(f"DICOM files need the package pydicom: {MEDICAL}") from error
    return pydicom
