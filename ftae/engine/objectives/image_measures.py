"""Measures of images: structural similarity, sharpness, edges."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels

STABILITY = (0.01**2, 0.03**2)  # C1 and C2, for images in [0, 1]

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

FLOOR = 1e-6  # of what a scale gives, which may be negative: a fractional power has no value there


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004), in -1..1, the mean over pixels and channels: (B,).

    ``a``, ``b``: (B, C, H, W) in [0, 1], at least 6 pixels a side. 11x11 Gaussian window, borders reflected.
    """
    return _similarity_and_contrast(a, b)[0].flatten(1).mean(1)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair, in 0..1 (Wang et al. 2003, five scales): (B,).

    ``a``, ``b``: (B, C, H, W) in [0, 1], at least 176 pixels a side: the window of 11 at a 16th of the size.
    Has a value and a gradient where contrasts are opposite too, which torchmetrics' has not.
    """
    scales: list[Tensor] = []
    for scale in range(len(SCALE_WEIGHTS)):
        if scale > 0:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = _similarity_and_contrast(a, b)
        inner = slice(WINDOW // 2, -(WINDOW // 2))  # where the window needs no reflected pixel
        scales.append(contrast[..., inner, inner].flatten(1).mean(1))
    scales[-1] = similarity.flatten(1).mean(1)  # the luminance counts at the coarsest alone
    powers = [value.clamp_min(FLOOR) ** weight for value, weight in zip(scales, SCALE_WEIGHTS, strict=True)]
    return torch.stack(powers).prod(dim=0)


def _similarity_and_contrast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the window around each pixel, (B, C, H, W): luminance times contrast and structure, and these alone."""
    a, b = (F.pad(images, (WINDOW // 2,) * 4, mode="reflect") for images in (a, b))
    # Side by side as channels: where each has a filter of its own, convolution is several times faster.
    moments = torch.cat((a, b, a * a, b * b, a * b), dim=1)
    channels = moments.shape[1]
    window = _gaussian_window(a).expand(channels, 1, WINDOW, WINDOW)
    mean_a, mean_b, square_a, square_b, product = F.conv2d(moments, window, groups=channels).chunk(5, dim=1)
    mean_a_squared, mean_b_squared, means = mean_a.square(), mean_b.square(), mean_a * mean_b
    # The difference of two roundings may be just below 0, a variance may not.
    variances = (square_a - mean_a_squared).clamp_min(0.0) + (square_b - mean_b_squared).clamp_min(0.0)
    c1, c2 = STABILITY
    above, below = 2 * (product - means) + c2, variances + c2
    return ((2 * means + c1) * above) / ((mean_a_squared + mean_b_squared + c1) * below), above / below


def _gaussian_window(like: Tensor) -> Tensor:
    """(WINDOW, WINDOW), of sum 1."""
    distances = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weights = torch.exp(-((distances / SIGMA) ** 2) / 2)
    weights = weights / weights.sum()
    return weights[:, None] * weights[None, :]


class Pairs(Protocol):
    """Images and reconstructions of them, both fp32 (B, C, H, W) in [0, 1]."""

    @property
    def target(self) -> Tensor: ...

    @property
    def reconstruction(self) -> Tensor: ...


def gradient_magnitudes(images: Tensor) -> Tensor:
    """How steep each image is at each place: (B, C * (H-1) * (W-1)), the norm of the differences of neighbours."""
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    return torch.hypot(down, right).flatten(1)


class Sharpness:
    """Mean gradient magnitude of the reconstructions over that of the targets."""

    def __init__(self) -> None:
        self._theirs = self._wanted = 0.0

    def update(self, x: Pairs) -> None:
        self._theirs += float(gradient_magnitudes(x.reconstruction).double().sum())
        self._wanted += float(gradient_magnitudes(x.target).double().sum())

    def compute(self) -> float:
        return _share(self._theirs, self._wanted, of_nothing=1.0)


class EdgeDistance:
    """How differently steep reconstructions are: the distance of each image's gradient magnitudes from its target's.

    Between the two distributions (1-Wasserstein: the mean difference once both are sorted), so that it does not
    matter where in the image an edge is; over the mean magnitude of the targets.
    """

    def __init__(self) -> None:
        self._distance = self._wanted = 0.0

    def update(self, x: Pairs) -> None:
        theirs, wanted = (gradient_magnitudes(images).sort(1).values for images in (x.reconstruction, x.target))
        self._distance += float((theirs - wanted).abs().double().sum())
        self._wanted += float(wanted.double().sum())

    def compute(self) -> float:
        return _share(self._distance, self._wanted, of_nothing=0.0)


class ExplainedVariance:
    """The share of the pixels' variance within images that reconstructions explain.

    0 where they are no better than images of one colour each, the mean of its own.
    """

    def __init__(self) -> None:
        self._error = self._variance = 0.0

    def update(self, x: Pairs) -> None:
        flat = x.target.mean((2, 3), keepdim=True)
        self._error += float((x.reconstruction - x.target).double().square().sum())
        self._variance += float((flat - x.target).double().square().sum())

    def compute(self) -> float:
        return max(0.0, 1.0 - self._error / self._variance) if self._variance > 0.0 else 0.0


def _share(found: float, wanted: float, *, of_nothing: float) -> float:
    """Of images without any edge there is no share, but if there is none in their reconstructions either."""
    if wanted > 0.0:
        return found / wanted
    return math.inf if found > 0.0 else of_nothing
