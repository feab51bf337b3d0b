"""METRICS: what a model is judged by. Fixed, unweighted, on the mode of the posterior, in fp32.

Per-image metrics are computed for each image on reconstructions clamped to [0, 1] and averaged over
the validation images:

    mse, l1       mean over pixels and channels
    psnr          10 * log10(1 / mse) in dB, mse floored at 1e-10; the mean of images, not of pixels
    ssim          structural similarity (Wang et al. 2004), 11x11 Gaussian window, borders reflected
    kl            sum over latent elements of the KL from the standard normal, in nats an image
    accuracy      1 where the head's largest logit is the label, else 0

Over the whole validation set:

    active_units  latent units (channels, for spatial latents) whose posterior mean varies over the
                  images by more than 0.01 (Burda et al. 2015)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ftae.engine.autoencoder import Posterior
from ftae.errors import FtaeError

ACTIVE_VARIANCE = 0.01
MSE_FLOOR = 1e-10


@dataclass(frozen=True)
class EvalInputs:
    """One validation batch: fp32 (B, C, H, W) in [0, 1], reconstructions clamped."""

    target: Tensor
    reconstruction: Tensor
    posterior: Posterior | None
    logits: Tensor | None
    labels: Tensor | None


def _mse(x: EvalInputs) -> Tensor:
    return (x.reconstruction - x.target).square().flatten(1).mean(1)


def _ssim(x: EvalInputs) -> Tensor:
    values = structural_similarity_index_measure(x.reconstruction, x.target, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def _accuracy(x: EvalInputs) -> Tensor:
    assert x.logits is not None
    assert x.labels is not None
    return (x.logits.argmax(1) == x.labels).float()


PER_IMAGE: dict[str, Callable[[EvalInputs], Tensor]] = {
    "mse": _mse,
    "l1": lambda x: (x.reconstruction - x.target).abs().flatten(1).mean(1),
    "psnr": lambda x: -10.0 * _mse(x).clamp_min(MSE_FLOOR).log10(),
    "ssim": _ssim,
    "kl": lambda x: _posterior(x).kl().flatten(1).sum(1),
    "accuracy": _accuracy,
}


class ActiveUnits:
    """Counts latent units that carry information, over all batches it is shown."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []

    def update(self, x: EvalInputs) -> None:
        self._means.append(_posterior(x).mean.float().cpu())

    def compute(self) -> float:
        variance = torch.cat(self._means).var(dim=0, correction=0)
        by_unit = variance.reshape(len(variance), -1).mean(1)
        return float(by_unit.gt(ACTIVE_VARIANCE).sum())


OVER_SET: dict[str, type[ActiveUnits]] = {"active_units": ActiveUnits}


class Evaluation:
    """Accumulates metrics over the batches of one evaluation."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._per_image = {name: 0.0 for name in names if name in PER_IMAGE}
        self._over_set = {name: OVER_SET[name]() for name in names if name in OVER_SET}
        self._num_images = 0

    def update(self, inputs: EvalInputs) -> None:
        for name in self._per_image:
            self._per_image[name] += float(PER_IMAGE[name](inputs).double().sum())
        for metric in self._over_set.values():
            metric.update(inputs)
        self._num_images += len(inputs.target)

    def compute(self) -> dict[str, float]:
        means = {name: total / self._num_images for name, total in self._per_image.items()}
        return means | {name: metric.compute() for name, metric in self._over_set.items()}


def _posterior(x: EvalInputs) -> Posterior:
    if x.posterior is None:
        raise FtaeError("kl and active_units need a posterior: the model's encode must return (mean, logvar)")
    return x.posterior
