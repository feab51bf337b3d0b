"""NIfTI volumes: their slices along the axes of the body."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
            self._data = image.dataobj
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
        x, y = (along for along in range(3) if along != across)
        if self._axes[x] > self._axes[y]:
            plane = plane.T
        plane = plane[:: -1 if self._reversed[x] else 1, :: -1 if self._reversed[y] else 1]
        return np.ascontiguousarray(plane.T[::-1, :, None], dtype=plane.dtype.newbyteorder("="))

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
