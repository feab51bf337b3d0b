"""The inputs of metrics, and running sums that metrics keep."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ftae.engine.data.batches import ImageIds
from ftae.engine.data.source_base import ImageSet
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.autoencoder import Autoencoder, Encoding
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.feature_space import FeatureSpace
from ftae.specs.finetune.run import FinetuneSpec


class RunningVariance:
    """The variance over all rows so far, from sums in float64.

    The sums are of distances from the first row: constant rows have a variance of exactly 0.
    """

    def __init__(self) -> None:
        self._count = 0

    def update(self, rows: Tensor) -> None:
        """Rows (B, ...)."""
        rows = rows.double()
        if self._count == 0:
            self._first = rows[0].clone()
            self._sum, self._squares = torch.zeros_like(self._first), torch.zeros_like(self._first)
        distance = rows - self._first
        self._sum += distance.sum(0)
        self._squares += distance.square().sum(0)
        self._count += len(rows)

    def variance(self) -> Tensor:
        """The population variance of each element (...)."""
        return (self._squares / self._count - (self._sum / self._count).square()).clamp_min(0.0)


class FirstRows:
    """The first ``most`` rows, on the CPU."""

    def __init__(self, most: int) -> None:
        self._parts: list[Tensor] = []
        self._room = most

    def update(self, rows: Tensor) -> None:
        """Rows (B, ...)."""
        if not self.is_full:
            self._parts.append(rows[: self._room].cpu())
            self._room -= len(self._parts[-1])

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    def rows(self) -> Tensor:
        return torch.cat(self._parts)


@dataclass(frozen=True)
class EvalBatch:
    """One validation batch: fp32 (B, C, H, W) in [0, 1], reconstructions clamped.

    ``given``: the images that the model encoded; they differ from ``target`` where the data degrades them.
    ``factors``: int64 (B, F), the factors of variation behind the images; None where they are unknown. ``ids``: the
    identity of the targets, as in ``Batch``. ``cycled``: what a model that translates both ways makes of its
    own output, in the form of ``given``; None for other models.
    """

    target: Tensor
    given: Tensor
    reconstruction: Tensor
    encoding: Encoding
    logits: Tensor | None
    labels: Tensor | None
    factors: Tensor | None = None
    ids: tuple[ImageIds, ...] = ()
    cycled: Tensor | None = None


def no_judge(images: Tensor) -> Tensor | None:
    """Where there is no discriminator."""
    return None


@dataclass(frozen=True)
class EvalContext:
    """The model under evaluation, and what some metrics compare it with.

    ``anomalies``: images to tell from the normal ones. ``frozen_cache``: runs the model on their batches; None
    where no features are cached. ``judge``: images (B, C, H, W) in [0, 1] -> how real a discriminator finds each, (B,);
    None where there is none, or none that has learned yet.
    """

    autoencoder: Autoencoder
    spec: FinetuneSpec
    auxiliary: AuxiliaryNetworks
    train: ImageSet
    device: torch.device
    anomalies: ImageSet | None = None
    frozen_cache: FrozenFeatureCache | None = None
    judge: Callable[[Tensor], Tensor | None] = no_judge

    @cached_property
    def feature_space(self) -> FeatureSpace:
        """What makes features of images, for the metrics that need ``features``."""
        assert self.auxiliary.features is not None
        return FeatureSpace(self.auxiliary.features, self.spec, self.train, self.device)
