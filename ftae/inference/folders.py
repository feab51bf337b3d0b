"""What a model makes of every image of a folder, an archive or shards: reconstructions and translations, as files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.archives.source import is_archive, open_archive
from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow
from ftae.engine.data.files.listing import ImageFiles, check_output, find_images, legible
from ftae.engine.data.files.threads import chunks
from ftae.engine.data.image_folder import folder_notes
from ftae.engine.data.shards.source import is_shards, shards_at
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
    folder: Path | str,
    out: Path,
    *,
    overwrite: bool,
    notify: Callable[[str], None],
    reverse: bool = False,
) -> int:
    """Write what the model makes of every image below ``folder`` to ``out``, under the same relative name.

    ``folder`` may also be an archive or the place of shards; names are those in there, which never lead out of ``out``.
    Files are PNG, or TIFF as ``save_image`` says. Images are read as in training: their centre, at the model's
    resolution. All samples of a file become one file, as ``open_file`` says.

    For a model conditioned on labels, the label of an image is that in the archive or the shards, or else the name of
    its sub-folder. ``sheet.png`` shows up to 36 samples, some of each file if these hold several, beside what the model
    made of them. Returns the number of files; ``notify`` receives a line for each file that cannot be read or is only
    used in part. ``reverse``: as for ``TunedModel.run``.

    Raises:
        FtaeError: one of ``out`` and a folder of images lies in the other, ``out`` is not empty, no image can be read,
            or the model's data do not define the range of the values; or the model has no way back.
    """
    if reverse:
        model.check_reverse()
    where = str(folder)
    check_output(out, {"the images to read": where, **model.spec.data.image_folders()})
    files = _looked_at(where, model.data, notify)
    label_of = _labels(model, where, files)
    prepare_folder(out, overwrite=overwrite)
    written = file_names(files.names, taken=[SHEET], suffix=suffix_of(model.data))
    pairs: list[Tensor] = []
    count = 0
    for part in chunks(_samples(model, where, files, notify), model.spec.batch_size):
        labels = None if label_of is None else torch.tensor([label_of[s.name] for s in part], device=model.device)
        made = model.run(torch.cat([sample.given for sample in part]), labels, reverse=reverse)
        for sample, image in zip(part, made, strict=True):
            sample.file.take(sample.number, image)
            if _is_shown(sample, len(files.names)):
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


def _looked_at(where: str, data: DataSpec, notify: Callable[[str], None]) -> ImageFiles:
    """The images of a folder, an archive or shards; says what of them is not used.

    Raises:
        FtaeError: there are no images, they cannot be read, or ``data`` do not define the range of their values.
    """
    files = _files_at(where, data)
    survey = survey_folder(files)
    check_levels([survey], data, where)
    for note in folder_notes(where, files, survey, data):
        notify(note)
    for entry in files.unusable:
        name, _, reason = entry.rpartition(": ")
        notify(_skipped(where, name, reason))
    return files


def _files_at(where: str, data: DataSpec) -> ImageFiles:
    if is_shards(where):
        return shards_at(where, data)
    path = Path(where).expanduser()
    return open_archive(path, max(data.decoded_size)) if is_archive(path) else find_images(path)


def _skipped(where: str, name: str, reason: object) -> str:
    return f"{where.rstrip('/')}/{legible(name)} is skipped: {reason}"


def _samples(model: TunedModel, where: str, files: ImageFiles, notify: Callable[[str], None]) -> Iterator[_Sample]:
    """All samples of one file after another; no more than one file is open but for the last batch."""
    order, reader = files.reading_order(files.names), files.read_in_order()
    for name in files.names if order is None else [files.names[i] for i in order]:
        try:
            with quiet_pillow():
                file = open_file(reader.read(name), model.data)
            for number in range(file.number):
                with quiet_pillow():
                    given = file.given(number, model.device)
                yield _Sample(name, file, number, given)
        except UnreadableImage as error:
            notify(_skipped(where, name, error))


def _labels(model: TunedModel, where: str, files: ImageFiles) -> dict[str, int] | None:
    """The label of each image by its class or its sub-folder; None for a model that is not conditioned on labels."""
    if not model.spec.model.needs_labels:
        return None
    if files.class_names is None and any("/" not in name for name in files.names):
        raise FtaeError(f"the model is conditioned on labels: put the images of {where} into one sub-folder a class")
    return {name: model.label(files.class_of(name) or name.partition("/")[0]) for name in files.names}
