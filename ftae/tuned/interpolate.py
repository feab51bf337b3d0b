"""From one image to another, by way of their latents."""

import torch
from torch import Tensor

from ftae.errors import FtaeError
from ftae.tuned.model import TunedModel

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
