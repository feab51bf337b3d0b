"""METRICS: how each metric of the specs is computed; and the detector of collapsed models."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext, FirstRows, RunningVariance
from ftae.engine.objectives.feature_metrics import FEATURE_METRICS, FeatureMetric, lpips_of
from ftae.engine.objectives.image_measures import EdgeDistance, ImagePairs, Sharpness, ms_ssim, ssim
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
from ftae.engine.objectives.overfitting import DiscriminatorOverfit
from ftae.engine.objectives.translation_metrics import change, cycle_l1_of, identity_l1_of
from ftae.errors import Reason
from ftae.specs.finetune.run import FinetuneSpec

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


@runtime_checkable
class SampleMetric(Metric, Protocol):
    """A metric that also takes images (B, C, H, W) in [0, 1] that a generator made beside those for a batch."""

    def update_samples(self, images: Tensor) -> None: ...


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


def _mae_of(context: EvalContext) -> Callable[[EvalBatch], Tensor]:
    levels = context.train.levels
    assert levels is not None  # the spec has checked it
    width = levels[1] - levels[0]
    return lambda x: width * _l1(x)


def _l1(x: EvalBatch) -> Tensor:
    return (x.reconstruction - x.target).abs().flatten(1).mean(1)


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
    "l1": _per_image(_l1),
    "mae": lambda context: MeanOverImages(_mae_of(context)),
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
    "d_overfit": DiscriminatorOverfit,
    "codebook_usage": lambda context: CodebookUsage(),
    "perplexity": lambda context: Perplexity(),
    "linear_probe": LinearProbe,
    "mig": lambda context: Mig(),
    "dci": lambda context: Dci(),
    **{name: partial(FeatureMetric, name) for name in FEATURE_METRICS},
    "cycle_l1": lambda context: MeanOverImages(cycle_l1_of(context)),
    "identity_l1": lambda context: MeanOverImages(identity_l1_of(context)),
    "change": _per_image(change),
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

    @property
    def takes_samples(self) -> bool:
        """Whether ``update_samples`` changes any metric."""
        return any(isinstance(metric, SampleMetric) for metric in self._metrics.values())

    def update_samples(self, images: Tensor) -> None:
        """Take further images (B, C, H, W) in [0, 1] of a generator."""
        self._is_finite = self._is_finite and bool(images.isfinite().all())
        if not self._is_finite:
            return
        for metric in self._metrics.values():
            if isinstance(metric, SampleMetric):
                metric.update_samples(images)

    def compute(self) -> dict[str, float]:
        if not self._is_finite:
            return dict.fromkeys(self._metrics, math.nan)
        return {name: metric.compute() for name, metric in self._metrics.items()}


def _is_finite(x: EvalBatch) -> bool:
    outputs = [x.reconstruction, x.encoding.mode, *([] if x.logits is None else [x.logits])]
    return all(bool(tensor.abs().amax() < LARGEST) for tensor in outputs)


ACTIVE_SHARE = 0.01
POSITION_IMAGES = 2000  # most images on which the codes of positions are compared


class CollapseDetector:
    """The indicators of a run, each by the reason for which the run fails once it falls to 0.

    Active units where the model has a posterior, active positions where it has codes, explained variance where it
    trains against a discriminator and has an image to compare each output with. Of a generator it is the variance of
    pixels, which ``mode_collapse`` judges together with its metrics.
    """

    def __init__(self, spec: FinetuneSpec) -> None:
        self._indicators: dict[str, Metric] = {}
        if spec.losses.adversarial > 0.0 and not spec.model.takes_noise:
            self._indicators[Reason.BLOW_UP] = ExplainedVariance()
        if spec.model.takes_noise:
            self._indicators[Reason.MODE_COLLAPSE] = PixelVariance()

    def update(self, x: EvalBatch) -> None:
        """Take the next batch. What it holds decides which indicators a model has beside those of its task."""
        if x.encoding.posterior is not None:
            self._indicators.setdefault("posterior collapse", ActiveUnits())
        if x.encoding.codes:
            self._indicators.setdefault("codebook collapse", ActivePositions())
        if x.cycled is not None:  # the target is no measure of its output, but it must find its input again
            x = replace(x, target=x.given, reconstruction=x.cycled)
        for indicator in self._indicators.values():
            indicator.update(x)

    def compute(self) -> dict[str, float]:
        return {reason: indicator.compute() for reason, indicator in self._indicators.items()}


class ActivePositions:
    """Number of positions where more than 1 % of the first images have another code than the commonest one there.

    With several codebooks, the least of their numbers. At 0 the latents hardly tell one image from another. Usage of
    the codebook does not show that: at the borders, where convolutions see padding, a collapsed model still uses
    another code than inside.
    """

    def __init__(self) -> None:
        self._levels: list[FirstRows] = []

    def update(self, x: EvalBatch) -> None:
        self._levels = self._levels or [FirstRows(POSITION_IMAGES) for _ in x.encoding.codes]
        for level, codes in zip(self._levels, x.encoding.codes, strict=True):
            level.update(codes.indices.int())

    def compute(self) -> float:
        levels = (level.rows() for level in self._levels)
        others = [level.ne(level.mode(dim=0).values).double().mean(0) for level in levels]
        return float(min(share.gt(ACTIVE_SHARE).sum() for share in others))


class PixelVariance:
    """The variance of outputs over that of targets, each over all images, the mean over pixels; 1 is as diverse."""

    def __init__(self) -> None:
        self._made, self._real = RunningVariance(), RunningVariance()

    def update(self, x: ImagePairs) -> None:
        self._made.update(x.reconstruction)
        self._real.update(x.target)

    def compute(self) -> float:
        made, real = (float(images.variance().mean()) for images in (self._made, self._real))
        return made / real if real > 0.0 else 1.0


class ExplainedVariance:
    """Share of the variance of pixels within images that the reconstructions explain.

    0 where reconstructions are no better than one colour an image, its mean.
    """

    def __init__(self) -> None:
        self._error = self._variance = 0.0

    def update(self, x: ImagePairs) -> None:
        flat = x.target.mean((2, 3), keepdim=True)
        self._error += float((x.reconstruction - x.target).double().square().sum())
        self._variance += float((flat - x.target).double().square().sum())

    def compute(self) -> float:
        return max(0.0, 1.0 - self._error / self._variance) if self._variance > 0.0 else 0.0
