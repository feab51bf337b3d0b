"""Metrics through networks that others trained: LPIPS, and distances between features of all images.

Fréchet and kernel distances here are not comparable with published ones: other weights, another resize, and the
validation images against their own reconstructions.
"""

import torch
from torch import Tensor, nn

from ftae.engine.judged import EvalInputs, Subject
from ftae.errors import FtaeError

MIN_IMAGES = 10
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, where there are more images than the size (Binkowski et al. 2018)


class Lpips:
    """The mean over images of ``PerceptualNetwork.lpips``."""

    def __init__(self, subject: Subject) -> None:
        assert subject.companions.perceptual is not None
        self._network = subject.companions.perceptual
        self._sum, self._count = 0.0, 0

    def update(self, x: EvalInputs) -> None:
        self._sum += float(self._network.lpips(x.reconstruction, x.target).double().sum())
        self._count += len(x.target)

    def compute(self) -> float:
        return self._sum / self._count


class _OfFeatures:
    """Collects the features (N, D) of originals and reconstructions."""

    name: str

    def __init__(self, subject: Subject) -> None:
        assert subject.companions.features is not None
        self._network = subject.companions.features
        self._real: list[Tensor] = []
        self._made: list[Tensor] = []

    def update(self, x: EvalInputs) -> None:
        self._real.append(self._network(x.target).cpu())
        self._made.append(self._network(x.reconstruction).cpu())

    def _collected(self) -> tuple[Tensor, Tensor]:
        real, made = torch.cat(self._real), torch.cat(self._made)
        if len(real) < MIN_IMAGES:
            raise FtaeError(f"{self.name} needs at least {MIN_IMAGES} validation images, there are {len(real)}")
        return real, made


class Rfid(_OfFeatures):
    """Fréchet distance between normal distributions of the features (Heusel et al. 2017)."""

    name = "rfid"

    def compute(self) -> float:
        from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds

        real, made = self._collected()
        given = nn.Identity()
        given.num_features = real.shape[1]  # type: ignore[assignment]
        distance = FrechetInceptionDistance(feature=given)
        distance.update(real.double(), real=True)
        distance.update(made.double(), real=False)
        return max(0.0, float(distance.compute()))


class Kid(_OfFeatures):
    """Kernel distance of the features (Binkowski et al. 2018): unbiased, so that it may be below 0.

    Of all images at once, or the mean over seeded subsets where they are many.
    """

    name = "kid"

    def compute(self) -> float:
        from torchmetrics.image.kid import poly_mmd  # takes seconds

        real, made = (features.double() for features in self._collected())
        if len(real) <= SUBSET_SIZE:
            return float(poly_mmd(real, made))
        generator = torch.Generator().manual_seed(0)

        def subset(features: Tensor) -> Tensor:
            return features[torch.randperm(len(features), generator=generator)[:SUBSET_SIZE]]

        return float(torch.stack([poly_mmd(subset(real), subset(made)) for _ in range(SUBSETS)]).mean())
