"""New images: latents drawn from what the model, or its training images, say of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ftae.engine.autoencoder import Draw, Encoding
from ftae.engine.batches import val_batches
from ftae.engine.data import load_dataset
from ftae.errors import FtaeError
from ftae.tuned.model import TunedModel

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


def _from_gaussian(model: TunedModel, like: Encoding, num: int, draw: Draw) -> tuple[Tensor, str]:
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
    few = train.taken(slice(None, None, -(-len(train) // FITTED_IMAGES)))
    for batch in val_batches(few, spec, batch_size=model.spec.batch_size, device=model.device):
        yield model.encode(batch.inputs, batch.labels)
