"""What reconstructions have in common with their targets over a whole set, other than their pixels."""

import math
from typing import Protocol

import torch
from torch import Tensor


class Pairs(Protocol):
    """Images and reconstructions of them, both fp32 (B, C, H, W) in [0, 1]."""

    @property
    def target(self) -> Tensor: ...

    @property
    def reconstruction(self) -> Tensor: ...


def gradient_magnitudes(images: Tensor) -> Tensor:
    """How steep each image is at each place: (B, C * (H-1) * (W-1)), the norm of the differences of neighbours."""
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    return torch.hypot(down, right).flatten(1)


class Sharpness:
    """Mean gradient magnitude of the reconstructions over that of the targets."""

    def __init__(self) -> None:
        self._theirs = self._wanted = 0.0

    def update(self, x: Pairs) -> None:
        self._theirs += float(gradient_magnitudes(x.reconstruction).double().sum())
        self._wanted += float(gradient_magnitudes(x.target).double().sum())

    def compute(self) -> float:
        return _share(self._theirs, self._wanted, of_nothing=1.0)


class EdgeDistance:
    """How differently steep reconstructions are: the distance of each image's gradient magnitudes from its target's.

    Between the two distributions (1-Wasserstein: the mean difference once both are sorted), so that it does not
    matter where in the image an edge is; over the mean magnitude of the targets.
    """

    def __init__(self) -> None:
        self._distance = self._wanted = 0.0

    def update(self, x: Pairs) -> None:
        theirs, wanted = (gradient_magnitudes(images).sort(1).values for images in (x.reconstruction, x.target))
        self._distance += float((theirs - wanted).abs().double().sum())
        self._wanted += float(wanted.double().sum())

    def compute(self) -> float:
        return _share(self._distance, self._wanted, of_nothing=0.0)


class ExplainedVariance:
    """The share of the pixels' variance within images that reconstructions explain.

    0 where they are no better than images of one colour each, the mean of its own.
    """

    def __init__(self) -> None:
        self._error = self._variance = 0.0

    def update(self, x: Pairs) -> None:
        flat = x.target.mean((2, 3), keepdim=True)
        self._error += float((x.reconstruction - x.target).double().square().sum())
        self._variance += float((flat - x.target).double().square().sum())

    def compute(self) -> float:
        return max(0.0, 1.0 - self._error / self._variance) if self._variance > 0.0 else 0.0


def _share(found: float, wanted: float, *, of_nothing: float) -> float:
    """Of images without any edge there is no share, but if there is none in their reconstructions either."""
    if wanted > 0.0:
        return found / wanted
    return math.inf if found > 0.0 else of_nothing
