"""Metrics that use frozen networks: LPIPS, and what the features of all images say of the model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext, FirstRows
from ftae.engine.objectives.feature_space import MOST_IMAGES, FeatureSpace
from ftae.engine.objectives.sample_metrics import (
    frechet_distance,
    kernel_distance,
    relative_novelty,
    relative_spread,
    share_inside,
)
from ftae.specs.finetune.metrics import METRICS


def lpips_of(context: EvalContext) -> Callable[[EvalBatch], Tensor]:
    """The function that gives the LPIPS of each image of a batch: (B,)."""
    network = context.auxiliary.perceptual
    assert network is not None
    return lambda x: network.lpips(x.reconstruction, x.target)


@dataclass(frozen=True)
class FeatureSets:
    """The features (N, D) of validation images, of what the model made, and of training images."""

    real: Tensor
    made: Tensor
    space: FeatureSpace

    @property
    def train(self) -> Tensor:
        """Computed when first asked for."""
        return self.space.train


_METRICS: dict[str, Callable[[FeatureSets], float]] = {
    "rfid": lambda x: frechet_distance(x.real, x.made),
    "fid": lambda x: frechet_distance(x.real, x.made),
    "kid": lambda x: kernel_distance(x.real, x.made),
    "precision": lambda x: share_inside(x.made, x.real),
    "recall": lambda x: share_inside(x.real, x.made),
    "diversity": lambda x: relative_spread(x.made, x.real),
    "memorised": lambda x: relative_novelty(x.made, x.real, x.train),
}

# Training images take the place of one of the sets, as many as are in it: most metrics depend on the numbers.
_BESIDE: dict[str, Callable[[FeatureSets], FeatureSets]] = {
    "train": lambda x: replace(x, real=x.train[: len(x.real)]),
    "floor": lambda x: replace(x, made=x.train[: len(x.made)]),
}


def _beside(name: str, end: str) -> Callable[[FeatureSets], float]:
    return lambda x: _METRICS[name](_BESIDE[end](x))


FEATURE_METRICS: dict[str, Callable[[FeatureSets], float]] = (
    _METRICS
    | {f"{name}_{end}": _beside(name, end) for name in _METRICS for end in METRICS[name].beside}
    # kid does not depend on the numbers: all training images make it more exact.
    | {
        "kid_train": lambda x: kernel_distance(x.train, x.made),
        "kid_floor": lambda x: kernel_distance(x.train, x.real),
    }
)


class FeatureMetric:
    """A metric of the features of the first ``MOST_IMAGES`` images."""

    def __init__(self, name: str, context: EvalContext) -> None:
        self._name, self._value, self._least = name, FEATURE_METRICS[name], METRICS[name].least_images
        self._space = context.feature_space
        self._real, self._made = FirstRows(MOST_IMAGES), FirstRows(MOST_IMAGES)

    def update(self, x: EvalBatch) -> None:
        if self._real.is_full and self._made.is_full:
            return
        real, made = self._space.of_batch(x)
        self._real.update(real)
        self._made.update(made)

    def update_samples(self, images: Tensor) -> None:
        """Take further images of a generator."""
        if not self._made.is_full:
            self._made.update(self._space.of_samples(images))

    def compute(self) -> float:
        """The value; NaN for too few images or features that are not finite."""
        real, made = self._real.rows(), self._made.rows()
        if len(real) < self._least or not (real.isfinite().all() and made.isfinite().all()):
            return math.nan  # the eigenvalues of a matrix that is not finite end the process by a segmentation fault
        sets = FeatureSets(real, made, self._space)
        if not self._name.endswith("floor"):
            return self._value(sets)
        return self._space.floor((self._name, len(real), len(made)), lambda: self._value(sets))
