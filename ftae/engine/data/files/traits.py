"""What one image file holds that its owner should know: frames, bands, bits, the range of its values."""

import math

import numpy as np
from PIL import ImageFile

from ftae.engine.data.files.decoding import UnreadableImage, correct_transparency, is_grey16, opened, raw_mode
from ftae.engine.data.files.dicom import dicom_facts, is_dicom
from ftae.engine.data.files.nifti import Volume, is_nifti
from ftae.engine.data.files.values import Values

# The length of the short side; the number of frames; of bands; the bits of a channel; the largest value of 16-bit grey;
# a transparent value that Pillow confuses with another. Of files whose values have no range of their own, DICOM and
# NIfTI: the largest value, and the negative of the least; values in HU; the largest value is black.
SIDE, FRAMES, BANDS, DEEP, GREY16, CLEAR = "side", "frames", "bands", "deep", "grey16", "clear"
HIGH, LOW, HU, INVERTED = "high", "low", "hu", "inverted"
Traits = dict[str, int]


def traits_of(data: bytes) -> Traits:
    """The traits of one file; empty where it cannot be read, which is reported when it is decoded."""
    try:
        if is_dicom(data):
            return _dicom_traits(data)
        if is_nifti(data):
            return _range(Volume(data).ends())
        with opened(data) as image:
            traits = {SIDE: min(image.size)}
            if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # MPO: a camera's previews
                traits[FRAMES] = frames
            if (bands := getattr(image, "tag_v2", {}).get(277, 1)) > len(image.getbands()):
                traits[BANDS] = bands
            if (bits := _bits_a_channel(image, data)) > 8:
                traits[DEEP] = bits
            if correct_transparency(image):
                traits[CLEAR] = 1
            if is_grey16(image):
                traits[GREY16] = int(np.asarray(image).max())
            return traits
    except UnreadableImage:
        return {}


def _dicom_traits(data: bytes) -> Traits:
    frame, is_hu = dicom_facts(data)
    traits = {SIDE: min(frame.values.shape[:2])}
    if frame.values.shape[2] == 1:
        traits |= _range(frame.values)
    return traits | ({HU: 1} if is_hu else {}) | ({INVERTED: 1} if frame.is_inverted else {})


def _range(values: Values) -> Traits:
    finite = values[np.isfinite(values)]
    return {HIGH: math.ceil(finite.max()), LOW: -math.floor(finite.min())} if finite.size else {}


def _bits_a_channel(image: ImageFile.ImageFile, data: bytes) -> int:
    """The bits that the file has where Pillow gives 8. 16-bit grey, which Pillow gives whole, counts as 8."""
    raw, *arguments = raw_mode(image)
    if is_grey16(image):
        return 8
    if ";16" in str(raw) and not str(raw).startswith("BGR"):  # BGR;16 has 16 bits for the whole pixel
        return 16
    if image.format == "PPM" and any(isinstance(a, int) and a > 255 for a in arguments):
        return 16
    if image.format == "JPEG2000":
        return _byte_after(data, b"\xff\x4f\xff\x51", 38) % 128 + 1  # Ssiz: bits - 1; the highest bit means signed
    return _byte_after(data, b"pixi", 5) if image.format == "AVIF" else 8


def _byte_after(data: bytes, mark: bytes, distance: int) -> int:
    at = data.find(mark)
    return data[at + len(mark) + distance] if 0 <= at < len(data) - len(mark) - distance else 0
