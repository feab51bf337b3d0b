"""Structural similarity, at one scale and over several.

Own code, though torchmetrics has both (the tests hold it to the same numbers): importing that takes 3 s of
CPU time in every process of a search, most of it for audio, plots and compilers.
"""

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
