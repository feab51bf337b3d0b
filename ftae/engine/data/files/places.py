"""Where in a file samples are: pages, frames, slices of a volume, and tiles; and what reads them there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ftae.engine.data.files.decoding import Frame, UnreadableImage, quiet_pillow, read_picture
from ftae.engine.data.files.dicom import is_dicom, num_frames, read_dicom
from ftae.engine.data.files.listing import ImageFiles
from ftae.engine.data.files.nifti import Volume, is_nifti
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.files.values import Values, has_values, num_pages, read_frame
from ftae.engine.data.source_base import Levels
from ftae.specs.finetune.images import Slices, Tiles
from ftae.specs.finetune.sources.folders import ImageFolder

BACKGROUND = 0.1  # of the way from the 1st to the 99th percentile of the values: what is above is foreground
VALUES_MEASURED = 200_000

Place = tuple[int, ...]
"""Of a sample in its file: (page), (frame), (slice, time), or (top, left)."""
Reader = Callable[[Place], Frame]


@dataclass
class Found:
    """``places``: the label and the place of each sample, by file. ``left_out``: the number of empty ones.

    A file with neither is one sample. ``unusable``: why a file has no samples.
    """

    places: dict[str, list[tuple[str, Sequence[int]]]] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    left_out: int = 0


def find_samples(files: ImageFiles, names: Sequence[str], spec: ImageFolder) -> Found:
    """The samples in the files ``names``, each with the label that its name ends in.

    Raises:
        FtaeError: a file cannot be read now, or a package is missing.
    """

    def look(name: str) -> tuple[list[tuple[str, Place]] | None, int] | UnreadableImage:
        try:
            return _samples_of(files.read(name), spec)
        except UnreadableImage as unreadable:
            return unreadable

    found = Found()
    with quiet_pillow():
        for name, result in zip(names, in_order(look, names), strict=True):
            if isinstance(result, UnreadableImage):
                found.unusable[name] = str(result)
            elif result[0] is not None:
                found.places[name] = list(result[0])
                found.left_out += result[1]
    return found


def _samples_of(data: bytes, spec: ImageFolder) -> tuple[list[tuple[str, Place]] | None, int]:
    """The samples in a file, and the number of those that are left out as empty; None where the file is one sample."""
    if spec.tiles is not None:
        return _tiles(read_whole(data, spec).values, spec.tiles, levels_said(spec))
    if is_nifti(data):
        if spec.slices is None:
            raise UnreadableImage("a volume: say by data.slices, such as {axis: axial}, which slices are samples")
        return _slices(Volume(data), spec.slices, levels_said(spec))
    number = num_images(data, spec)
    return ([(f"{i:04d}", (i,)) for i in range(number)], 0) if number > 1 else (None, 0)


def num_images(data: bytes, spec: ImageFolder) -> int:
    """The number of pages or frames of a file that are samples; 1 where the file is one. Raises as ``open_samples``."""
    return num_frames(data) if is_dicom(data) else num_pages(data) if spec.pages == "each" else 1


def _slices(volume: Volume, slices: Slices, levels: Levels | None) -> tuple[list[tuple[str, Place]], int]:
    number, several = volume.num_slices(slices.axis), volume.num_times > 1
    kept: list[tuple[str, Place]] = []
    for time in range(volume.num_times):
        planes = partial(volume.slice, slices.axis, time=time)
        is_kept = _with_foreground([partial(planes, i) for i in range(number)], slices.min_foreground, levels)
        kept += [(f"{time:04d}-{i:04d}" if several else f"{i:04d}", (i, time)) for i in range(number) if is_kept[i]]
    return kept, number * volume.num_times - len(kept)


def _tiles(values: Values, tiles: Tiles, levels: Levels | None) -> tuple[list[tuple[str, Place]], int]:
    height, width = values.shape[:2]
    if min(height, width) < tiles.size:
        raise UnreadableImage(f"its {width}x{height} pixels are less than data.tiles.size ({tiles.size})")
    rows, columns = (starts(length, tiles.size, tiles.stride) for length in (height, width))
    named = [(f"r{r}c{c}", (top, left)) for r, top in enumerate(rows) for c, left in enumerate(columns)]
    cuts = [partial(_cut, values, place, tiles.size) for _, place in named]
    is_kept = _with_foreground(cuts, tiles.min_foreground, levels)
    kept: list[tuple[str, Place]] = [sample for sample, is_one in zip(named, is_kept, strict=True) if is_one]
    return kept, len(named) - len(kept)


def starts(length: int, size: int, stride: int | None) -> list[int]:
    """Where tiles of ``size`` begin along a side. The last one ends at the border, so that nothing is lost there."""
    last = length - size
    return sorted({*range(0, last + 1, stride or size), last})


def _cut(values: Values, place: Place, size: int) -> Values:
    top, left = place
    return values[top : top + size, left : left + size]


def levels_said(spec: ImageFolder) -> Levels | None:
    """The values of black and white, where the file says them: what is darker than black is no darker background.

    What is measured comes too late: it is measured on samples that are chosen by then.
    """
    return None if spec.intensity is None else spec.intensity.said


def _with_foreground(planes: Sequence[Callable[[], Values]], least: float, levels: Levels | None) -> list[bool]:
    """Which planes of one image or volume have at least the share ``least`` of foreground, between ``levels``."""
    if least == 0.0:
        return [True] * len(planes)
    each = max(1, VALUES_MEASURED // len(planes))
    thinned = []
    for plane in planes:
        flat = plane().ravel()
        thinned.append(flat[:: -(-len(flat) // each)].astype(np.float64))
    values = np.concatenate(thinned)
    values = values[np.isfinite(values)].clip(*(levels or (None, None)))
    low, high = np.percentile(values, [1, 99]) if len(values) else (0.0, 0.0)
    threshold = low + BACKGROUND * (high - low)
    return [bool((plane() > threshold).any(axis=2).mean() >= least) for plane in planes]


def open_samples(data: bytes, spec: ImageFolder) -> Reader:
    """What reads the samples of a file; in any thread.

    Raises:
        UnreadableImage: the file is damaged, as the reader may find out later.
    """
    if spec.tiles is not None:
        whole, size = read_whole(data, spec), spec.tiles.size
        return lambda place: Frame(_cut(whole.values, place, size), whole.is_inverted)
    if is_nifti(data):
        assert spec.slices is not None
        volume, axis = Volume(data), spec.slices.axis
        return lambda place: Frame(volume.slice(axis, *place))
    if is_dicom(data):
        return lambda place: read_dicom(data, *place)
    return lambda place: read_frame(data, spec, *place) if has_values(data, spec) else read_picture(data, spec, *place)


def read_whole(data: bytes, spec: ImageFolder) -> Frame:
    """The image that tiles are cut from. Raises as ``open_samples``."""
    return read_frame(data, spec) if has_values(data, spec) else read_picture(data, spec, 0)
