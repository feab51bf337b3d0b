"""What some loss terms and metrics compare a model with: networks beside it that are never saved with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder
from ftae.engine.families import build_autoencoder
from ftae.engine.random_state import keep_random_state
from ftae.engine.vision_networks import FeatureNetwork, PerceptualNetwork
from ftae.specs import needs
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.losses import Losses
from ftae.specs.metrics import METRICS


@dataclass(frozen=True)
class Companions:
    """Frozen networks, in eval mode; None where nothing in the run asks for one.

    ``reference``: the model as it was given. ``adversary``: not frozen, but trained by another loss: what the
    model loses, a scalar, by its reconstructions (B, C, H, W) not being taken for real images.
    ``perceptual``, ``features``: networks that others trained.
    """

    reference: Autoencoder | None = None
    adversary: Callable[[Tensor], Tensor] | None = None
    perceptual: PerceptualNetwork | None = None
    features: FeatureNetwork | None = None


Take = Callable[[str, Callable[[], Any]], Any]  # the name of a network, how to build it -> it, or one just like it


def afresh(name: str, build: Callable[[], Any]) -> Any:
    """A network that nobody else has."""
    return build()


def build_companions(
    spec: FinetuneSpec, num_classes: int | None, device: torch.device, take: Take = afresh
) -> Companions:
    """Those that the terms and metrics of ``spec`` need. Draws nothing from the random generators.

    Raises:
        FtaeError: the weights of one cannot be found or do not fit.
    """
    needed = {need for term in spec.losses.weights() for need in Losses.TERMS[term]}
    needed |= {need for name in spec.metrics for need in METRICS[name].needs}
    builders: dict[str, Callable[[], nn.Module]] = {}
    if needs.reference in needed:
        builders["reference"] = lambda: build_autoencoder(spec.model, spec.data, num_classes)
    if needs.perceptual in needed and (perceptual := spec.perceptual) is not None:
        builders["perceptual"] = lambda: PerceptualNetwork(perceptual)
    if needs.features in needed and (features := spec.features) is not None:
        builders["features"] = lambda: FeatureNetwork(features)
    with keep_random_state():
        nets: dict[str, Any] = {name: take(name, _frozen(build, device)) for name, build in builders.items()}
    return Companions(**nets)


def _frozen(build: Callable[[], nn.Module], device: torch.device) -> Callable[[], nn.Module]:
    return lambda: build().to(device).eval().requires_grad_(False)
