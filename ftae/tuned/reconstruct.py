"""Every image of a folder, as the model gives it back."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data_check import folder_notes
from ftae.engine.decoding import UnreadableImage
from ftae.engine.listing import list_images
from ftae.engine.names import legible
from ftae.engine.output_folder import check_output
from ftae.engine.survey import check_levels, surveyed
from ftae.errors import FtaeError
from ftae.tuned.files import png_names, prepare_folder, read_image
from ftae.tuned.model import TunedModel
from ftae.tuned.pictures import beside, pixels_of, save_png, save_sheet

SHEET = "sheet.png"
SHEET_IMAGES = 36


def reconstruct_folder(
    model: TunedModel, folder: Path, out: Path, *, overwrite: bool, say: Callable[[str], None]
) -> int:
    """Write the reconstruction of every image below ``folder`` to ``out``, as PNG under the same relative name.

    Images are read as in training: the centre square, at the model's resolution. A model conditioned on labels
    takes those of the sub-folders. ``sheet.png`` shows up to 36 of them beside their inputs. Returns how many
    there are; ``say`` is told of files that cannot be read, or not whole.

    Raises:
        FtaeError: ``out`` and a folder of images lie in each other, ``out`` is not empty, no image can be read, or
            the model's data do not say what values mean.
    """
    check_output(out, {"the images to reconstruct": str(folder), **model.spec.data.image_folders()})
    files = list_images(folder)
    names, survey = files.names, surveyed(files)
    check_levels([survey], model.spec.data, str(folder))
    for note in folder_notes(str(folder), files, survey, model.spec.data):
        say(note)
    for entry in files.unusable:
        name, _, reason = entry.rpartition(": ")
        say(f"{folder / legible(name)} is skipped: {reason}")
    label_of = _labels(model, folder, names)
    prepare_folder(out, overwrite=overwrite)
    written = png_names(names, taken=[SHEET])
    shown: list[Tensor] = []
    count = 0
    for part in _readable(model, folder, names, say):
        images = torch.cat([image for _, image in part])
        labels = None if label_of is None else torch.tensor([label_of[n] for n, _ in part], device=model.device)
        made = model.reconstruct(images, labels)
        for (name, _), pixels in zip(part, pixels_of(made), strict=True):
            save_png(pixels, out / written[name])
        count += len(part)
        if sum(map(len, shown)) < SHEET_IMAGES:
            shown.append(torch.stack([images.cpu(), made], dim=1))  # (B, 2, C, H, W)
    if not count:
        raise FtaeError(f"no image of {folder} can be read")
    pairs = torch.cat(shown)[:SHEET_IMAGES]
    save_sheet(beside(pixels_of(pairs[:, 0]), pixels_of(pairs[:, 1])), out / SHEET, columns=4)
    return count


def _readable(
    model: TunedModel, folder: Path, names: Sequence[str], say: Callable[[str], None]
) -> Iterator[list[tuple[str, Tensor]]]:
    """The images by name, a batch at a time."""
    for start in range(0, len(names), model.spec.batch_size):
        part = []
        for name in names[start : start + model.spec.batch_size]:
            try:
                part.append((name, read_image(model, folder / name)))
            except UnreadableImage as error:
                say(f"{folder / legible(name)} is skipped: {error}")
        if part:
            yield part


def _labels(model: TunedModel, folder: Path, names: Sequence[str]) -> dict[str, int] | None:
    """The label of each image by its sub-folder, for a model that asks for it."""
    if not model.spec.model.needs_labels:
        return None
    if any("/" not in name for name in names):
        raise FtaeError(f"the model is conditioned on labels: put the images of {folder} into a sub-folder for each")
    return {name: model.label(name.partition("/")[0]) for name in names}
