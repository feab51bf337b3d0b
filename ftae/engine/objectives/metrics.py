"""METRICS: what a model is judged by. Fixed, unweighted, on the mode of the posterior, in fp32.

Per-image metrics are computed for each image on reconstructions clamped to [0, 1] and averaged over
the validation images:

    mse, l1       mean over pixels and channels
    psnr          10 * log10(1 / mse) in dB, mse floored at 1e-10; the mean of images, not of pixels
    input_psnr    psnr of the degraded image that the model is given: what giving it back unchanged scores
    ssim          structural similarity (Wang et al. 2004), 11x11 Gaussian window, borders reflected
    ms_ssim       the same over five scales (Wang et al. 2003)
    kl            sum over latent elements of the KL from the prior, in nats an image
    accuracy      1 where the head's largest logit is the label, else 0

Over the whole validation set:

    active_units  latent units (channels, for spatial latents) whose posterior mean varies over the
                  images by more than 0.01 (Burda et al. 2015); relative to a prior that is learned
    auroc         area under the ROC curve of the mse of each image as a sign that it is an anomaly: the share of
                  pairs of an anomaly and a normal image in which the anomaly has the larger error, equal ones
                  counting half (Hanley & McNeil 1982)
    latent_drift  mean squared distance of the latents from those of the model as it was given, over
                  the variance of the latter: 0 where nothing moved, 1 as if they were all the mean
    codebook_usage  share of the codes that are chosen at all; of several codebooks the least
    perplexity    exp of the entropy of how often each code is chosen (van den Oord et al. 2017): how many
                  codes it would be, were they used alike; of several codebooks the least
    sharpness     mean gradient magnitude of the reconstructions over that of the targets: below 1 they are
                  blurred, above 1 there is noise in them
    edge_distance distance between the distributions of gradient magnitudes of each reconstruction and its
                  target (1-Wasserstein), over the mean of the latter: 0 as sharp as the target, 1 flat
    linear_probe  share of images that a linear classifier on the latents, fitted on training images, gets right
    mig, dci      whether each factor of variation has a latent of its own, and each latent one factor
                  (latent_metrics.py says how all three are computed)
    lpips         perceptual distance (Zhang et al. 2018) of each image, the mean over images
    rfid, kid     Fréchet and kernel distance of the features of reconstructions from those of the originals;
                  not comparable with published values (feature_metrics.py says why)

What is kept does not grow with the validation set, but for the 4 bytes that auroc needs of each image: sums (of
active_units two numbers a latent, of rfid two matrices of features by features), counts (a number a code), or the
first images: 2,000 training images of linear_probe, 10,000 images of mig, dci and kid.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.feature_metrics import Kid, Lpips, Rfid
from ftae.engine.objectives.image_measures import EdgeDistance, ExplainedVariance, Sharpness, ms_ssim, ssim
from ftae.engine.objectives.latent_metrics import (
    ActivePositions,
    ActiveUnits,
    CodebookUsage,
    Dci,
    LatentDrift,
    LinearProbe,
    Mig,
    Perplexity,
    posterior_of,
)
from ftae.errors import Reason
from ftae.specs.finetune.run import FinetuneSpec

MSE_FLOOR = 1e-10

LARGEST = 1e30  # beyond, sums over fp32 may not be finite


def _mse(x: EvalBatch) -> Tensor:
    return (x.reconstruction - x.target).square().flatten(1).mean(1)


def _psnr(mse: Tensor) -> Tensor:
    return -10.0 * mse.clamp_min(MSE_FLOOR).log10()


def _accuracy(x: EvalBatch) -> Tensor:
    assert x.logits is not None
    assert x.labels is not None
    return (x.logits.argmax(1) == x.labels).float()


PER_IMAGE: dict[str, Callable[[EvalBatch], Tensor]] = {
    "mse": _mse,
    "l1": lambda x: (x.reconstruction - x.target).abs().flatten(1).mean(1),
    "psnr": lambda x: _psnr(_mse(x)),
    "input_psnr": lambda x: _psnr((x.given - x.target).square().flatten(1).mean(1)),
    "ssim": lambda x: ssim(x.reconstruction, x.target),
    "ms_ssim": lambda x: ms_ssim(x.reconstruction, x.target),
    "kl": lambda x: posterior_of(x).kl().flatten(1).sum(1),
    "accuracy": _accuracy,
}


class OverSet(Protocol):
    """A metric of all images together: shown every batch, asked once."""

    def update(self, x: EvalBatch) -> None: ...

    def compute(self) -> float: ...


@runtime_checkable
class OfAnomalies(OverSet, Protocol):
    """One that is also shown the anomalies, which are no part of any other metric."""

    def update_anomalies(self, x: EvalBatch) -> None: ...


class Auroc:
    """How well the reconstruction error tells anomalies from normal images."""

    def __init__(self) -> None:
        self._normal: list[Tensor] = []
        self._anomalous: list[Tensor] = []

    def update(self, x: EvalBatch) -> None:
        self._normal.append(_mse(x).cpu())

    def update_anomalies(self, x: EvalBatch) -> None:
        self._anomalous.append(_mse(x).cpu())

    def compute(self) -> float:
        normal, anomalous = torch.cat(self._normal).sort().values, torch.cat(self._anomalous)
        smaller, smaller_or_equal = (torch.searchsorted(normal, anomalous, right=right) for right in (False, True))
        return float((smaller + smaller_or_equal).double().mean() / (2 * len(normal)))


OVER_SET: dict[str, Callable[[EvalContext], OverSet]] = {
    "active_units": lambda subject: ActiveUnits(),
    "latent_drift": LatentDrift,
    "auroc": lambda subject: Auroc(),
    "sharpness": lambda subject: Sharpness(),
    "edge_distance": lambda subject: EdgeDistance(),
    "codebook_usage": lambda subject: CodebookUsage(),
    "perplexity": lambda subject: Perplexity(),
    "linear_probe": LinearProbe,
    "mig": lambda subject: Mig(),
    "dci": lambda subject: Dci(),
    "lpips": Lpips,
    "rfid": Rfid,
    "kid": Kid,
}


class Evaluation:
    """Accumulates the metrics of ``subject`` over the batches of one evaluation.

    Where the model gives anything that is not finite, every metric is NaN: some would raise, others be finite all
    the same.
    """

    def __init__(self, subject: EvalContext) -> None:
        names: tuple[str, ...] = subject.spec.metrics
        self._per_image = {name: 0.0 for name in names if name in PER_IMAGE}
        self._over_set = {name: OVER_SET[name](subject) for name in names if name in OVER_SET}
        self._num_images = 0
        self._is_finite = True

    def update(self, inputs: EvalBatch) -> None:
        self._is_finite = self._is_finite and _is_finite(inputs)
        if not self._is_finite:
            return
        for name in self._per_image:
            self._per_image[name] += float(PER_IMAGE[name](inputs).double().sum())
        for metric in self._over_set.values():
            metric.update(inputs)
        self._num_images += len(inputs.target)

    def update_anomalies(self, inputs: EvalBatch) -> None:
        self._is_finite = self._is_finite and _is_finite(inputs)
        if not self._is_finite:
            return
        for metric in self._over_set.values():
            if isinstance(metric, OfAnomalies):
                metric.update_anomalies(inputs)

    def compute(self) -> dict[str, float]:
        if not self._is_finite:
            return dict.fromkeys([*self._per_image, *self._over_set], math.nan)
        means = {name: total / self._num_images for name, total in self._per_image.items()}
        return means | {name: metric.compute() for name, metric in self._over_set.items()}


def _is_finite(x: EvalBatch) -> bool:
    given = [x.reconstruction, x.encoding.mode, *([] if x.logits is None else [x.logits])]
    return all(bool(tensor.abs().amax() < LARGEST) for tensor in given)


class CollapseDetector:
    """Signs of life, each named by what has happened once it falls to 0; only what the run has is there."""

    def __init__(self, spec: FinetuneSpec) -> None:
        self._signs: dict[str, OverSet] = {}
        if spec.losses.adversarial > 0.0:
            self._signs[Reason.BLOW_UP] = ExplainedVariance()

    def update(self, x: EvalBatch) -> None:
        if x.encoding.posterior is not None:
            self._signs.setdefault("posterior collapse", ActiveUnits())
        if x.encoding.codes:
            self._signs.setdefault("codebook collapse", ActivePositions())
        for sign in self._signs.values():
            sign.update(x)

    def compute(self) -> dict[str, float]:
        return {reason: sign.compute() for reason, sign in self._signs.items()}
