"""What of a run's frozen start is stored, by its settings and the number of its images; and why no more."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ftae.engine.data.builtin_sources import source_of
from ftae.engine.data.dataset import Dataset
from ftae.engine.data.listing import list_images
from ftae.engine.data.sources import num_held_out
from ftae.engine.frozen_cache.runner import Boundary, Prefix, boundaries, is_frozen_at_start
from ftae.engine.models.autoencoder import Autoencoder
from ftae.specs.finetune.data import AnyData, DataSpec, ImageFolder
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import size


@dataclass(frozen=True)
class Share:
    """What is stored of ``num_images`` images.

    ``reason``: why nothing is; None where nothing was to be.
    """

    num_images: int
    boundary: Boundary | None
    reason: str | None = None

    @property
    def num_bytes(self) -> int:
        # Of each image its rows, and a byte that says whether they are there.
        return 0 if self.boundary is None else self.num_images * (self.boundary.num_bytes + 1)


@dataclass(frozen=True)
class PrefixPlan:
    """Of the training images, and of those that are evaluated."""

    training: Share
    evaluation: Share


def plan_prefixes(autoencoder: Autoencoder, spec: FinetuneSpec, count: Callable[[], tuple[int, int]]) -> PrefixPlan:
    """The deepest boundary that the budget allows, first for training. ``count``: images to train on, to evaluate.

    Nothing is to be stored without a budget, or where the first stage is trained.
    """
    budget, is_frozen = bytes_of(spec), is_frozen_at_start(autoencoder)
    if budget == 0 or not is_frozen or autoencoder.chain is None:
        nothing = Share(0, None, f"the stages of {spec.model.family} are no chain" if budget and is_frozen else None)
        return PrefixPlan(nothing, nothing)
    num_train, num_evaluated = count()
    parameter = next(autoencoder.parameters())
    side = spec.data.resolution
    image = torch.full((1, spec.data.channels, side, side), 0.5, device=parameter.device)
    with precision(spec, parameter.device):
        deepest = boundaries(autoencoder, image, sampled=spec.sample_posterior)
    sets = [spec.data, *([] if spec.data.replay is None else [spec.data.replay])]
    changing = next((reason for reason in map(_changing, sets) if reason), None)
    training = Share(num_train, None, changing) if changing else _deepest(deepest, num_train, budget)
    evaluated = boundaries(autoencoder, image, sampled=False)
    return PrefixPlan(training, _deepest(evaluated, num_evaluated, budget - training.num_bytes))


def build_prefixes(autoencoder: Autoencoder, spec: FinetuneSpec, data: Dataset, shares: int) -> tuple[Prefix, Prefix]:
    """That of training, by one of ``shares`` processes that divide a batch, and that of evaluation."""
    sets = [data] if data.replay is None else [data, data.replay]
    num_train = sum(len(its.train) for its in sets)
    num_evaluated = sum(len(its.val) + len(its.anomalies or ()) for its in sets)
    plan = plan_prefixes(autoencoder, spec, lambda: (num_train, num_evaluated))
    config = getattr(autoencoder.net, "config", {})
    device = next(autoencoder.parameters()).device
    common = [
        spec.model.family,
        sorted((key, repr(value)) for key, value in config.items() if not key.startswith("_")),
        device.type,
        torch.get_num_threads() if device.type == "cpu" else None,
    ]
    budget = bytes_of(spec)
    return (
        Prefix(
            autoencoder,
            plan.training.boundary,
            budget=budget,
            circumstances=[*common, spec.precision, spec.batch_size // shares],
        ),
        Prefix(
            autoencoder,
            plan.evaluation.boundary,
            budget=budget,
            circumstances=[*common, "fp32", spec.batch_size],
        ),
    )


def num_images(spec: AnyData) -> tuple[int, int]:
    """About how many images a run trains on and how many it evaluates; none is decoded."""
    found = _num_files(spec.train) if isinstance(spec, ImageFolder) else len(source_of(spec).names)
    train, val = found, _num_files(spec.val) if isinstance(spec.val, str) else num_held_out(found, spec.val)
    train -= 0 if isinstance(spec.val, str) else val
    replayed = (0, 0) if spec.replay is None else num_images(spec.replay)
    return train + replayed[0], val + replayed[1]


def _num_files(folder: str) -> int:
    return len(list_images(Path(folder).expanduser()).names)


def precision(spec: FinetuneSpec, device: torch.device) -> AbstractContextManager[object]:
    """What the forward passes of training run in."""
    return torch.autocast(device.type, torch.bfloat16) if spec.precision == "bf16" else nullcontext()


def bytes_of(spec: FinetuneSpec) -> int:
    """The budget."""
    return int(spec.frozen_cache_gb * 1e9)


def _changing(data: DataSpec) -> str | None:
    """What makes a training image another one every time."""
    settings = {
        "data.flip": data.flip,
        "data.random_crop_from": data.decoded_side != data.resolution,
        "data.degrade": data.degrade is not None,
    }
    random = " and ".join(name for name, is_on in settings.items() if is_on)
    return f"images change from epoch to epoch ({random})" if random else None


def _deepest(found: list[Boundary], num_images: int, budget: int) -> Share:
    shares = [Share(num_images, boundary) for boundary in reversed(found)]
    least = min((share.num_bytes for share in shares), default=0)
    too_large = f"finetune.frozen_cache_gb leaves {size(budget)}, and the least that could be stored is {size(least)}"
    return next((share for share in shares if share.num_bytes <= budget), Share(num_images, None, too_large))
