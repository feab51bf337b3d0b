"""The adversarial losses: of a discriminator, and of the model that it judges, by ``discriminator.loss``.

All are scalars, means over logits in fp32. ``real`` and ``fake`` are logits of the same shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of a game; ``model`` compares with real images only where ``is_relative``."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # real, fake
    model: Callable[[Tensor, Tensor | None], Tensor]  # fake, real
    is_relative: bool = False


def _relative(a: Tensor, b: Tensor | None) -> Tensor:
    assert b is not None
    return F.softplus(b - a).mean()


ADVERSARIAL_LOSSES = {
    # Lim & Ye (2017); minus the mean logit may be negative
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean(), lambda fake, real: -fake.mean()
    ),
    # Goodfellow et al. (2014): cross-entropy on logits
    "non_saturating": AdversarialLoss(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake, real: F.softplus(-fake).mean(),
    ),
    # Mao et al. (2017), towards 1 and 0
    "lsgan": AdversarialLoss(
        lambda real, fake: (1.0 - real).square().mean() + fake.square().mean(),
        lambda fake, real: (1.0 - fake).square().mean(),
    ),
    # Jolicoeur-Martineau (2019), paired as in R3GAN (Huang et al. 2024)
    "relativistic": AdversarialLoss(_relative, _relative, is_relative=True),
}


def gradient_penalty(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 or R2 (Mescheder et al. 2018) without its weight, in fp32: a scalar, the mean over ``images`` (B, C, H, W).

    For each image the squared gradient of its mean logit, summed over the pixels.
    """
    images = images.detach().requires_grad_(True)
    logits = net(images).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(logits.sum(), [images], create_graph=True)
    return slope.square().flatten(1).sum(1).mean()
