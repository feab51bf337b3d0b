"""Metrics that use pretrained networks: LPIPS, and distances between the features of all images.

Fréchet and kernel distances here are not comparable with published ones: the weights and the resizing differ, and
validation images are compared with their own reconstructions.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext, FirstRows
from ftae.specs.finetune.metrics import METRICS

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance


ROWS_AT_ONCE = 1000
KID_IMAGES = 10_000
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, where there are more images than the size (Binkowski et al. 2018)


def lpips_of(context: EvalContext) -> Callable[[EvalBatch], Tensor]:
    """The function that gives the LPIPS of each image of a batch: (B,)."""
    network = context.auxiliary.perceptual
    assert network is not None
    return lambda x: network.lpips(x.reconstruction, x.target)


class _FeatureMetric:
    """Takes the features (B, D) of originals and of their reconstructions."""

    def __init__(self, context: EvalContext) -> None:
        assert context.auxiliary.features is not None
        self._network = context.auxiliary.features

    def _features(self, x: EvalBatch) -> tuple[Tensor, Tensor]:
        return self._network(x.target).cpu(), self._network(x.reconstruction).cpu()


class Rfid(_FeatureMetric):
    """Fréchet distance between normal distributions of the features (Heusel et al. 2017).

    Features are collected until there are ``ROWS_AT_ONCE`` of them; then only their sums are kept.
    """

    def __init__(self, context: EvalContext) -> None:
        super().__init__(context)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._distance: FrechetInceptionDistance | None = None
        self._count, self._is_finite = 0, True

    def update(self, x: EvalBatch) -> None:
        self._waiting.append(self._features(x))
        self._count += len(x.target)
        if sum(len(real) for real, _ in self._waiting) >= ROWS_AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        real, made = (torch.cat(features).double() for features in zip(*self._waiting, strict=True))
        self._waiting = []
        self._is_finite = self._is_finite and bool(real.isfinite().all() and made.isfinite().all())
        self._distance = self._distance or _frechet(real.shape[1])
        self._distance.update(real, real=True)
        self._distance.update(made, real=False)

    def compute(self) -> float:
        """The distance, at least 0; NaN for too few images or features that are not finite."""
        if self._waiting:
            self._sum_up()
        if self._count < METRICS["rfid"].least_images or not self._is_finite:
            return math.nan  # the eigenvalues of a matrix that is not finite end the process by a segmentation fault
        assert self._distance is not None
        return max(0.0, float(self._distance.compute()))


def _frechet(num_features: int) -> "FrechetInceptionDistance":
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds

    identity = nn.Identity()  # its input holds features already
    identity.num_features = num_features  # type: ignore[assignment]
    return FrechetInceptionDistance(feature=identity)


class Kid(_FeatureMetric):
    """Kernel distance of the features (Binkowski et al. 2018): unbiased, so it may be below 0.

    Over all images at once; with more than ``SUBSET_SIZE``, the mean over seeded subsets of the first ``KID_IMAGES``.
    """

    def __init__(self, context: EvalContext) -> None:
        super().__init__(context)
        self._real, self._made = FirstRows(KID_IMAGES), FirstRows(KID_IMAGES)

    def update(self, x: EvalBatch) -> None:
        for rows, features in zip((self._real, self._made), self._features(x), strict=True):
            rows.update(features)

    def compute(self) -> float:
        """The distance; NaN for too few images."""
        real, made = self._real.rows(), self._made.rows()
        if len(real) < METRICS["kid"].least_images:
            return math.nan
        if len(real) <= SUBSET_SIZE:
            return float(_discrepancy(real, made))
        generator = torch.Generator().manual_seed(0)

        def subset(features: Tensor) -> Tensor:
            return features[torch.randperm(len(features), generator=generator)[:SUBSET_SIZE]]

        return float(torch.stack([_discrepancy(subset(real), subset(made)) for _ in range(SUBSETS)]).mean())


def _discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two (N, D) with the kernel (x . y / D + 1)^3, unbiased."""
    a, b = a.double(), b.double()
    count, size = a.shape
    within_a, within_b, between = ((x @ y.T / size + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = within_a.sum() - within_a.diagonal().sum() + within_b.sum() - within_b.diagonal().sum()
    return within / (count * (count - 1)) - 2.0 * between.mean()
