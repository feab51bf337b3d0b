"""The way from one image to another through the latents of a model, and paths between two vectors."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.files.listing import check_output
from ftae.errors import FtaeError
from ftae.inference.model import TunedModel
from ftae.inference.pictures import read_named_image, save_frames

PARALLEL = 1e-4  # the sine of an angle; vectors that are closer to parallel define no plane to rotate in


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
    if model.spec.data.of_floats:
        raise FtaeError("a model of arrays takes no image files: decode latents in between by ftae.Model")
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


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate linearly: (1 - t) a + t b."""
    return (1.0 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate on a sphere (Shoemake 1985), as White (2016) does with latents.

    With W the angle between the two as flat vectors, cos W = <a, b> / (|a| |b|):

        sin((1 - t) W) / sin(W) a  +  sin(t W) / sin(W) b

    The length changes evenly from one end to the other. The linear path would pass near the origin, where a Gaussian
    of many dimensions has almost no mass. Vectors that are nearly parallel, or of length 0, are interpolated linearly.
    """
    norms = a.norm() * b.norm()
    if norms == 0.0:
        return lerp(a, b, t)
    angle = torch.arccos(((a * b).sum() / norms).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    if sine < PARALLEL:
        return lerp(a, b, t)
    return torch.sin((1.0 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b
