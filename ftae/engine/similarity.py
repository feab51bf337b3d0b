"""Structural similarity over several scales."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
FLOOR = 1e-6  # of what a scale gives, which may be negative: a fractional power has no value there


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair, in 0..1 (Wang et al. 2003, five scales): (B,).

    ``a``, ``b``: (B, C, H, W) in [0, 1], at least 176 pixels a side: the window of 11 at a 16th of the size.
    torchmetrics' own gives no number, or no gradient, where contrasts are opposite; its parts are used.
    """
    scales: list[Tensor] = []
    for scale in range(len(SCALE_WEIGHTS)):
        if scale > 0:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = structural_similarity_index_measure(
            a, b, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )
        scales.append(contrast)
    scales[-1] = similarity  # the luminance counts at the coarsest alone
    powers = [value.clamp_min(FLOOR) ** weight for value, weight in zip(scales, SCALE_WEIGHTS, strict=True)]
    return torch.stack(powers).prod(dim=0)
