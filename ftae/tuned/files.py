"""Image files in, folders of pictures out."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ftae.engine.batches import val_batches
from ftae.engine.data import ImageSet
from ftae.engine.decoding import UnreadableImage, decode_image, quiet_pillow, read_bytes
from ftae.engine.survey import check_levels, survey_of
from ftae.errors import FtaeError
from ftae.tuned.model import TunedModel


def read_image(model: TunedModel, path: Path) -> Tensor:
    """An image file as the model's validation images are read, but never degraded: (1, C, H, W) in [0, 1].

    Raises:
        FtaeError: the file cannot be read.
        UnreadableImage: it is no image.
    """
    spec = model.spec.data.model_copy(update={"degrade": None})
    with quiet_pillow():
        pixels = decode_image(read_bytes(path), spec)
    return next(val_batches(ImageSet(pixels[np.newaxis], None), spec, batch_size=1, device=model.device)).images


def read_given(model: TunedModel, path: Path, say: Callable[[str], None]) -> Tensor:
    """As ``read_image``, of a file that the user has named; ``say`` is told what of it is not used.

    Raises:
        FtaeError: it cannot be read, is no image, or the model's data do not say what its values are.
    """
    if not path.is_file():
        raise FtaeError(f"there is no image {path}")
    survey = survey_of(path.name, read_bytes(path))
    check_levels([survey], model.spec.data, str(path))
    for note in survey.notes(model.spec.data):
        say(f"{path}: {note}")
    try:
        return read_image(model, path)
    except UnreadableImage as error:
        raise FtaeError(f"{path}: {error}") from error


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make the folder ``out``, into which a command writes (see ``check_output``).

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
    """Each name of an image as that of a PNG; with the old suffix in it where two would be one, or ``taken``.

    Folders of images take their names, too.
    """
    plain = [str(Path(name).with_suffix(".png")) for name in names]
    counts = Counter(plain)
    reserved = {*taken, *(str(folder) for name in names for folder in Path(name).parents)}
    free = {png for png in plain if counts[png] == 1} - reserved
    used = free | reserved
    written = {}
    for name, png in zip(names, plain, strict=True):
        if png not in free:
            png = f"{name}.png"
            while png in used:
                png += ".png"
            used.add(png)
        written[name] = png
    return written
