"""Pictures in and out: a user's own images, names of images, and grids of reconstructions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ftae.engine.data.archives.source import archive_part, is_archive
from ftae.engine.data.arrays import file_part
from ftae.engine.data.batches import val_batches
from ftae.engine.data.cache import StoredImages
from ftae.engine.data.checks import skipped_message
from ftae.engine.data.dataset import load_dataset, separate_anomalies
from ftae.engine.data.files.decoding import Array, UnreadableImage, quiet_pillow, read_bytes
from ftae.engine.data.files.values import decode_file
from ftae.engine.data.image_folder import folder_part
from ftae.engine.data.pairs import pairs_part
from ftae.engine.data.shards.source import is_shards, shards_part
from ftae.engine.data.source_base import ImageSet, Indices, ListedImages, Values, num_held_out
from ftae.engine.data.sources import source_of
from ftae.engine.data.stored_parts import readable_names, store_part
from ftae.engine.data.survey import check_levels, survey_image
from ftae.engine.training.evaluator import visible
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.arrays import Arrays

SHEET, FRAMES = "sheet.png", "frames.gif"


@dataclass(frozen=True)
class Names:
    """The names of images, in order. ``classes``: the class of each; None where images have no labels."""

    images: tuple[str, ...]
    classes: tuple[str, ...] | None

    def from_index(self, first: int) -> "Names":
        return Names(self.images[first:], self.classes and self.classes[first:])


@dataclass(frozen=True)
class NamedImages:
    """Images and their names; those of ``anomalies`` come last.

    ``images``: the normal ones; their labels index ``class_names``. ``anomalies``: the images of
    ``data.anomaly_classes``; None where there are none. ``notes``: what the user should know of the files.
    """

    images: ImageSet
    anomalies: ImageSet | None
    names: Names
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def named_folder(folder: str, spec: DataSpec, scale: Values | None = None) -> NamedImages:
    """All images of a folder, an archive or shards in the size and colour of ``spec``, named by their paths below it.

    Where ``spec`` is of pairs or of two domains, ``folder`` is one, and each file holds a pair side by side. ``scale``:
    as for ``training_scale``.

    Raises:
        FtaeError: ``folder`` holds no readable images, ``spec`` does not say what values mean, or the cache cannot
            be written.
    """
    if spec.paired or spec.unpaired:
        part = pairs_part(folder, spec)
    elif isinstance(spec, Arrays):
        part = file_part(folder, training_scale(spec, scale), spec)
    elif is_shards(folder):
        part = shards_part(folder, spec)
    else:
        part = archive_part(folder, spec) if is_archive(Path(folder).expanduser()) else folder_part(folder, spec)
    stored = store_part(part, spec)
    named = _named(part.listed(), stored, spec)
    skipped = sorted([*stored.skipped, *part.unusable])
    notes = (skipped_message(skipped), *part.notes) if skipped else tuple(part.notes)
    return replace(named, notes=notes)


def training_scale(spec: Arrays, known: Values | None) -> Values:
    """What is 0 and 1 for a model of arrays: it is measured on the training samples (see ``ImageSet.scale``).

    ``known``: what an exported model says of it.

    Raises:
        FtaeError: it is not known, and the training samples are neither in the cache of the machine nor in their file.
    """
    scale = load_dataset(spec).train.scale if known is None else known
    assert scale is not None
    return scale


def validation_names(spec: DataSpec) -> Names | None:
    """The names of the validation images of ``load_dataset(spec)``, in order; the anomalies come last.

    None where the cache holds images whose files have gone or changed. In a built-in source a name is the number of
    the image there.
    """
    now = spec.model_copy(update={"fingerprint": None})
    try:
        if spec.fingerprint not in (None, load_dataset(now).fingerprint):
            return None
    except FtaeError:
        return None
    parts = source_of(now).parts()
    listed, stored = parts[-1].listed(), store_part(parts[-1], now)
    named = _named(listed, stored, now)
    if len(parts) > 1:
        return named.names
    assert not isinstance(spec.val, str)
    if stored.groups is None:
        return named.names.from_index(len(named.images) - num_held_out(len(named.images), spec.val))
    dataset = load_dataset(now)
    held_out = [images for images in (dataset.val, dataset.anomalies) if images is not None]
    return _names_of(np.concatenate([_rows(images) for images in held_out]), listed, stored)


def _named(listed: ListedImages, stored: StoredImages, spec: DataSpec) -> NamedImages:
    normal, anomalies, class_names = separate_anomalies(stored, spec.anomaly_classes)
    rows = np.concatenate([_rows(normal), _rows(anomalies)])
    names = _names_of(rows, listed, stored)
    return NamedImages(replace(normal, factors=None), anomalies if len(anomalies) else None, names, class_names)


def _names_of(rows: Indices, listed: ListedImages, stored: StoredImages) -> Names:
    readable = readable_names(listed.names, stored.skipped)
    assert len(readable) == len(stored.images)
    classes = None
    if stored.labels is not None and stored.class_names is not None:
        classes = tuple(stored.class_names[label] for label in stored.labels[rows])
    return Names(tuple(readable[row] for row in rows), classes)


def _rows(images: ImageSet) -> Indices:
    return np.arange(len(images)) if images.rows is None else images.rows


def read_image(model: TunedModel, path: Path) -> Tensor:
    """Read an image file as the model's validation images are read, but not degraded: (1, C, H, W) in [0, 1].

    Raises:
        FtaeError: the file cannot be read.
        UnreadableImage: the file is not an image.
    """
    with quiet_pillow():
        return as_input(decode_file(read_bytes(path), model.data), model.data, model.device)


def as_input(pixels: Array, data: DataSpec, device: torch.device) -> Tensor:
    """One decoded image as validation images are given to the model, but not degraded: (1, C, H, W) in [0, 1]."""
    plain = data.model_copy(update={"degrade": None})
    return next(val_batches(ImageSet(pixels[np.newaxis], None), plain, batch_size=1, device=device)).images


def read_named_image(model: TunedModel, path: Path, notify: Callable[[str], None]) -> Tensor:
    """Read a file that the user has named, as ``read_image`` does; ``notify`` receives what of the file is ignored.

    Raises:
        FtaeError: the file cannot be read, is not an image, or has values whose range the model's data do not define.
    """
    if not path.is_file():
        raise FtaeError(f"there is no image file {path}")
    survey = survey_image(path.name, read_bytes(path))
    check_levels([survey], model.data, str(path))
    for note in survey.notes(model.data):
        notify(f"{path}: {note}")
    try:
        return read_image(model, path)
    except UnreadableImage as error:
        raise FtaeError(f"{path}: {error}") from error


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Create the folder ``out`` for output files.

    Raises:
        FtaeError: ``out`` is a file, or contains files and ``overwrite`` is false.
    """
    if out.is_file():
        raise FtaeError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise FtaeError(
            f"{out} is not empty; choose another folder, or use --overwrite to replace files of the same name"
        )
    out.mkdir(parents=True, exist_ok=True)


