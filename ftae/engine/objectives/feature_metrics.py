"""Metrics through networks that others trained: LPIPS, and distances between features of all images.

Fréchet and kernel distances here are not comparable with published ones: other weights, another resize, and the
validation images against their own reconstructions.
"""

import math
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


class Lpips:
    """The mean over images of ``PerceptualNetwork.lpips``."""

    def __init__(self, subject: EvalContext) -> None:
        assert subject.auxiliary.perceptual is not None
        self._network = subject.auxiliary.perceptual
        self._sum, self._count = 0.0, 0

    def update(self, x: EvalBatch) -> None:
        self._sum += float(self._network.lpips(x.reconstruction, x.target).double().sum())
        self._count += len(x.target)

    def compute(self) -> float:
        return self._sum / self._count


class _OfFeatures:
    """Shown the features (B, D) of originals and of their reconstructions."""

    def __init__(self, subject: EvalContext) -> None:
        assert subject.auxiliary.features is not None
        self._network = subject.auxiliary.features

    def _features(self, x: EvalBatch) -> tuple[Tensor, Tensor]:
        return self._network(x.target).cpu(), self._network(x.reconstruction).cpu()


class Rfid(_OfFeatures):
    """Fréchet distance between normal distributions of the features (Heusel et al. 2017).

    Features wait until they are as many as ``ROWS_AT_ONCE``; then only their sums are kept.
    """

    def __init__(self, subject: EvalContext) -> None:
        super().__init__(subject)
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
        if self._waiting:
            self._sum_up()
        if self._count < METRICS["rfid"].least_images or not self._is_finite:
            return math.nan  # eigenvalues of what is not finite end the process by a segmentation fault
        assert self._distance is not None
        return max(0.0, float(self._distance.compute()))


def _frechet(num_features: int) -> "FrechetInceptionDistance":
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds

    given = nn.Identity()
    given.num_features = num_features  # type: ignore[assignment]
    return FrechetInceptionDistance(feature=given)


class Kid(_OfFeatures):
    """Kernel distance of the features (Binkowski et al. 2018): unbiased, so that it may be below 0.

    Of all images at once, or the mean over seeded subsets of the first ``KID_IMAGES`` where they are many.
    """

    def __init__(self, subject: EvalContext) -> None:
        super().__init__(subject)
        self._real, self._made = FirstRows(KID_IMAGES), FirstRows(KID_IMAGES)

    def update(self, x: EvalBatch) -> None:
        for rows, features in zip((self._real, self._made), self._features(x), strict=True):
            rows.update(features)

    def compute(self) -> float:
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
    """Squared maximum mean discrepancy of two (N, D) with the kernel (x . y / D + 1)^3, unbiased."""
    a, b = a.double(), b.double()
    count, size = a.shape
    of_a, of_b, between = ((x @ y.T / size + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    own = of_a.sum() - of_a.diagonal().sum() + of_b.sum() - of_b.diagonal().sum()
    return own / (count * (count - 1)) - 2.0 * between.mean()
