"""Samples of a model: of its prior, of the latents or codes of the training images, or of noise."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.files.listing import check_output
from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.errors import FtaeError
from ftae.inference.array_files import own_values
from ftae.inference.model import TunedModel
from ftae.inference.pictures import SHEET, SHEET_COLUMNS, pixels_of, prepare_folder, save_sheet
from ftae.inference.synthesis import synthesise
from ftae.inference.written import save_image, suffix_of

ARRAY = "samples.npy"
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

    Samples of a model of arrays are one array in the values of its file, class by class.
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
    if (own := own_values(model)) is not None:
        np.save(out / ARRAY, own.from_model(images))
    else:
        for image, name in zip(images, names, strict=True):
            save_image(image, out / f"{name}{suffix_of(model.data)}", model.data)
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
