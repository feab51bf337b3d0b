"""LOSSES: the terms of the training loss. Each is a mean over elements, in fp32.

A term is one entry here and one field in ``ftae.specs.finetune.losses``. Pixel terms compare in the image range of
the model, as latent-diffusion training does; ``bce``, ``ssim``, ``ms_ssim``, ``lpips`` and ``vgg`` need [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ftae.engine.models.autoencoder import Autoencoder, Encoding
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.image_measures import ms_ssim, ssim
from ftae.errors import FtaeError
from ftae.specs.finetune.losses import Losses


@dataclass(frozen=True)
class LossInputs:
    """One batch, as the terms see it.

    ``given``, ``target``, ``reconstruction``: fp32 (B, C, H, W) in the range of the model: its input, the image that it
    is to give, and its output; ``*_unit``: the same in [0, 1].
    ``logits``: (B, classes) of the head; ``labels``: (B,), -1 for an image without one; both None where the data has
    no labels. ``progress``: 0..1 of the budget. Of a model that translates both ways: ``cycled``, what its output
    becomes on the way back, ``unchanged``, what ``target`` becomes on the way of ``given``; None if no term asks.
    """

    given: Tensor
    target: Tensor
    reconstruction: Tensor
    target_unit: Tensor
    reconstruction_unit: Tensor
    encoding: Encoding
    logits: Tensor | None
    labels: Tensor | None
    autoencoder: Autoencoder
    auxiliary: AuxiliaryNetworks
    settings: Losses
    progress: float
    cycled: Tensor | None = None
    unchanged: Tensor | None = None


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute difference of neighbours (Rudin et al. 1992), per element."""
    return sum((difference.abs().mean() for difference in _differences(images)), torch.zeros(()))


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the gradients of two images (Mathieu et al. 2016, alpha 1), both directions."""
    pairs = zip(_differences(a), _differences(b), strict=True)
    return torch.stack([F.l1_loss(of_a, of_b) for of_a, of_b in pairs]).sum()


def _differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, downwards and to the right."""
    return images[..., 1:, :] - images[..., :-1, :], images[..., :, 1:] - images[..., :, :-1]


def _kl(x: LossInputs) -> Tensor:
    """Per latent element; with a capacity, the distance of an image's nats from it (Burgess et al. 2018)."""
    if x.encoding.posterior is None:
        raise FtaeError("losses.kl needs a posterior: the model's encode must return (mean, logvar)")
    kl = x.encoding.posterior.kl().flatten(1)
    if x.settings.kl_capacity is None:
        return kl.mean()
    capacity = x.settings.kl_capacity * _warmed_up(x.settings, x.progress)
    return (kl.sum(1) - capacity).abs().mean() / kl.shape[1]


def _ce(x: LossInputs) -> Tensor:
    """The mean over all images of the batch; an image without a label counts as 0."""
    assert x.logits is not None
    assert x.labels is not None
    return F.cross_entropy(x.logits, x.labels, ignore_index=-1, reduction="sum") / len(x.labels)


def _lpips(x: LossInputs) -> Tensor:
    assert x.auxiliary.perceptual is not None
    return x.auxiliary.perceptual.lpips(x.reconstruction_unit, x.target_unit).mean()


def _vgg(x: LossInputs) -> Tensor:
    assert x.auxiliary.perceptual is not None
    return x.auxiliary.perceptual.vgg(x.reconstruction_unit, x.target_unit).mean()


def _latent_anchor(x: LossInputs) -> Tensor:
    """Mean squared distance from the latents of the untuned model."""
    assert x.auxiliary.reference is not None
    with torch.no_grad():
        anchor = x.auxiliary.reference.encode(x.target, x.labels).mode
    return F.mse_loss(x.encoding.mode.float(), anchor.float())


def _l2_sp(x: LossInputs) -> Tensor:
    """Mean squared distance of the trainable weights from their pretrained values (Li et al. 2018)."""
    assert x.auxiliary.reference is not None
    kept = {id(p) for stage in x.auxiliary.reference.stages if not stage.new for p in stage.parameters()}
    start = {name: p for name, p in x.auxiliary.reference.named_parameters() if id(p) in kept}
    pairs = [(p, start[name]) for name, p in x.autoencoder.named_parameters() if p.requires_grad and name in start]
    if not pairs:
        raise FtaeError("losses.l2_sp has no effect: no stage that keeps pretrained weights is trained")
    squares = torch.stack([(p - pretrained).square().sum() for p, pretrained in pairs])
    return squares.sum() / sum(p.numel() for p, _ in pairs)


def _commitment(x: LossInputs) -> Tensor:
    """Mean over the codebooks, unscaled: the user's weight is the beta of van den Oord et al. (2017)."""
    return torch.stack([codes.commitment for codes in x.encoding.codes]).mean()


def _codebook(x: LossInputs) -> Tensor:
    """Mean over the codebooks."""
    return torch.stack([codes.codebook for codes in x.encoding.codes if codes.codebook is not None]).mean()


def _adversarial(x: LossInputs) -> Tensor:
    """The loss of a model whose reconstructions the discriminator tells from real images; may be negative."""
    assert x.auxiliary.adversary is not None
    return x.auxiliary.adversary(x.reconstruction, x.given, x.target)


def _both_ways(images: Tensor | None) -> Tensor:
    assert images is not None
    return images


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "mse": lambda x: F.mse_loss(x.reconstruction, x.target),
    "l1": lambda x: F.l1_loss(x.reconstruction, x.target),
    "huber": lambda x: F.huber_loss(x.reconstruction, x.target, delta=x.settings.huber_delta),
    "bce": lambda x: F.binary_cross_entropy(x.reconstruction_unit, x.target_unit),
    "kl": _kl,
    "tv": lambda x: total_variation(x.reconstruction),
    "edge": lambda x: edge_difference(x.reconstruction, x.target),
    "ssim": lambda x: 1.0 - ssim(x.reconstruction_unit, x.target_unit).mean(),
    "ms_ssim": lambda x: 1.0 - ms_ssim(x.reconstruction_unit, x.target_unit).mean(),
    "lpips": _lpips,
    "vgg": _vgg,
    "ce": _ce,
    "latent_anchor": _latent_anchor,
    "l2_sp": _l2_sp,
    "commitment": _commitment,
    "codebook": _codebook,
    "adversarial": _adversarial,
    "cycle": lambda x: F.l1_loss(_both_ways(x.cycled), x.given),
    "identity": lambda x: F.l1_loss(_both_ways(x.unchanged), x.target),
}


def weights_at(losses: Losses, progress: float) -> dict[str, float]:
    """The weight of every enabled term at ``progress`` (0..1) of the budget; kl warms up linearly."""
    weights = losses.weights()
    if "kl" in weights and losses.kl_capacity is None:
        weights["kl"] *= _warmed_up(losses, progress)
    return weights


def _warmed_up(losses: Losses, progress: float) -> float:
    return min(1.0, progress / losses.kl_warmup_fraction) if losses.kl_warmup_fraction > 0.0 else 1.0


def loss_terms(inputs: LossInputs, names: list[str]) -> dict[str, Tensor]:
    """The unweighted value of each named term, a scalar fp32 tensor with its gradient."""
    return {name: LOSSES[name](inputs) for name in names}


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The training loss."""
    # Neither stacked nor multiplied by 1: small operations, forward and back, show in a step of two milliseconds.
    return reduce(torch.add, [_scaled(weights[name], term) for name, term in terms.items()])


def _scaled(weight: float, term: Tensor) -> Tensor:
    return term if weight == 1.0 else weight * term
