"""One file in use: its samples as the model takes them, and the one file that its outputs become.

Pages and frames become the pages of a TIFF, slices a volume, tiles an image of the size of the file. Samples that
``min_foreground`` leaves out of training are run, too, so that nothing is missing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ftae.engine.data.files.decoding import Array, Frame, UnreadableImage, centre_box, decode_image
from ftae.engine.data.files.nifti import Volume, is_nifti
from ftae.engine.data.files.places import Reader, num_images, open_samples, read_whole, starts
from ftae.engine.data.files.values import ends, has_values, read_frame, stored
from ftae.inference.pictures import as_input
from ftae.inference.written import in_units, save_image, save_tiff
from ftae.specs.finetune.data_spec import DataSpec, Size
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.specs.finetune.sources.two_sided import TwoSided

Floats = npt.NDArray[np.float32]


class OpenFile(ABC):
    """A file that is run. ``number``: of its samples, which are given and made in order."""

    def __init__(self, data: DataSpec, number: int) -> None:
        self.number, self._data = number, data

    @abstractmethod
    def _decoded(self, i: int) -> Array: ...

    def given(self, i: int, device: torch.device) -> Tensor:
        """Sample ``i``, (1, C, H, W) in [0, 1].

        Raises:
            UnreadableImage: it is damaged, or its values or bands are not those of the model.
        """
        return as_input(self._decoded(i), self._data, device)

    @abstractmethod
    def take(self, i: int, made: Tensor) -> None:
        """Take what the model made of sample ``i``, (C, H, W) in [0, 1]."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write what was made of all samples. ``path`` has the suffix of ``suffix_of``, or ``.nii.gz`` of a volume."""


def open_file(content: bytes, data: DataSpec) -> OpenFile:
    """The file with this ``content`` as the samples that ``data`` makes of it.

    Raises:
        UnreadableImage: it is no image, or a damaged one.
        FtaeError: a package is missing.
    """
    if not isinstance(data, ImageFolder) or isinstance(data, TwoSided):
        return _Image(content, data)
    if data.tiles is not None:
        return _Tiles(read_whole(content, data), data)
    if is_nifti(content) and data.slices is not None:
        return _Slices(Volume(content), data)
    number = num_images(content, data)
    return _Pages(open_samples(content, data), number, data) if number > 1 else _Image(content, data)


class _Image(OpenFile):
    def __init__(self, content: bytes, data: DataSpec) -> None:
        super().__init__(data, 1)
        self._content, self._is_inverted = content, False

    def _decoded(self, i: int) -> Array:
        if not has_values(self._content, self._data):
            return decode_image(self._content, self._data)
        frame = read_frame(self._content, self._data)
        self._is_inverted = frame.is_inverted
        return stored(frame, self._data)

    def take(self, i: int, made: Tensor) -> None:
        self._made = 1.0 - made if self._is_inverted else made

    def write(self, path: Path) -> None:
        save_image(self._made, path, self._data)


class _Several(OpenFile):
    """Samples that are parts of one file, so that they share its values, also where each has a range of its own."""

    def __init__(self, data: DataSpec, number: int) -> None:
        super().__init__(data, number)
        self._ends: dict[int, tuple[float, float]] = {}
        self._inverted: set[int] = set()

    @abstractmethod
    def _frame(self, i: int) -> Frame: ...

    def _decoded(self, i: int) -> Array:
        frame = self._frame(i)
        if frame.is_inverted:
            self._inverted.add(i)
        if self._data.meaning is not None and self._data.meaning.per_image is not None:
            self._ends[i] = ends(frame, self._data)
        return stored(frame, self._data)

    def _values(self, i: int, made: Tensor) -> Floats:
        """(H, W, C), in [0, 1]; in the values of the file where each sample has a range of its own."""
        low, high = self._ends.pop(i, (0.0, 1.0))
        unit: Floats = made.permute(1, 2, 0).numpy()
        if i in self._inverted:
            unit = np.float32(1.0) - unit
        return unit * np.float32(high - low) + np.float32(low)


