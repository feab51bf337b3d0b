"""Makes images with a tuned model: reconstructions, translations, interpolations and samples."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.files.listing import check_output, legible, list_images
from ftae.engine.data.image_folder import folder_notes
from ftae.engine.data.survey import check_levels, survey_folder
from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.paths import lerp, slerp
from ftae.inference.pictures import (
    SHEET,
    SHEET_COLUMNS,
    beside,
    file_names,
    pixels_of,
    prepare_folder,
    read_image,
    read_named_image,
    save_frames,
    save_sheet,
)
from ftae.inference.synthesis import synthesise
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


def interpolate_files(
    model: TunedModel,
    ends: tuple[Path, Path],
    out: Path,
    *,
    frames: int,
    spherical: bool,
    label: str | None,
    overwrite: bool,
    notify: Callable[[str], None],
) -> str:
    """Write ``sheet.png`` and ``frames.gif`` from one image file to another; returns a description of the images.

    Raises:
        FtaeError: as ``interpolate`` and ``read_named_image``; or ``out`` lies among images, or is not empty.
    """
    check_output(out, model.spec.data.image_folders(), writes_folders=False)
    first, last = (read_named_image(model, path, notify) for path in ends)
    index = None if label is None else model.label(label)
    images, description = interpolate(model, first, last, frames, spherical=spherical, label=index)
    save_frames(images, out, overwrite=overwrite)
    return description


def interpolate(
    model: TunedModel, first: Tensor, last: Tensor, frames: int, *, spherical: bool, label: int | None
) -> tuple[Tensor, str]:
    """Interpolate between the latents of two images, each (1, C, H, W) in [0, 1].

    Returns the images, (frames, C, H, W) in [0, 1], and a description of them. The first and the last are the
    reconstructions of the two images. The latents are the modes of the posteriors.

    Raises:
        FtaeError: the model is conditioned on labels and there is none, or the other way round.
    """
    if model.spec.model.needs_labels != (label is not None):
        rule = "needs a label" if label is None else "is not conditioned on labels: leave out the label"
        raise FtaeError(f"{model.spec.model.family} {rule}")
    labels = None if label is None else torch.full((2,), label, device=model.device)
    encoding = model.encode(torch.cat([first, last]), labels)
    a, b = encoding.mode.double()
    path = slerp if spherical else lerp
    latents = torch.stack([path(a, b, i / (frames - 1)) for i in range(frames)]).to(encoding.mode.dtype)
    images = model.decode(latents, None if label is None else torch.full((frames,), label, device=model.device))
    description = f"{'spherical' if spherical else 'linear'} interpolation of latents"
    if encoding.codes:
        description += ", between quantised latents: the latents in between are no codes, unlike those of training"
    return images, description


FITTED_IMAGES = 2048  # at most, evenly spread over the training images, for the distribution of the latents


def sample_files(
    model: TunedModel,
    out: Path,
    num: int,
    *,
    label: str | None,
    fitted: bool,
    seed: int,
    seeds: Sequence[int] | None,
    truncation: float | None,
    overwrite: bool,
) -> tuple[int, str]:
    """Write ``num`` sampled images, of every class for a model conditioned on labels, and ``sheet.png`` with all.

    ``seeds``: those of a generator, one an image; None for ``num`` from ``seed`` on. Returns the number of images and a
    description of the distribution of their latents.

    Raises:
        FtaeError: as ``sample``; there is no such class; or ``out`` lies among images, or is not empty.
    """
    check_output(out, model.spec.data.image_folders(), writes_folders=False)
    labels, names = model.labels_to_sample(num, label)
    if model.spec.model.takes_noise:
        seeds = range(seed, seed + num) if seeds is None else seeds
        names = [f"seed-{each:04d}" for each in seeds]
    images, description = sample(
        model, labels, len(names), seed=seed, fitted=fitted, seeds=seeds, truncation=truncation
    )
    prepare_folder(out, overwrite=overwrite)
    pixels = pixels_of(images)
    for image, name in zip(images, names, strict=True):
        save_image(image, out / f"{name}{suffix_of(model.spec.data)}", model.spec.data)
    by_class = labels is not None and label is None
    save_sheet(pixels, out / SHEET, columns=num if by_class else SHEET_COLUMNS)
    return len(images), description + ("; each row of the sheet is a class" if by_class else "")


def sample(
    model: TunedModel,
    labels: Tensor | None,
    num: int,
    *,
    seed: int,
    fitted: bool,
    seeds: Sequence[int] | None = None,
    truncation: float | None = None,
) -> tuple[Tensor, str]:
    """Sample ``num`` images (num, C, H, W) in [0, 1]; also returns a description of the distribution of the latents.

    Those of a generator are the images of ``seeds``, by default of ``num`` from ``seed`` on, with ``truncation`` as for
    ``synthesise``.

    ``labels``: int64 (num,) for a model conditioned on labels. The same seed gives the same images; the global random
    generators are neither used nor changed. ``fitted``: draw from a Gaussian fitted to the latents of the training
    images instead of the prior.

    Raises:
        FtaeError: the model has no prior, or its latents are codes and ``fitted`` is set; or the training images are
            needed and missing; or a setting has no effect on the model.
    """
    family = model.spec.model.family
    if model.spec.model.takes_noise:
        if fitted:
            raise FtaeError(f"{family} makes images of noise: there are no latents to fit, leave out --fitted")
        return synthesise(model, range(seed, seed + num) if seeds is None else seeds, truncation), "the standard normal"
    if seeds is not None or truncation is not None:
        raise FtaeError(f"{family} is no generator: it has neither seeds nor truncation")
    with model.settings():
        latents, description = _latents(model, labels, num, torch.Generator().manual_seed(seed), fitted)
        size = model.spec.batch_size
        parts = [slice(start, start + size) for start in range(0, num, size)]
        images = [model.decode(latents[p], None if labels is None else labels[p]) for p in parts]
    return torch.cat(images), description


def _latents(
    model: TunedModel, labels: Tensor | None, num: int, generator: torch.Generator, fitted: bool
) -> tuple[Tensor, str]:
    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    example = model.example_encoding()
    if fitted:
        return _from_gaussian(model, example, num, noise)
    if model.autoencoder.prior is not None:
        with torch.no_grad():
            return model.autoencoder.prior(num, labels, noise), "the prior that the model has learned"
    if example.codes:
        return _from_codes(model, example, num, generator)
    if example.posterior is None:
        raise FtaeError(
            f"{model.spec.model.family} has no prior to draw latents from; --fitted (fitted=True in Python) draws them "
            "from a Gaussian fitted to the latents of the training images"
        )
    description = "the standard normal"
    if example.mode.ndim == 4:
        description += (
            ". With the usual small weight of the KL, spatial latents do not follow it: --fitted draws from a Gaussian "
            "with the means and variances of the latents"
        )
    return noise(example.mode.new_empty((num, *example.mode.shape[1:]))), description


def _from_gaussian(model: TunedModel, example: Encoding, num: int, noise: NoiseFn) -> tuple[Tensor, str]:
    """Fit mean and variance of each latent element to samples of the posteriors of the training images."""
    if example.codes:
        raise FtaeError("a Gaussian cannot be fitted to codes; leave out --fitted to draw codes as often as seen")
    total = squares = torch.zeros_like(example.mode[0], dtype=torch.float64)
    count = 0
    for encoding in _training_encodings(model):
        mode = encoding.mode.double()
        variance = 0.0 if encoding.posterior is None else encoding.posterior.logvar.double().exp()
        total, squares = total + mode.sum(0), squares + (mode.square() + variance).sum(0)
        count += len(mode)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0.0).sqrt()
    latents = mean + std * noise(mean.new_empty((num, *mean.shape)))
    description = f"a Gaussian fitted to the latents of {count} training images, with diagonal covariance"
    return latents.to(example.mode.dtype), description


def _from_codes(model: TunedModel, example: Encoding, num: int, generator: torch.Generator) -> tuple[Tensor, str]:
    """Draw a training image for each position, and take its code there."""
    seen = torch.cat([encoding.latents.cpu() for encoding in _training_encodings(model)])
    parts = []
    for level in _levels(seen, example):  # (N, dim, positions)
        rows = torch.randint(len(seen), (num, 1, level.shape[2]), generator=generator)
        parts.append(torch.gather(level, 0, rows.expand(num, *level.shape[1:])).flatten(1))
    description = (
        f"the codes of {len(seen)} training images, drawn for each position as often as they occur there and "
        "independently of the other positions"
    )
    return torch.cat(parts, dim=1).reshape(num, *seen.shape[1:]), description


def _levels(latents: Tensor, example: Encoding) -> list[Tensor]:
    """Split latents into levels (N, dim, positions): spatial latents are one, flat ones hold a level behind another."""
    if latents.ndim > 2:
        return [latents.flatten(2)]
    counts = [codes.indices.shape[1] for codes in example.codes]
    dim = latents.shape[1] // sum(counts)
    levels = latents.split_with_sizes([dim * count for count in counts], dim=1)
    return [level.reshape(len(level), dim, -1) for level in levels]


def _training_encodings(model: TunedModel) -> Iterator[Encoding]:
    spec = model.spec.data.model_copy(update={"fingerprint": None})
    train = load_dataset(spec).train
    few = train.subset(slice(None, None, -(-len(train) // FITTED_IMAGES)))
    for batch in val_batches(few, spec, batch_size=model.spec.batch_size, device=model.device):
        yield model.encode(batch.inputs, batch.labels)
