"""What a model makes of every image of a folder: reconstructions and translations, as files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow, read_bytes
from ftae.engine.data.files.listing import check_output, find_images, legible
from ftae.engine.data.files.threads import chunks
from ftae.engine.data.image_folder import folder_notes
from ftae.engine.data.survey import check_levels, survey_folder
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import SHEET, beside, pixels_of, prepare_folder, save_sheet
from ftae.inference.stacks import OpenFile, open_file
from ftae.inference.written import file_names, suffix_of
from ftae.specs.finetune.data_spec import DataSpec

SHEET_IMAGES = 36


@dataclass(frozen=True)
class _Sample:
    """Sample ``number`` of the file ``name``; ``given``: (1, C, H, W) in [0, 1]."""

    name: str
    file: OpenFile
    number: int
    given: Tensor


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

    Files are PNG, or TIFF as ``save_image`` says. Images are read as in training: their centre, at the model's
    resolution. All samples of a file become one file, as ``open_file`` says.

    For a model conditioned on labels, the label of an image is the name of its sub-folder. ``sheet.png`` shows up to 36
    samples, evenly of all files, beside what the model made of them. Returns the number of files; ``notify`` receives a
    line for each file that cannot be read or is only used in part. ``reverse``: as for ``TunedModel.run``.

    Raises:
        FtaeError: one of ``out`` and a folder of images lies in the other, ``out`` is not empty, no image can be read,
            or the model's data do not define the range of the values; or the model has no way back.
    """
    if reverse:
        model.check_reverse()
    check_output(out, {"the images to read": str(folder), **model.spec.data.image_folders()})
    names = _looked_at(folder, model.data, notify)
    label_of = _labels(model, folder, names)
    prepare_folder(out, overwrite=overwrite)
    written = file_names(names, taken=[SHEET], suffix=suffix_of(model.data))
    pairs: list[Tensor] = []
    count = 0
    for part in chunks(_samples(model, folder, names, notify), model.spec.batch_size):
        labels = None if label_of is None else torch.tensor([label_of[s.name] for s in part], device=model.device)
        made = model.run(torch.cat([sample.given for sample in part]), labels, reverse=reverse)
        for sample, image in zip(part, made, strict=True):
            sample.file.take(sample.number, image)
            if _is_shown(sample, len(names)):
                pairs.append(torch.stack([sample.given[0].cpu(), image]))
            if sample.number == sample.file.number - 1:
                sample.file.write(out / written[sample.name])
                count += 1
        del pairs[SHEET_IMAGES:]
    if not count:
        raise FtaeError(f"no image of {folder} can be read")
    sheet = torch.stack(pairs)  # (N, 2, C, H, W)
    save_sheet(beside(pixels_of(sheet[:, 0]), pixels_of(sheet[:, 1])), out / SHEET, columns=4)
    return count


def _is_shown(sample: _Sample, num_files: int) -> bool:
    step = max(1, sample.file.number * num_files // SHEET_IMAGES)
    return sample.number % step == min(step, sample.file.number) // 2


def _looked_at(folder: Path, data: DataSpec, notify: Callable[[str], None]) -> Sequence[str]:
    """The names of the images of a folder; says what of them is not used.

    Raises:
        FtaeError: the folder holds no images, or ``data`` do not define the range of their values.
    """
    files = find_images(folder)
    survey = survey_folder(files)
    check_levels([survey], data, str(folder))
    for note in folder_notes(str(folder), files, survey, data):
        notify(note)
    for entry in files.unusable:
        name, _, reason = entry.rpartition(": ")
        notify(f"{folder / legible(name)} is skipped: {reason}")
    return files.names


def _samples(model: TunedModel, folder: Path, names: Sequence[str], notify: Callable[[str], None]) -> Iterator[_Sample]:
    """All samples of one file after another; no more than one file is open but for the last batch."""
    for name in names:
        try:
            with quiet_pillow():
                file = open_file(read_bytes(folder / name), model.data)
            for number in range(file.number):
                with quiet_pillow():
                    given = file.given(number, model.device)
                yield _Sample(name, file, number, given)
        except UnreadableImage as error:
            notify(f"{folder / legible(name)} is skipped: {error}")


def _labels(model: TunedModel, folder: Path, names: Sequence[str]) -> dict[str, int] | None:
    """Return the label of each image by its sub-folder; None for a model that is not conditioned on labels."""
    if not model.spec.model.needs_labels:
        return None
    if any("/" not in name for name in names):
        raise FtaeError(f"the model is conditioned on labels: put the images of {folder} into one sub-folder a class")
    return {name: model.label(name.partition("/")[0]) for name in names}
