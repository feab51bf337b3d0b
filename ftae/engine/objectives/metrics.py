"""METRICS: how well a model does. Fixed, unweighted, on the mode of the posterior, in fp32.

A metric is one entry here and one in the table of ``ftae.specs.finetune.metrics``.

Per-image metrics are computed for each image on reconstructions clamped to [0, 1] and averaged over
the validation images:

    mse, l1       mean over pixels and channels
    psnr          10 * log10(1 / mse) in dB, mse floored at 1e-10; averaged over images, not pixels
    input_psnr    psnr of the degraded input: the score of a model that returns its input unchanged
    ssim          structural similarity (Wang et al. 2004), 11x11 Gaussian window, borders reflected
    ms_ssim       the same over five scales (Wang et al. 2003)
    kl            sum over latent elements of the KL from the prior, in nats an image
    accuracy      1 where the largest logit of the head is the label, else 0
    lpips         perceptual distance (Zhang et al. 2018)

Over the whole validation set:

    active_units  latent units (channels, for spatial latents) whose posterior mean varies over the
                  images by more than 0.01 (Burda et al. 2015); relative to the prior if it is learned
    auroc         area under the ROC curve with the mse of an image as its anomaly score: the share of pairs of
                  an anomaly and a normal image in which the anomaly has the larger error, ties counting half
                  (Hanley & McNeil 1982)
    latent_drift  mean squared distance of the latents from those of the untuned model, over the variance of
                  those: 0 where nothing moved, 1 for latents that all equal their mean
    codebook_usage  share of the codes that are used at all; the least of several codebooks
    perplexity    exp of the entropy of the code frequencies (van den Oord et al. 2017): how many codes, used
                  equally often, would have that entropy; the least of several codebooks
    sharpness     mean gradient magnitude of the reconstructions over that of the targets: below 1 they are
                  blurred, above 1 they are noisy
    edge_distance distance between the distributions of gradient magnitudes of each reconstruction and its
                  target (1-Wasserstein), over the mean of the latter: 0 is as sharp as the target, 1 is flat
    linear_probe  accuracy of a linear classifier on the latents that is fitted on training images
    mig, dci      whether each factor of variation has a latent to itself, and each latent one factor
                  (latent_metrics.py says how all three are computed)
    rfid, kid     Fréchet and kernel distance between features of reconstructions and of originals; not
                  comparable with published values (feature_metrics.py says why)

Memory does not grow with the validation set, except for 4 bytes an image for auroc. Metrics keep sums (active_units
two numbers a latent, rfid two matrices of features by features), counts (one a code), or the first images: linear_probe
2,000 training images; mig, dci and kid 10,000 images.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.feature_metrics import Kid, Rfid, lpips_of
from ftae.engine.objectives.image_measures import EdgeDistance, Sharpness, ms_ssim, ssim
from ftae.engine.objectives.latent_metrics import (
    ActiveUnits,
    CodebookUsage,
    Dci,
    LatentDrift,
    LinearProbe,
    Mig,
    Perplexity,
    posterior_of,
)

MSE_FLOOR = 1e-10

LARGEST = 1e30  # beyond this, sums over fp32 may overflow


class Metric(Protocol):
    """One metric in one evaluation: ``update`` takes every batch, then ``compute`` gives the value."""

    def update(self, x: EvalBatch) -> None: ...

    def compute(self) -> float: ...


@runtime_checkable
class AnomalyMetric(Metric, Protocol):
    """A metric that also takes the anomalies, which all other metrics leave out."""

    def update_anomalies(self, x: EvalBatch) -> None: ...


class MeanOverImages:
    """The mean of ``values``, which gives one number an image: ``EvalBatch`` -> (B,)."""

    def __init__(self, values: Callable[[EvalBatch], Tensor]) -> None:
        self.values = values
        self._sum, self._count = 0.0, 0

    def update(self, x: EvalBatch) -> None:
        self._sum += float(self.values(x).double().sum())
        self._count += len(x.target)

    def compute(self) -> float:
        return self._sum / self._count


class Auroc:
    """Area under the ROC curve with the mse of an image as its anomaly score."""

    def __init__(self) -> None:
        self._normal: list[Tensor] = []
        self._anomalous: list[Tensor] = []

    def update(self, x: EvalBatch) -> None:
        self._normal.append(mse(x).cpu())

    def update_anomalies(self, x: EvalBatch) -> None:
        self._anomalous.append(mse(x).cpu())

    def compute(self) -> float:
        normal, anomalous = torch.cat(self._normal).sort().values, torch.cat(self._anomalous)
        smaller, smaller_or_equal = (torch.searchsorted(normal, anomalous, right=right) for right in (False, True))
        return float((smaller + smaller_or_equal).double().mean() / (2 * len(normal)))


def mse(x: EvalBatch) -> Tensor:
    """The mean squared error of each image: (B,)."""
    return (x.reconstruction - x.target).square().flatten(1).mean(1)


def psnr(x: EvalBatch) -> Tensor:
    """The peak signal-to-noise ratio of each image in dB: (B,)."""
    return _decibels(mse(x))


def _input_psnr(x: EvalBatch) -> Tensor:
    return _decibels((x.given - x.target).square().flatten(1).mean(1))


def _decibels(mse: Tensor) -> Tensor:
    return -10.0 * mse.clamp_min(MSE_FLOOR).log10()


def _accuracy(x: EvalBatch) -> Tensor:
    assert x.logits is not None
    assert x.labels is not None
    return (x.logits.argmax(1) == x.labels).float()


def _per_image(values: Callable[[EvalBatch], Tensor]) -> Callable[[EvalContext], Metric]:
    return lambda context: MeanOverImages(values)


METRICS: dict[str, Callable[[EvalContext], Metric]] = {
    "mse": _per_image(mse),
    "l1": _per_image(lambda x: (x.reconstruction - x.target).abs().flatten(1).mean(1)),
    "psnr": _per_image(psnr),
    "input_psnr": _per_image(_input_psnr),
    "ssim": _per_image(lambda x: ssim(x.reconstruction, x.target)),
    "ms_ssim": _per_image(lambda x: ms_ssim(x.reconstruction, x.target)),
    "kl": _per_image(lambda x: posterior_of(x).kl().flatten(1).sum(1)),
    "accuracy": _per_image(_accuracy),
    "lpips": lambda context: MeanOverImages(lpips_of(context)),
    "active_units": lambda context: ActiveUnits(),
    "latent_drift": LatentDrift,
    "auroc": lambda context: Auroc(),
    "sharpness": lambda context: Sharpness(),
    "edge_distance": lambda context: EdgeDistance(),
    "codebook_usage": lambda context: CodebookUsage(),
    "perplexity": lambda context: Perplexity(),
    "linear_probe": LinearProbe,
    "mig": lambda context: Mig(),
    "dci": lambda context: Dci(),
    "rfid": Rfid,
    "kid": Kid,
}


class Evaluation:
    """Accumulates the metrics of a run over the batches of one evaluation.

    Once the model gives anything that is not finite, every metric is NaN: without this, some metrics would raise and
    others stay finite.
    """

    def __init__(self, context: EvalContext) -> None:
        self._metrics = {name: METRICS[name](context) for name in context.spec.metrics}
        self._is_finite = True

    def update(self, x: EvalBatch) -> None:
        self._is_finite = self._is_finite and _is_finite(x)
        if not self._is_finite:
            return
        for metric in self._metrics.values():
            metric.update(x)

    def update_anomalies(self, x: EvalBatch) -> None:
        self._is_finite = self._is_finite and _is_finite(x)
        if not self._is_finite:
            return
        for metric in self._metrics.values():
            if isinstance(metric, AnomalyMetric):
                metric.update_anomalies(x)

    def compute(self) -> dict[str, float]:
        if not self._is_finite:
            return dict.fromkeys(self._metrics, math.nan)
        return {name: metric.compute() for name, metric in self._metrics.items()}


def _is_finite(x: EvalBatch) -> bool:
    outputs = [x.reconstruction, x.encoding.mode, *([] if x.logits is None else [x.logits])]
    return all(bool(tensor.abs().amax() < LARGEST) for tensor in outputs)
