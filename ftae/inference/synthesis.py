"""Samples of a generator, and the way from one sample to another."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ftae.engine.data.batches import evaluation_noise
from ftae.engine.data.files.listing import check_output
from ftae.errors import FtaeError
from ftae.inference.interpolation import lerp, slerp
from ftae.inference.model import TunedModel
from ftae.inference.pictures import save_frames


@torch.no_grad()
def synthesise(model: TunedModel, seeds: Sequence[int], truncation: float | None) -> Tensor:
    """The images of some seeds, float32 (len(seeds), C, H, W) in [0, 1]; a seed gives what evaluations show under it.

    ``truncation``: the styles are drawn towards their mean by this factor (psi in Karras et al. 2019): 1 or None
    changes nothing, 0 gives the mean image.

    Raises:
        FtaeError: the model is no generator, or has no styles to truncate; there are no seeds, or one is below 0.
    """
    if not seeds or min(seeds) < 0:
        raise FtaeError(f"seeds must be one number or more from 0 on, got {list(seeds)}")
    with model.settings():
        return torch.cat([_rendered(model, _styles(model, [seed], truncation)) for seed in seeds])


@torch.no_grad()
def between_seeds(
    model: TunedModel, ends: tuple[int, int], frames: int, *, spherical: bool, truncation: float | None
) -> tuple[Tensor, str]:
    """Images (frames, C, H, W) in [0, 1] from one seed to another, and a description of them.

    The path is linear between the styles, or ``spherical`` between the noises. Raises as ``synthesise``.
    """
    shares = [i / (frames - 1) for i in range(frames)]
    with model.settings():
        if spherical:
            a, b = evaluation_noise(ends, _noise_dim(model)).double()
            noise = torch.stack([slerp(a, b, share) for share in shares]).float()
            styles = _truncated(model, _mapped(model, noise), truncation)
        else:
            a, b = _styles(model, ends, truncation)
            styles = torch.stack([lerp(a, b, share) for share in shares])
        images = torch.cat([_rendered(model, style[None]) for style in styles])
    return images, "spherical interpolation of noise" if spherical else "linear interpolation of styles"


def between_seeds_files(
    model: TunedModel,
    ends: tuple[int, int],
    out: Path,
    *,
    frames: int,
    spherical: bool,
    truncation: float | None,
    overwrite: bool,
) -> str:
    """Write ``sheet.png`` and ``frames.gif`` from one seed to another; returns a description of the images.

    Raises:
        FtaeError: as ``synthesise``; or ``out`` lies among images, or is not empty.
    """
    check_output(out, model.spec.data.image_folders(), writes_folders=False)
    images, description = between_seeds(model, ends, frames, spherical=spherical, truncation=truncation)
    save_frames(images, out, overwrite=overwrite)
    return description


def _noise_dim(model: TunedModel) -> int:
    if model.autoencoder.noise_dim is None:
        raise FtaeError(f"{model.spec.model.family} makes no images of noise, so it has no seeds")
    return model.autoencoder.noise_dim


def _styles(model: TunedModel, seeds: Sequence[int], truncation: float | None) -> Tensor:
    return _truncated(model, _mapped(model, evaluation_noise(seeds, _noise_dim(model))), truncation)


def _mapped(model: TunedModel, noise: Tensor) -> Tensor:
    return model.autoencoder.encode(noise.to(model.device)).latents


def _truncated(model: TunedModel, styles: Tensor, truncation: float | None) -> Tensor:
    if truncation is None:
        return styles
    if not math.isfinite(truncation):
        raise FtaeError(f"truncation must be a finite number, got {truncation}")
    if model.autoencoder.truncate is None:
        raise FtaeError(f"{model.spec.model.family} has no mean style to truncate towards: leave out the truncation")
    return model.autoencoder.truncate(styles, truncation)


def _rendered(model: TunedModel, styles: Tensor) -> Tensor:
    images = model.autoencoder.to_unit(model.autoencoder.decode(styles))
    return images.float().clamp(0.0, 1.0).cpu()
