"""LOSSES: the terms of the training loss. Each is a mean over elements, in fp32.

Pixel terms compare in the model's own image range, as latent-diffusion training does; ``bce`` and
``ssim`` need [0, 1] and convert.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ftae.engine.autoencoder import Posterior
from ftae.errors import FtaeError
from ftae.specs.finetune import Losses


@dataclass(frozen=True)
class LossInputs:
    """What the terms see of one batch.

    ``target``, ``reconstruction``: fp32 (B, C, H, W) in the model's range; ``*_unit``: the same in [0, 1].
    ``logits``: (B, classes) of the head, ``labels``: (B,); None where there are none.
    """

    target: Tensor
    reconstruction: Tensor
    target_unit: Tensor
    reconstruction_unit: Tensor
    posterior: Posterior | None
    logits: Tensor | None
    labels: Tensor | None
    huber_delta: float


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute difference of neighbours (Rudin et al. 1992), per element."""
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return vertical + horizontal


def _kl(inputs: LossInputs) -> Tensor:
    if inputs.posterior is None:
        raise FtaeError("losses.kl needs a posterior: the model's encode must return (mean, logvar)")
    return inputs.posterior.kl().mean()


def _ce(inputs: LossInputs) -> Tensor:
    assert inputs.logits is not None
    assert inputs.labels is not None
    return F.cross_entropy(inputs.logits, inputs.labels)


def _ssim(inputs: LossInputs) -> Tensor:
    similarity = structural_similarity_index_measure(inputs.reconstruction_unit, inputs.target_unit, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return 1.0 - similarity


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "mse": lambda x: F.mse_loss(x.reconstruction, x.target),
    "l1": lambda x: F.l1_loss(x.reconstruction, x.target),
    "huber": lambda x: F.huber_loss(x.reconstruction, x.target, delta=x.huber_delta),
    "bce": lambda x: F.binary_cross_entropy(x.reconstruction_unit, x.target_unit),
    "kl": _kl,
    "tv": lambda x: total_variation(x.reconstruction),
    "ssim": _ssim,
    "ce": _ce,
}


def weights_at(losses: Losses, progress: float) -> dict[str, float]:
    """The weight of every enabled term at ``progress`` (0..1) of the budget; kl warms up linearly."""
    weights = losses.weights()
    if "kl" in weights and losses.kl_warmup_fraction > 0.0:
        weights["kl"] *= min(1.0, progress / losses.kl_warmup_fraction)
    return weights


def loss_terms(inputs: LossInputs, names: list[str]) -> dict[str, Tensor]:
    """The unweighted value of each named term, a scalar fp32 tensor with its gradient."""
    return {name: LOSSES[name](inputs) for name in names}


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The training loss."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
