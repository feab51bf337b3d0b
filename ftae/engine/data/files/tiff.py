"""TIFF files: their pages, in the type of the file, with any number of bands."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import UnreadableImage

Values = npt.NDArray[Any]
BIG = 43  # the version of TIFF with offsets of 8 bytes


def read_tiff(data: bytes, number: int) -> Values | None:
    """A page, (H, W, bands); None where its compression needs another package, which Pillow may do without.

    Raises:
        UnreadableImage: the file is damaged, or has no such page.
    """
    try:
        with _opened_tiff(data) as file:
            page = file.pages[number]
            values = np.asarray(page.asarray())
            axes = str(page.aspage().axes)
    except UnreadableImage as error:
        if "imagecodecs" in str(error):
            return None
        raise
    return with_bands_last(values, axes)


def num_tiff_pages(data: bytes) -> int:
    """The number of pages, in the list that leads from one to the next; tifffile leaves out those that were cut off.

    Raises:
        UnreadableImage: the list leads out of the file, or round in a circle.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == BIG
    pointer, entries, size = (f"{order}Q", f"{order}Q", 20) if is_big else (f"{order}I", f"{order}H", 12)
    seen: set[int] = set()
    try:
        (page,) = struct.unpack_from(pointer, data, 8 if is_big else 4)
        while page and page not in seen:
            seen.add(page)
            (number,) = struct.unpack_from(entries, data, page)
            (page,) = struct.unpack_from(pointer, data, page + struct.calcsize(entries) + number * size)
    except struct.error as error:
        raise UnreadableImage("a TIFF that is cut off or damaged: its pages are not all in the file") from error
    if page or not seen:
        raise UnreadableImage("a TIFF that is damaged: the list of its pages has no end, or no beginning")
    return len(seen)


def with_bands_last(values: Values, axes: str) -> Values:
    """An image as (H, W, bands). ``axes``: tifffile's letters, such as YX, YXS and SYX."""
    values = (
        values[..., None] if len(axes) == 2 else np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values
    )
    if values.ndim != 3:
        raise UnreadableImage(f"a TIFF page with the axes {axes}; ftae reads Y, X and bands")
    return values


@contextmanager
def _opened_tiff(data: bytes) -> Iterator[Any]:
    import tifffile  # here, since a model in use needs it only for TIFFs

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            yield file
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes it raises anything
        raise UnreadableImage(str(error) or type(error).__name__) from error
