"""What a model makes of every image of a folder: reconstructions and translations, as files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.listing import check_output, legible, list_images
from ftae.engine.data.image_folder import folder_notes
from ftae.engine.data.survey import check_levels, survey_folder
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import SHEET, beside, file_names, pixels_of, prepare_folder, read_image, save_sheet
from ftae.inference.written import save_image, suffix_of
from ftae.specs.finetune.data_spec import DataSpec

SHEET_IMAGES = 36


def run_folder(
    model: TunedModel,
    folder: Path,
    out: Path,
    *,
    overwrite: bool,
    notify: Callable[[str], None],
    reverse: bool = False,
) -> int:
    """Write what the model makes of every image below ``folder`` to ``out``, under the same relative name.

    Files are PNG, or TIFF as ``save_image`` says.

    Images are read as in training: their centre, at the model's resolution. For a model conditioned on labels, the
    label of an image is the name of its sub-folder. ``sheet.png`` shows up to 36 images beside what the model made of
    them. Returns the number of images; ``notify`` receives a line for each file that cannot be read or is only used in
    part. ``reverse``: as for ``TunedModel.run``.

    Raises:
        FtaeError: one of ``out`` and a folder of images lies in the other, ``out`` is not empty, no image can be read,
            or the model's data do not define the range of the values; or the model has no way back.
    """
    if reverse:
        model.check_reverse()
    check_output(out, {"the images to read": str(folder), **model.spec.data.image_folders()})
    names = _looked_at(folder, model.spec.data, notify)
    label_of = _labels(model, folder, names)
    prepare_folder(out, overwrite=overwrite)
    data = model.spec.data
    written = file_names(names, taken=[SHEET], suffix=suffix_of(data))
    pairs: list[Tensor] = []
    count = 0
    for part in _readable(model, folder, names, notify):
        images = torch.cat([image for _, image in part])
        labels = None if label_of is None else torch.tensor([label_of[n] for n, _ in part], device=model.device)
        made = model.run(images, labels, reverse=reverse)
        for (name, _), image in zip(part, made, strict=True):
            save_image(image, out / written[name], data)
        count += len(part)
        if sum(map(len, pairs)) < SHEET_IMAGES:
            pairs.append(torch.stack([images.cpu(), made], dim=1))  # (B, 2, C, H, W)
    if not count:
        raise FtaeError(f"no image of {folder} can be read")
    sheet = torch.cat(pairs)[:SHEET_IMAGES]
    save_sheet(beside(pixels_of(sheet[:, 0]), pixels_of(sheet[:, 1])), out / SHEET, columns=4)
    return count


def _looked_at(folder: Path, data: DataSpec, notify: Callable[[str], None]) -> Sequence[str]:
    """The names of the images of a folder; says what of them is not used.

    Raises:
        FtaeError: the folder holds no images, or ``data`` do not define the range of their values.
    """
    files = list_images(folder)
    survey = survey_folder(files)
    check_levels([survey], data, str(folder))
    for note in folder_notes(str(folder), files, survey, data):
        notify(note)
    for entry in files.unusable:
        name, _, reason = entry.rpartition(": ")
        notify(f"{folder / legible(name)} is skipped: {reason}")
    return files.names


def _readable(
    model: TunedModel, folder: Path, names: Sequence[str], notify: Callable[[str], None]
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the images with their names, a batch at a time."""
    for start in range(0, len(names), model.spec.batch_size):
        part = []
        for name in names[start : start + model.spec.batch_size]:
            try:
                part.append((name, read_image(model, folder / name)))
            except UnreadableImage as error:
                notify(f"{folder / legible(name)} is skipped: {error}")
        if part:
            yield part


def _labels(model: TunedModel, folder: Path, names: Sequence[str]) -> dict[str, int] | None:
    """Return the label of each image by its sub-folder; None for a model that is not conditioned on labels."""
    if not model.spec.model.needs_labels:
        return None
    if any("/" not in name for name in names):
        raise FtaeError(f"the model is conditioned on labels: put the images of {folder} into one sub-folder a class")
    return {name: model.label(name.partition("/")[0]) for name in names}
