"""Images as files: PNG of 8 bits, or TIFF with values like those that the model was trained on; and their names."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ftae.engine.data.files.listing import SUFFIXES
from ftae.engine.data.files.nifti import SUFFIXES as NIFTI
from ftae.inference.pictures import pixels_of, save_png
from ftae.specs.finetune.data_spec import DataSpec

INTEGERS = (np.uint16, np.int16)
LEAST_STEPS = 255  # from black to white
VOLUME = ".nii.gz"


def suffix_of(data: DataSpec) -> str:
    """``.png``, or ``.tiff`` where pictures of 8 bits cannot hold the images."""
    return ".png" if data.meaning is None and data.channels in (1, 3) else ".tiff"


def save_image(image: Tensor, path: Path, data: DataSpec) -> None:
    """Write one image (C, H, W) in [0, 1] under a name with the suffix of ``suffix_of``.

    A TIFF has the values of the files that ``data`` describes: uint16 or int16 where black and white are such numbers
    and apart, else float32. Where each image had a range of its own, they are those of the model, from 0 to 1.
    """
    if suffix_of(data) == ".png":
        save_png(pixels_of(image[None])[0], path)
        return
    save_tiff(in_units(image.permute(1, 2, 0).cpu().numpy(), data), path)


def save_tiff(values: npt.NDArray[Any], path: Path) -> None:
    """Write an image (H, W, C), or several (N, H, W, C), each a page."""
    import tifffile  # here, since a model that is served writes no files

    path.parent.mkdir(parents=True, exist_ok=True)
    channels = values.shape[-1]
    planes: Any = values[..., 0] if channels == 1 else values
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(path, planes, photometric=photometric, planarconfig=None if channels == 1 else "contig")


def in_units(unit: npt.NDArray[np.float32], data: DataSpec) -> npt.NDArray[Any]:
    """Values in [0, 1] as the files of ``data`` have them: whole numbers, if these tell 256 values apart, or floats."""
    levels = (0.0, 255.0) if data.meaning is None else data.meaning.levels
    if levels is None:
        return unit
    low, high = levels
    values = low + unit.astype(np.float64) * (high - low)
    kinds = (np.uint8,) if data.meaning is None else INTEGERS
    for kind in kinds:
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        if low.is_integer() and high.is_integer() and least <= low and high <= most and high - low >= LEAST_STEPS:
            return np.rint(values).astype(kind)
    return values.astype(np.float32)


def file_names(names: Sequence[str], taken: Sequence[str], suffix: str = ".png") -> dict[str, str]:
    """Map each image name to the name of a file with ``suffix``; all are different, and none is in ``taken``.

    Where two images would get the same name, the old suffix stays in it: ``a.jpg.png``. A file never gets the name of a
    folder of images, nor does it as ``.tiff``. Volumes get the suffix ``.nii.gz``.
    """
    paths = [str(Path(name)) for name in names]  # in shards "a.png" and "./a.png" are two names
    suffixes = [VOLUME if name.lower().endswith(NIFTI) else suffix for name in names]
    plain = [_with_suffix(path, own) for path, own in zip(paths, suffixes, strict=True)]
    counts = Counter(plain)
    reserved = {*taken, *(str(folder) for path in paths for folder in Path(path).parents)}
    reserved |= {_with_suffix(name, suffix) for name in reserved if name.endswith(".tiff")}
    free = {name for name in plain if counts[name] == 1} - reserved
    used = free | reserved
    written = {}
    for name, path, written_name, own in zip(names, paths, plain, suffixes, strict=True):
        if written_name not in free:
            written_name = f"{path}{own}"
            while written_name in used:
                written_name += own
            used.add(written_name)
        written[name] = written_name
    return written


def _with_suffix(name: str, suffix: str) -> str:
    """``suffix`` in place of that of an image; DICOM files may have none, but a number after the last dot."""
    old = next((end for end in (*NIFTI, *SUFFIXES) if name.lower().endswith(end)), "")
    return name[: len(name) - len(old)] + suffix
