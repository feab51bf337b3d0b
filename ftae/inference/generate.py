"""What a tuned model makes: reconstructions, interpolations and samples."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.decoding import UnreadableImage
from ftae.engine.data.image_folder import folder_notes
from ftae.engine.data.listing import check_output, legible, list_images
from ftae.engine.data.survey import check_levels, survey_folder
from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import beside, pixels_of, png_names, prepare_folder, read_image, save_png, save_sheet

SHEET = "sheet.png"

SHEET_IMAGES = 36


def reconstruct_folder(
    model: TunedModel, folder: Path, out: Path, *, overwrite: bool, notify: Callable[[str], None]
) -> int:
    """Write the reconstruction of every image below ``folder`` to ``out``, as PNG under the same relative name.

    Images are read as in training: the centre square, at the model's resolution. A model conditioned on labels
    takes those of the sub-folders. ``sheet.png`` shows up to 36 of them beside their inputs. Returns how many
    there are; ``notify`` is told of files that cannot be read, or not whole.

    Raises:
        FtaeError: ``out`` and a folder of images lie in each other, ``out`` is not empty, no image can be read, or
            the model's data do not say what values mean.
    """
    check_output(out, {"the images to reconstruct": str(folder), **model.spec.data.image_folders()})
    files = list_images(folder)
    names, survey = files.names, survey_folder(files)
    check_levels([survey], model.spec.data, str(folder))
    for note in folder_notes(str(folder), files, survey, model.spec.data):
        notify(note)
    for entry in files.unusable:
        name, _, reason = entry.rpartition(": ")
        notify(f"{folder / legible(name)} is skipped: {reason}")
    label_of = _labels(model, folder, names)
    prepare_folder(out, overwrite=overwrite)
    written = png_names(names, taken=[SHEET])
    shown: list[Tensor] = []
    count = 0
    for part in _readable(model, folder, names, notify):
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
    model: TunedModel, folder: Path, names: Sequence[str], notify: Callable[[str], None]
) -> Iterator[list[tuple[str, Tensor]]]:
    """The images by name, a batch at a time."""
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
    """The label of each image by its sub-folder, for a model that asks for it."""
    if not model.spec.model.needs_labels:
        return None
    if any("/" not in name for name in names):
        raise FtaeError(f"the model is conditioned on labels: put the images of {folder} into a sub-folder for each")
    return {name: model.label(name.partition("/")[0]) for name in names}


PARALLEL = 1e-4  # of a sine: nearer to parallel, the two directions give no plane to turn in


def interpolate(
    model: TunedModel, first: Tensor, last: Tensor, frames: int, *, spherical: bool, label: int | None
) -> tuple[Tensor, str]:
    """Images (frames, C, H, W) in [0, 1] from ``first`` to ``last``, both (1, C, H, W); and what they are, in words.

    Those at the ends are the two reconstructions: latents are the modes of the posteriors.

    Raises:
        FtaeError: the model is conditioned on labels and none is given, or the other way round.
    """
    if model.spec.model.needs_labels != (label is not None):
        rule = "needs" if label is None else "is not conditioned on labels: it takes no"
        raise FtaeError(f"{model.spec.model.family} {rule} --label")
    labels = None if label is None else torch.full((2,), label, device=model.device)
    encoding = model.encode(torch.cat([first, last]), labels)
    a, b = encoding.mode.double()
    path = slerp if spherical else lerp
    latents = torch.stack([path(a, b, i / (frames - 1)) for i in range(frames)]).to(encoding.mode.dtype)
    made = model.decode(latents, None if label is None else torch.full((frames,), label, device=model.device))
    told = f"{'spherical' if spherical else 'linear'} interpolation of latents"
    if encoding.codes:
        told += ", between quantised latents: those on the way are no codes, and the decoder was trained on codes alone"
    return made, told


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Linear: (1 - t) a + t b."""
    return (1.0 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), for latents as White (2016) has it.

    With W the angle between the two as flat vectors, cos W = <a, b> / (|a| |b|):

        sin((1 - t) W) / sin(W) a  +  sin(t W) / sin(W) b

    so that the length passes evenly from one to the other, where the linear way would cut through the
    middle, which a Gaussian of many dimensions hardly ever visits. Vectors that are nearly parallel, or of
    length 0, are interpolated linearly.
    """
    norms = a.norm() * b.norm()
    if norms == 0.0:
        return lerp(a, b, t)
    angle = torch.arccos(((a * b).sum() / norms).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    if sine < PARALLEL:
        return lerp(a, b, t)
    return torch.sin((1.0 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b


FITTED_IMAGES = 2048  # of the training images, evenly spread, that say how latents are distributed


def sample(model: TunedModel, labels: Tensor | None, num: int, *, seed: int, fitted: bool) -> tuple[Tensor, str]:
    """``num`` images (num, C, H, W) in [0, 1], and what their latents were drawn from.

    ``labels``: int64 (num,) for a model conditioned on them. The same seed gives the same images; the global
    random generators are neither used nor moved. ``fitted``: from a Gaussian fitted to the training images'
    latents, rather than from the prior.

    Raises:
        FtaeError: the model has no prior, or latents to which no Gaussian is fitted; the training images are
            needed and not there.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    like = _an_encoding(model)
    if fitted:
        latents, told = _from_gaussian(model, like, num, draw)
    elif model.autoencoder.prior is not None:
        with torch.no_grad():
            latents = model.autoencoder.prior(num, labels, draw)
        told = "the prior that the model has learned"
    elif like.codes:
        latents, told = _from_codes(model, like, num, generator)
    elif like.posterior is not None:
        latents = draw(like.mode.new_empty((num, *like.mode.shape[1:])))
        told = "the standard normal"
        if like.mode.ndim == 4:
            told += (
                ". Latents in the plane, kept near it by little KL, are not distributed so: --fitted draws from a "
                "Gaussian with their own means and variances"
            )
    else:
        raise FtaeError(
            f"{model.spec.model.family} has no prior to draw latents from: --fitted draws them from a Gaussian fitted "
            "to those of the training images"
        )
    size = model.spec.batch_size
    parts = [slice(start, start + size) for start in range(0, num, size)]
    return torch.cat([model.decode(latents[p], None if labels is None else labels[p]) for p in parts]), told


