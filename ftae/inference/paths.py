"""Paths between two vectors."""

import torch
from torch import Tensor

PARALLEL = 1e-4  # the sine of an angle; vectors that are closer to parallel define no plane to rotate in


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
