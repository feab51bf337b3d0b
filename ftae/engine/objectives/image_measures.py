"""Measures of images: structural similarity, sharpness, edges."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels
STABILITY = (0.01**2, 0.03**2)  # C1 and C2, for images in [0, 1]
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
FLOOR = 1e-6  # of the value of a scale: it may be negative, where a fractional power is undefined


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004), in -1..1, the mean over pixels and channels: (B,).

    ``a``, ``b``: (B, C, H, W) in [0, 1], at least 6 pixels a side. 11x11 Gaussian window, borders reflected.
    """
    return _similarity_and_contrast(a, b)[0].flatten(1).mean(1)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair, in 0..1 (Wang et al. 2003, five scales): (B,).

    ``a``, ``b``: (B, C, H, W) in [0, 1], at least 176 pixels a side: the window of 11 at a 16th of the size.
    Unlike that of torchmetrics, it has a value and a gradient where contrasts are opposite, too.
    """
    scales: list[Tensor] = []
    for scale in range(len(SCALE_WEIGHTS)):
        if scale > 0:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = _similarity_and_contrast(a, b)
        inner = slice(WINDOW // 2, -(WINDOW // 2))  # where the window needs no reflected pixel
        scales.append(contrast[..., inner, inner].flatten(1).mean(1))
    scales[-1] = similarity.flatten(1).mean(1)  # luminance counts at the coarsest scale alone
    powers = [value.clamp_min(FLOOR) ** weight for value, weight in zip(scales, SCALE_WEIGHTS, strict=True)]
    return torch.stack(powers).prod(dim=0)


def _similarity_and_contrast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For the window around each pixel, (B, C, H, W): luminance * contrast * structure, and contrast * structure."""
    a, b = (F.pad(images, (WINDOW // 2,) * 4, mode="reflect") for images in (a, b))
    # All moments as channels of one grouped convolution: several times faster than five convolutions.
    moments = torch.cat((a, b, a * a, b * b, a * b), dim=1)
    channels = moments.shape[1]
    window = _gaussian_window(a).expand(channels, 1, WINDOW, WINDOW)
    mean_a, mean_b, square_a, square_b, product = F.conv2d(moments, window, groups=channels).chunk(5, dim=1)
    mean_a_squared, mean_b_squared, means = mean_a.square(), mean_b.square(), mean_a * mean_b
    # Rounding may put the difference just below 0.
    variances = (square_a - mean_a_squared).clamp_min(0.0) + (square_b - mean_b_squared).clamp_min(0.0)
    c1, c2 = STABILITY
    above, below = 2 * (product - means) + c2, variances + c2
    return ((2 * means + c1) * above) / ((mean_a_squared + mean_b_squared + c1) * below), above / below


def _gaussian_window(like: Tensor) -> Tensor:
    """(WINDOW, WINDOW), with a sum of 1."""
    distances = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weights = torch.exp(-((distances / SIGMA) ** 2) / 2)
    weights = weights / weights.sum()
    return weights[:, None] * weights[None, :]


class ImagePairs(Protocol):
    """Images and their reconstructions, both fp32 (B, C, H, W) in [0, 1]."""

    @property
    def target(self) -> Tensor: ...

    @property
    def reconstruction(self) -> Tensor: ...


def gradient_magnitudes(images: Tensor) -> Tensor:
    """The steepness of each image at each place, (B, C * (H-1) * (W-1)): the norm of the differences of neighbours."""
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    return torch.hypot(down, right).flatten(1)


class Sharpness:
    """Mean gradient magnitude of the reconstructions over that of the targets."""

    def __init__(self) -> None:
        self._reconstructed = self._target = 0.0

    def update(self, x: ImagePairs) -> None:
        self._reconstructed += float(gradient_magnitudes(x.reconstruction).double().sum())
        self._target += float(gradient_magnitudes(x.target).double().sum())

    def compute(self) -> float:
        return _ratio(self._reconstructed, self._target, of_nothing=1.0)


class EdgeDistance:
    """Distance between the distributions of gradient magnitudes of each reconstruction and its target.

    1-Wasserstein, which is the mean difference once both are sorted: the place of an edge in the image does not
    matter. Divided by the mean magnitude of the targets.
    """

    def __init__(self) -> None:
        self._distance = self._target = 0.0

    def update(self, x: ImagePairs) -> None:
        made, target = (gradient_magnitudes(images).sort(1).values for images in (x.reconstruction, x.target))
        self._distance += float((made - target).abs().double().sum())
        self._target += float(target.double().sum())

    def compute(self) -> float:
        return _ratio(self._distance, self._target, of_nothing=0.0)


def _ratio(found: float, target: float, *, of_nothing: float) -> float:
    """``found / target``; where the targets have no edges, ``of_nothing`` if there are none to be found either."""
    if target > 0.0:
        return found / target
    return math.inf if found > 0.0 else of_nothing