Pixels = npt.NDArray[np.uint8]
MIN_SIDE = 96  # pixels; smaller images are enlarged,
MAX_WIDTH = 1024  # but vectors and series, which are one pixel high, to no more than this
GAP = 2  # white pixels between the cells of a sheet
SHEET_COLUMNS = 6
FRAME_MS = 120


# Ten evenly spaced colours of matplotlib's inferno (van der Walt and Smith 2015), which is perceptually uniform.
_INFERNO = "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4"
INFERNO = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _INFERNO.split()])


def pixels_of(images: Tensor) -> Pixels:
    """Convert images (B, C, H, W) to pictures, uint8 (B, H, W, 1 or 3); values outside [0, 1] are clipped."""
    return (visible(images.clamp(0.0, 1.0)) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def heat(values: npt.NDArray[np.float64]) -> Pixels:
    """Colour values in [0, 1] as uint8 (..., 3): from black for 0 through violet and orange to light yellow for 1."""
    at = np.linspace(0.0, 1.0, len(INFERNO))
    return np.stack([np.rint(np.interp(values, at, INFERNO[:, i])) for i in range(3)], axis=-1).astype(np.uint8)


def save_png(pixels: Pixels, path: Path) -> None:
    """Write one image, uint8 (H, W, C); creates the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(pixels).save(path)


def save_sheet(cells: Pixels, path: Path, columns: int = SHEET_COLUMNS) -> None:
    """Write cells, uint8 (N, H, W, C), in rows of ``columns``. Small cells are enlarged; white fills the last row."""
    cells = _enlarged(cells)
    count, height, width, channels = cells.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    save_png(sheet, path)


def save_frames(images: Tensor, out: Path, *, overwrite: bool) -> None:
    """Write images (N, C, H, W) in [0, 1] to ``out`` as ``sheet.png`` and as the animation ``frames.gif``.

    Raises:
        FtaeError: as ``prepare_folder``.
    """
    prepare_folder(out, overwrite=overwrite)
    save_sheet(pixels_of(images), out / SHEET)
    save_gif(pixels_of(images), out / FRAMES)


def save_gif(frames: Pixels, path: Path) -> None:
    """Write frames, uint8 (N, H, W, C), as an endless animation, forwards and backwards. Small frames are enlarged."""
    frames = _enlarged(frames)
    forwards_and_backwards: Sequence[Pixels] = [*frames, *frames[-2:0:-1]]
    first, *rest = [_picture(frame) for frame in forwards_and_backwards]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def beside(*images: Pixels) -> Pixels:
    """Join image n of every array side by side: uint8 (N, H, sum of W, 3)."""
    return np.concatenate([np.broadcast_to(pixels, (*pixels.shape[:3], 3)) for pixels in images], axis=2)


def _enlarged(pixels: Pixels) -> Pixels:
    scale = max(1, min(-(-MIN_SIDE // pixels.shape[1]), MAX_WIDTH // pixels.shape[2]))
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