class _Pages(_Several):
    """Pages or frames, all of the model's resolution."""

    def __init__(self, read: Reader, number: int, data: DataSpec) -> None:
        super().__init__(data, number)
        self._read, self._made = read, list[Array]()

    def _frame(self, i: int) -> Frame:
        return self._read((i,))

    def take(self, i: int, made: Tensor) -> None:
        self._made.append(in_units(self._values(i, made), self._data))

    def write(self, path: Path) -> None:
        save_tiff(np.stack(self._made), path.with_suffix(".tiff"))


class _Slices(_Several):
    """The slices of a volume, one volume in time after another."""

    def __init__(self, volume: Volume, data: ImageFolder) -> None:
        assert data.slices is not None
        self._volume, self._axis, self._made = volume, data.slices.axis, list[Array]()
        self._each = volume.num_slices(self._axis)
        super().__init__(data, self._each * volume.num_times)

    def _frame(self, i: int) -> Frame:
        time, number = divmod(i, self._each)
        return Frame(self._volume.slice(self._axis, number, time))

    def take(self, i: int, made: Tensor) -> None:
        # The channels were given the same values.
        self._made.append(in_units(self._values(i, made).mean(axis=2), self._data))

    def write(self, path: Path) -> None:
        part = seen_part(self._volume.slice_size(self._axis), self._data)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._volume.save_slices(path, self._axis, np.stack(self._made), part)


class _Tiles(_Several):
    """Tiles of an image. Where they overlap, each pixel is a mean that the middle of a tile decides most."""

    def __init__(self, whole: Frame, data: ImageFolder) -> None:
        assert data.tiles is not None
        *_, high, wide = seen_part((data.tiles.size, data.tiles.size), data)
        height, width, _ = whole.values.shape
        self._whole, self._size = whole, (round(high), round(wide))
        if min(height, width) < data.tiles.size:
            raise UnreadableImage(f"its {width}x{height} pixels are less than data.tiles.size ({data.tiles.size})")
        self._tops, self._lefts = (
            starts(length, side, min(side, data.tiles.stride or side))
            for length, side in zip((height, width), self._size, strict=True)
        )
        # What a crop would leave out of a tile would be missing, so tiles are what the model sees.
        super().__init__(data.model_copy(update={"random_crop_from": None}), len(self._tops) * len(self._lefts))
        self._sum: Floats = np.zeros((height, width, data.channels), np.float32)

    def _place(self, i: int) -> tuple[slice, slice]:
        row, column = divmod(i, len(self._lefts))
        top, left = self._tops[row], self._lefts[column]
        return slice(top, top + self._size[0]), slice(left, left + self._size[1])

    def _frame(self, i: int) -> Frame:
        return Frame(self._whole.values[self._place(i)], self._whole.is_inverted)

    def take(self, i: int, made: Tensor) -> None:
        if made.shape[1:] != self._size:
            made = interpolate(made[None], size=self._size, mode="bicubic", antialias=True)[0].clamp(0.0, 1.0)
        weights = np.multiply.outer(*map(_ramp, self._size))
        self._sum[self._place(i)] += self._values(i, made) * weights[..., None]

    def write(self, path: Path) -> None:
        height, width = self._sum.shape[:2]
        self._sum /= _weights(height, self._tops, self._size[0])[:, None, None]
        self._sum /= _weights(width, self._lefts, self._size[1])[:, None]
        save_image(torch.from_numpy(self._sum).permute(2, 0, 1), path, self._data)


def seen_part(size: Size, data: DataSpec) -> tuple[float, float, float, float]:
    """What the model sees of an image of ``size`` (H, W): top, left, height and width, in its pixels."""
    left, top, right, bottom = centre_box((size[1], size[0]), data)
    scale_y, scale_x = (bottom - top) / data.decoded_size[0], (right - left) / data.decoded_size[1]
    top, left = top + data.margins[0] // 2 * scale_y, left + data.margins[1] // 2 * scale_x
    return top, left, data.size[0] * scale_y, data.size[1] * scale_x


def _ramp(length: int) -> Floats:
    """Weights that fall from the middle to the ends of a tile."""
    up = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(up, up[::-1])


def _weights(length: int, begins: Sequence[int], side: int) -> Floats:
    """The sum of the weights of all tiles, along one side of the image."""
    total: Floats = np.zeros(length, np.float32)
    for begin in begins:
        total[begin : begin + side] += _ramp(side)
    return total
