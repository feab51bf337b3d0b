"""The features by which images are compared as sets: scaled, computed once a batch, kept where images come again."""

import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import ImageIds, val_batches
from ftae.engine.data.source_base import ImageSet
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

SCALE_IMAGES = 2000  # training images that give the scale
MOST_IMAGES = 10_000  # whose features are compared or kept, of each set


class ComparedImages(Protocol):
    """A batch of targets and outputs, (B, C, H, W) in [0, 1], and the identity of the targets."""

    @property
    def target(self) -> Tensor: ...

    @property
    def reconstruction(self) -> Tensor: ...

    @property
    def ids(self) -> tuple[ImageIds, ...]: ...


class FeatureSpace:
    """Features (N, D), fp32, on the CPU, divided by the root mean square of those of training images.

    Kernels on features depend on their scale, which differs by a factor of thousands between networks.
    """

    def __init__(self, network: nn.Module, spec: FinetuneSpec, train: ImageSet, device: torch.device) -> None:
        self._network, self._spec, self._train, self._device = network, spec, train, device
        self._kept: dict[tuple[str, bytes], Tensor] = {}  # of batches of validation images, the same each time
        self._values: dict[tuple[str, int, int], float] = {}  # of floors
        self._last: tuple[weakref.ref[object], tuple[Tensor, ...]] | None = None

    def of_batch(self, x: ComparedImages) -> tuple[Tensor, Tensor]:
        """The features of targets and of what the model made."""
        real, made = self._shared(x, lambda: (self._of_targets(x.target, x.ids), self._of(x.reconstruction)))
        return real, made

    def of_samples(self, images: Tensor) -> Tensor:
        """The features of images (B, C, H, W) in [0, 1]."""
        (features,) = self._shared(images, lambda: (self._of(images),))
        return features

    @cached_property
    def train(self) -> Tensor:
        """The features of the first ``MOST_IMAGES`` training images."""
        rest = self._raw_of_train(slice(SCALE_IMAGES, MOST_IMAGES))
        return torch.cat([self._first_of_train, rest]) / self._scale

    def floor(self, key: tuple[str, int, int], compute: Callable[[], float]) -> float:
        """What ``compute`` gave when first asked for: real images do not change, and their distances take long.

        ``key``: the name of the metric, and the numbers of validation images and of outputs.
        """
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]

    def _shared(self, images: object, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``compute`` gives for ``images``; all metrics, which ask one after the other, share one pass."""
        if self._last is None or self._last[0]() is not images:
            self._last = weakref.ref(images), compute()
        return self._last[1]

    def _of(self, images: Tensor) -> Tensor:
        return self._raw(images) / self._scale

    def _of_targets(self, images: Tensor, ids: tuple[ImageIds, ...]) -> Tensor:
        if len(ids) != 1:
            return self._of(images)
        key = ids[0].key, ids[0].positions.tobytes()
        if key in self._kept:
            return self._kept[key]
        features = self._of(images)
        if sum(map(len, self._kept.values())) < MOST_IMAGES:
            self._kept[key] = features
        return features

    @cached_property
    def _scale(self) -> float:
        scale = float(self._first_of_train.double().square().mean().sqrt())
        return scale if scale != 0.0 else 1.0  # where all features are 0, any scale will do

    @cached_property
    def _first_of_train(self) -> Tensor:
        if not len(self._train):
            raise FtaeError("the training images, which give features their scale, are missing")
        return self._raw_of_train(slice(SCALE_IMAGES))

    def _raw_of_train(self, rows: slice) -> Tensor:
        images, size = self._train.subset(rows), self._spec.batch_size
        batches = val_batches(images, self._spec.data, batch_size=size, device=self._device)
        found = [self._raw(batch.images) for batch in batches]
        return torch.cat(found) if found else self._first_of_train[:0]

    @torch.no_grad()
    def _raw(self, images: Tensor) -> Tensor:
        features: Tensor = self._network(images)
        return features.float().cpu()
