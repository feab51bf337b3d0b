"""Pictures in and out: a user's own images, and grids of reconstructions."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.data.decoding import UnreadableImage, decode_image, quiet_pillow, read_bytes
from ftae.engine.data.image_set import ImageSet
from ftae.engine.data.survey import check_levels, survey_image
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel


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


def read_given(model: TunedModel, path: Path, notify: Callable[[str], None]) -> Tensor:
    """As ``read_image``, of a file that the user has named; ``notify`` is told what of it is not used.

    Raises:
        FtaeError: it cannot be read, is no image, or the model's data do not say what its values are.
    """
    if not path.is_file():
        raise FtaeError(f"there is no image {path}")
    survey = survey_image(path.name, read_bytes(path))
    check_levels([survey], model.spec.data, str(path))
    for note in survey.notes(model.spec.data):
        notify(f"{path}: {note}")
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


Pixels = npt.NDArray[np.uint8]

MIN_SIDE = 96  # pixels; smaller images are enlarged so that the picture can be looked at

GAP = 2  # white pixels between the cells of a sheet

SHEET_COLUMNS = 6

FRAME_MS = 120

# Ten evenly spaced colours of matplotlib's inferno (van der Walt and Smith 2015), which is perceptually uniform.
_INFERNO = "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4"

INFERNO = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _INFERNO.split()])


def pixels_of(images: Tensor) -> Pixels:
    """uint8 (B, H, W, C) of images (B, C, H, W) in [0, 1]."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def heat(values: npt.NDArray[np.float64]) -> Pixels:
    """uint8 (..., 3): black for 0, by way of violet and orange to light yellow for 1."""
    at = np.linspace(0.0, 1.0, len(INFERNO))
    return np.stack([np.rint(np.interp(values, at, INFERNO[:, i])) for i in range(3)], axis=-1).astype(np.uint8)


def save_png(pixels: Pixels, path: Path) -> None:
    """Write one image, uint8 (H, W, C); the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(pixels).save(path)


def save_sheet(cells: Pixels, path: Path, columns: int = SHEET_COLUMNS) -> None:
    """Write cells, uint8 (N, H, W, C), in rows of ``columns``; small ones enlarged, the last row filled with white."""
    cells = _enlarged(cells)
    count, height, width, channels = cells.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    save_png(sheet, path)


def save_gif(frames: Pixels, path: Path) -> None:
    """Write frames, uint8 (N, H, W, C), as an animation that goes there and back for ever; small ones enlarged."""
    frames = _enlarged(frames)
    there_and_back: Sequence[Pixels] = [*frames, *frames[-2:0:-1]]
    first, *rest = [_picture(frame) for frame in there_and_back]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def beside(*images: Pixels) -> Pixels:
    """Each image of the first beside that of the others, uint8 (N, H, sum of W, 3)."""
    return np.concatenate([np.broadcast_to(pixels, (*pixels.shape[:3], 3)) for pixels in images], axis=2)


def _enlarged(pixels: Pixels) -> Pixels:
    scale = max(1, -(-MIN_SIDE // pixels.shape[1]))
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
