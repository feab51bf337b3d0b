"""NIfTI volumes: their slices along the axes of the body, and new slices in their place."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.dicom import MEDICAL
from ftae.errors import FtaeError

SUFFIXES = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
AXES = ("sagittal", "coronal", "axial")  # across them x, y and z run, to the right, to the front and up


def is_nifti(data: bytes) -> bool:
    """Whether a file is a NIfTI volume; no other image file is compressed by gzip."""
    return data[:2] == GZIP_MAGIC or data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0"


class Volume:
    """A volume in memory, as it is stored; of several volumes over time in one file, all.

    Raises:
        UnreadableImage: the file is damaged, or holds no numbers.
        FtaeError: nibabel is missing.
    """

    def __init__(self, data: bytes) -> None:
        nibabel = _nibabel()
        with _damage_told():
            raw = gzip.decompress(data) if data[:2] == GZIP_MAGIC else data
            kind = nibabel.Nifti2Image if struct.unpack("<i", raw[:4])[0] in _SIZES_2 else nibabel.Nifti1Image
            image = kind.from_bytes(raw)
            self._image, self._data = image, image.dataobj
            orientation = nibabel.io_orientation(image.affine)
        if image.get_data_dtype().kind not in "iuf" or not 3 <= len(image.shape) <= 4 or np.isnan(orientation).any():
            raise UnreadableImage(
                f"its shape is {image.shape} of {image.get_data_dtype()}; ftae reads volumes of numbers"
            )
        self.num_times = image.shape[3] if len(image.shape) == 4 else 1
        self._shape = image.shape
        # For x, y and z: the axis of the file that runs along it, and whether it runs the other way.
        self._axes = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
        self._reversed = [bool(orientation[own, 1] < 0) for own in self._axes]

    def num_slices(self, axis: str) -> int:
        return int(self._shape[self._axes[AXES.index(axis)]])

    def slice(self, axis: str, index: int, time: int = 0) -> npt.NDArray[Any]:
        """One slice, (H, W, 1), counted from the left, the back or below; only it is read.

        Up is up, or the front in an axial slice. Right is the right of the patient, or the front in a sagittal slice.

        Raises:
            UnreadableImage: the file ends before it.
        """
        across = AXES.index(axis)
        own = self._axes[across]
        place: list[Any] = [slice(None)] * len(self._shape)
        place[own] = self._shape[own] - 1 - index if self._reversed[across] else index
        if len(place) == 4:
            place[3] = time
        with _damage_told():
            plane = np.asanyarray(self._data[tuple(place)])
        x, y = self._along(axis)
        if self._axes[x] > self._axes[y]:
            plane = plane.T
        plane = plane[:: -1 if self._reversed[x] else 1, :: -1 if self._reversed[y] else 1]
        return np.ascontiguousarray(plane.T[::-1, :, None], dtype=plane.dtype.newbyteorder("="))

    def slice_size(self, axis: str) -> tuple[int, int]:
        """Height and width of a slice."""
        x, y = self._along(axis)
        return int(self._shape[self._axes[y]]), int(self._shape[self._axes[x]])

    def _along(self, axis: str) -> tuple[int, int]:
        """The axes of the body to the right and up in a slice."""
        x, y = (along for along in range(3) if along != AXES.index(axis))
        return x, y

    def save_slices(self, path: Path, axis: str, planes: npt.NDArray[Any], part: tuple[float, ...]) -> None:
        """Write a volume with other slices, turned as this one is.

        Args:
            planes: (times x slices, H, W), as ``slice`` gives them, one volume in time after another.
            part: what of a slice they show: top, left, height and width in its pixels. The affine says so, and is that
                of this volume where they are whole slices of its size.
        """
        body = (AXES.index(axis), *self._along(axis))
        across, right, up = (slice(None, None, -1 if self._reversed[along] else 1) for along in body)
        turned = planes.reshape(self.num_times, -1, *planes.shape[1:])[..., ::-1, :].swapaxes(2, 3)
        own = [self._axes[along] for along in body]
        values = np.moveaxis(turned[:, across, right, up], (0, 1, 2, 3), (3, *own))
        header = self._image.header.copy()
        header.set_data_dtype(values.dtype)
        shape = values.shape if len(self._shape) == 4 else values.shape[:3]
        new = type(self._image)(values.reshape(shape), self._affine_of(axis, planes.shape[1:], part), header)
        new.to_filename(path)

    def _affine_of(self, axis: str, size: tuple[int, ...], part: tuple[float, ...]) -> npt.NDArray[np.float64]:
        top, left, high, wide = part
        height, _ = self.slice_size(axis)
        placed = np.eye(4)
        for along, begin, extent, number in zip(
            self._along(axis), (left, height - top - high), (wide, high), size[::-1], strict=True
        ):
            own = self._axes[along]
            begin = self._shape[own] - begin - extent if self._reversed[along] else begin
            step = extent / number
            placed[own, own], placed[own, 3] = step, begin + (step - 1) / 2
        return np.asarray(self._image.affine @ placed, dtype=np.float64)

    def ends(self) -> npt.NDArray[np.float64]:
        """The least and the largest value of each slice, without those that are no finite numbers.

        Raises:
            UnreadableImage: the file ends before the last one.
        """
        values = []
        for i in range(self.num_slices("axial")):
            for time in range(self.num_times):
                plane = self.slice("axial", i, time)
                finite = plane[np.isfinite(plane)]
                values += [finite.min(), finite.max()] if finite.size else []
        return np.array(values, dtype=np.float64)


_SIZES_2 = (540, struct.unpack("<i", struct.pack(">i", 540))[0])  # of the header of NIfTI-2, in either byte order


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except (MemoryError, UnreadableImage):
        raise
    except (EOFError, zlib.error, struct.error) as error:
        raise UnreadableImage(f"cut off or damaged: {error}") from error
    except Exception as error:  # nibabel raises anything on damaged headers
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise FtaeError(f"NIfTI files need the package nibabel: {MEDICAL}") from error
    return nibabel