def _an_encoding(model: TunedModel) -> Encoding:
    """Of a grey image: the shape of latents, and what comes with them."""
    data = model.spec.data
    labels = torch.zeros(1, dtype=torch.int64, device=model.device) if model.spec.model.needs_labels else None
    return model.encode(torch.full((1, data.channels, data.resolution, data.resolution), 0.5), labels)


def _from_gaussian(model: TunedModel, like: Encoding, num: int, draw: NoiseFn) -> tuple[Tensor, str]:
    """Each element of the latents by itself: mean and variance of samples of the posteriors, over training images."""
    if like.codes:
        raise FtaeError("--fitted fits a Gaussian to latents, and these are codes; leave it out to draw codes as seen")
    total = squares = torch.zeros_like(like.mode[0], dtype=torch.float64)
    count = 0
    for encoding in _training_encodings(model):
        mode = encoding.mode.double()
        noise = 0.0 if encoding.posterior is None else encoding.posterior.logvar.double().exp()
        total, squares = total + mode.sum(0), squares + (mode.square() + noise).sum(0)
        count += len(mode)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0.0).sqrt()
    latents = mean + std * draw(mean.new_empty((num, *mean.shape)))
    told = f"a Gaussian fitted to the latents of {count} training images, each element by itself (diagonal covariance)"
    return latents.to(like.mode.dtype), told


def _from_codes(model: TunedModel, like: Encoding, num: int, generator: torch.Generator) -> tuple[Tensor, str]:
    """At each position the code that a training image, drawn anew for each position, has there."""
    seen = torch.cat([encoding.latents.cpu() for encoding in _training_encodings(model)])
    parts = []
    for level in _levels(seen, like):  # (N, dim, positions)
        rows = torch.randint(len(seen), (num, 1, level.shape[2]), generator=generator)
        parts.append(torch.gather(level, 0, rows.expand(num, *level.shape[1:])).flatten(1))
    told = (
        f"the codes of {len(seen)} training images: each position takes one as often as it was seen there, whatever "
        "the others take, so that images hang together only as far as the decoder makes them"
    )
    return torch.cat(parts, dim=1).reshape(num, *seen.shape[1:]), told


def _levels(latents: Tensor, like: Encoding) -> list[Tensor]:
    """Latents by position, (N, dim, positions): of the plane, or of each level of flat ones, one behind the other."""
    if latents.ndim > 2:
        return [latents.flatten(2)]
    counts = [codes.indices.shape[1] for codes in like.codes]
    dim = latents.shape[1] // sum(counts)
    levels = latents.split_with_sizes([dim * count for count in counts], dim=1)
    return [level.reshape(len(level), dim, -1) for level in levels]


def _training_encodings(model: TunedModel) -> Iterator[Encoding]:
    spec = model.spec.data.model_copy(update={"fingerprint": None})
    train = load_dataset(spec).train
    few = train.subset(slice(None, None, -(-len(train) // FITTED_IMAGES)))
    for batch in val_batches(few, spec, batch_size=model.spec.batch_size, device=model.device):
        yield model.encode(batch.inputs, batch.labels)
