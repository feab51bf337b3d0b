"""Image files in, folders of pictures out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ftae.engine.batches import val_batches
from ftae.engine.data import ImageSet
from ftae.engine.decoding import UnreadableImage, decode_image, read_bytes
from ftae.errors import FtaeError
from ftae.tuned.model import TunedModel


def read_image(model: TunedModel, path: Path) -> Tensor:
    """An image file as the model's validation images are read, but never degraded: (1, C, H, W) in [0, 1].

    Raises:
        FtaeError: the file cannot be read.
        UnreadableImage: it is no image.
    """
    spec = model.spec.data.model_copy(update={"degrade": None})
    pixels = decode_image(read_bytes(path), spec)
    return next(val_batches(ImageSet(pixels[np.newaxis], None), spec, batch_size=1, device=model.device)).images


def read_given(model: TunedModel, path: Path) -> Tensor:
    """As ``read_image``, of a file that the user has named.

    Raises:
        FtaeError: it cannot be read, or is no image.
    """
    if not path.is_file():
        raise FtaeError(f"there is no image {path}")
    try:
        return read_image(model, path)
    except UnreadableImage as error:
        raise FtaeError(f"{path}: {error}") from error


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make the folder ``out``, into which a command writes.

    Raises:
        FtaeError: there are files in it, and they are not to be overwritten.
    """
    if out.is_file():
        raise FtaeError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FtaeError(
            f"{out} is not empty; choose another folder, or give --overwrite to replace files of the same name"
        )
    out.mkdir(parents=True, exist_ok=True)


def png_names(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Each name of an image as that of a PNG; with the old suffix in it where two would be one, or ``taken``."""
    plain = [str(Path(name).with_suffix(".png")) for name in names]
    counts = Counter(plain)
    counts.update(taken)
    return {name: f"{name}.png" if counts[png] > 1 else png for name, png in zip(names, plain, strict=True)}
