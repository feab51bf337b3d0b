"""Decides how far the frozen start of a model is cached, from its settings and the number of images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ftae.engine.data.dataset import Dataset
from ftae.engine.frozen_cache.feature_cache import CachePoint, FrozenFeatureCache, cache_points, is_frozen_at_start
from ftae.engine.models.autoencoder import Autoencoder
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import size


@dataclass(frozen=True)
class Allocation:
    """What is cached of ``num_images`` images.

    ``point``: None where nothing is cached. ``reason``: why not; None where there is nothing to cache.
    """

    num_images: int
    point: CachePoint | None
    reason: str | None = None

    @property
    def num_bytes(self) -> int:
        # Each image has its features, and a byte that says whether they are there.
        return 0 if self.point is None else self.num_images * (self.point.bytes_per_image + 1)


@dataclass(frozen=True)
class FrozenCachePlan:
    """What is cached of the training images, and of the images that are evaluated."""

    training: Allocation
    evaluation: Allocation


def plan_frozen_caches(
    autoencoder: Autoencoder, spec: FinetuneSpec, num_images: Callable[[], tuple[int, int]]
) -> FrozenCachePlan:
    """The deepest point that the budget allows, first for training.

    Nothing is cached without a budget, or where the first stage is trained.

    Args:
        num_images: counts the images to train on and to evaluate; called only where something may be cached.
    """
    budget, is_frozen = budget_bytes(spec), is_frozen_at_start(autoencoder)
    if budget == 0 or not is_frozen or autoencoder.chain is None:
        nothing = Allocation(
            0, None, f"the stages of {spec.model.family} are no chain" if budget and is_frozen else None
        )
        return FrozenCachePlan(nothing, nothing)
    num_train, num_evaluated = num_images()
    parameter = next(autoencoder.parameters())
    image = torch.full((1, *spec.data.shape), 0.5, device=parameter.device)
    with precision(spec, parameter.device):
        points = cache_points(autoencoder, image, sampled=spec.sample_posterior)
    sets = [spec.data, *([] if spec.data.replay is None else [spec.data.replay])]
    random = next((reason for reason in map(_why_random, sets) if reason), None)
    training = Allocation(num_train, None, random) if random else _deepest(points, num_train, budget)
    points = cache_points(autoencoder, image, sampled=False)
    return FrozenCachePlan(training, _deepest(points, num_evaluated, budget - training.num_bytes))


def build_frozen_caches(
    autoencoder: Autoencoder, spec: FinetuneSpec, data: Dataset, num_processes: int
) -> tuple[FrozenFeatureCache, FrozenFeatureCache]:
    """The cache for training, in one of ``num_processes`` that share each batch, and the cache for evaluation."""
    sets = [data] if data.replay is None else [data, data.replay]
    num_train = sum(len(images.train) for images in sets)
    num_evaluated = sum(len(images.val) + len(images.anomalies or ()) for images in sets)
    plan = plan_frozen_caches(autoencoder, spec, lambda: (num_train, num_evaluated))
    config = getattr(autoencoder.net, "config", {})
    device = next(autoencoder.parameters()).device
    common = [
        spec.model.family,
        sorted((key, repr(value)) for key, value in config.items() if not key.startswith("_")),
        device.type,
        torch.get_num_threads() if device.type == "cpu" else None,
    ]
    budget = budget_bytes(spec)
    return (
        FrozenFeatureCache(
            autoencoder,
            plan.training.point,
            budget=budget,
            conditions=[*common, spec.precision, spec.batch_size // num_processes],
        ),
        FrozenFeatureCache(
            autoencoder,
            plan.evaluation.point,
            budget=budget,
            conditions=[*common, "fp32", spec.batch_size],
        ),
    )


def precision(spec: FinetuneSpec, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the forward passes of training run."""
    return torch.autocast(device.type, torch.bfloat16) if spec.precision == "bf16" else nullcontext()


def budget_bytes(spec: FinetuneSpec) -> int:
    """The space that cached features of all runs of a machine may take."""
    return int(spec.frozen_cache_gb * 1e9)


def _why_random(data: DataSpec) -> str | None:
    """The settings that make a training image different each time it is seen; None where there are none."""
    settings = {
        "data.flip": data.flip,
        "data.random_crop_from": any(data.margins),
        "data.degrade": data.degrade is not None,
    }
    random = " and ".join(name for name, is_on in settings.items() if is_on)
    return f"images change from epoch to epoch ({random})" if random else None


def _deepest(points: list[CachePoint], num_images: int, budget: int) -> Allocation:
    allocations = [Allocation(num_images, point) for point in reversed(points)]
    least = min((allocation.num_bytes for allocation in allocations), default=0)
    too_large = f"finetune.frozen_cache_gb leaves {size(budget)}, the smallest features take {size(least)}"
    fitting = (allocation for allocation in allocations if allocation.num_bytes <= budget)
    return next(fitting, Allocation(num_images, None, too_large))
