"""Auxiliary networks: frozen networks beside the model that losses and metrics compare it with."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Autoencoder, pooled
from ftae.engine.models.families import FAMILIES, build_autoencoder, check_shapes
from ftae.engine.models.pretrained.model_folder import saved_family
from ftae.engine.models.pretrained.weights import best_fit, read_state
from ftae.engine.process import keep_random_state
from ftae.errors import FtaeError
from ftae.specs.finetune import needs
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.networks import FeatureNet, NetworkSpec, PerceptualNet
from ftae.specs.finetune.run import FinetuneSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; those of LPIPS are the same on [-1, 1]
EPSILON = 1e-8  # inside the root: outside, the gradient at features that are all 0 would be NaN

# Each net: its name in torchvision, the layers whose outputs are compared (the ReLUs that LPIPS uses), and the file
# with its heads of LPIPS.
TRUNKS = {
    "vgg16": ("vgg16", (3, 8, 15, 22, 29), "vgg.pth"),
    "alexnet": ("alexnet", (1, 4, 7, 9, 11), "alex.pth"),
    "squeezenet": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), "squeeze.pth"),
}

VGG_LAYERS = 4  # relu1_2, relu2_2, relu3_3, relu4_3, as in Johnson et al. (2016)
_SAVED_MODEL: TypeAdapter[AnyModel] = TypeAdapter(AnyModel)
SIDES = {"inception_v3": 299, "resnet18": 224, "resnet50": 224}  # pixels that each was trained at


class Frozen(nn.Module):
    """Always in eval mode, never trained."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def freeze(self) -> Self:
        return self.requires_grad_(False).train()


class PerceptualNetwork(Frozen):
    """Distances between the features of two images.

    Raises:
        FtaeError: the weights cannot be found or belong to another network.
    """

    def __init__(self, spec: PerceptualNet) -> None:
        super().__init__()
        name, self._layers, heads = TRUNKS[spec.net]
        features = _untrained(name).features
        state = {key: value for key, value in _state(spec, "perceptual").items() if key.startswith("features.")}
        _fill(features, {key.removeprefix("features."): value for key, value in state.items()}, spec, "perceptual")
        self.trunk = features[: self._layers[-1] + 1]
        for layer in self.trunk:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # in place, it would change the outputs that are kept
        # torchmetrics ships the heads that Zhang et al. published.
        path = _folder_of("torchmetrics") / "functional" / "image" / "lpips_models" / heads
        lpips = torch.load(path, map_location="cpu", weights_only=True)
        for i in range(len(self._layers)):
            self.register_buffer(f"head{i}", lpips[f"lin{i}.model.1.weight"])
        self.freeze()

    def lpips(self, images: Tensor, target: Tensor) -> Tensor:
        """LPIPS 0.1 (Zhang et al. 2018) of each pair of (B, C, H, W): (B,). No gradient to ``target``."""
        total = torch.zeros(len(images), device=images.device)
        for i, (a, b) in enumerate(self._pairs(images, target, len(self._layers))):
            squares = (_unit_length(a) - _unit_length(b)).square()
            total = total + F.conv2d(squares, self.get_buffer(f"head{i}")).mean(dim=(1, 2, 3))
        return total

    def vgg(self, images: Tensor, target: Tensor) -> Tensor:
        """Feature reconstruction (Johnson et al. 2016) of each pair: (B,). No gradient to ``target``.

        The mean over layers of the mean over elements: the size of a layer does not matter.
        """
        pairs = self._pairs(images, target, VGG_LAYERS)
        return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in pairs]).mean(0)

    def _pairs(self, images: Tensor, target: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            wanted = self._features(target, count)
        return list(zip(self._features(images, count), wanted, strict=True))

    def _features(self, images: Tensor, count: int) -> list[Tensor]:
        layers, x, found = self._layers[:count], _normalised(images), []
        for i, layer in enumerate(self.trunk[: layers[-1] + 1]):
            x = layer(x)
            if i in layers:
                found.append(x)
        return found


class EncoderFeatures(Frozen):
    """(B, D) features of (B, C, H, W) in [0, 1]: the pooled latents of an autoencoder that ftae has trained.

    Raises:
        FtaeError: the folder holds no such autoencoder, or it does not take the images of ``run``.
    """

    def __init__(self, spec: FeatureNet, run: FinetuneSpec) -> None:
        super().__init__()
        try:
            if missing := spec.missing():
                raise FtaeError(missing)
            family = saved_family(spec.weights)
            if family not in FAMILIES:
                raise FtaeError(f"{spec.weights} holds no model of a family of ftae")
            model = _SAVED_MODEL.validate_python({"family": family, "pretrained": spec.weights})
            if model.needs_labels or not model.has_latents:
                raise FtaeError(f"{spec.weights} holds a {model.family}: name an autoencoder that takes images alone")
            self.autoencoder = build_autoencoder(model, run.data, None)
            check_shapes(self.autoencoder.eval(), run, None)
        except FtaeError as error:
            raise FtaeError(f"features.weights: {error}") from error
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.autoencoder.encode(self.autoencoder.to_range(images)).mode)


class FeatureNetwork(Frozen):
    """(B, D) features of (B, C, H, W): the network without its classifier, on images of the side it was trained at.

    Raises:
        FtaeError: the weights cannot be found or belong to another network.
    """

    def __init__(self, spec: FeatureNet) -> None:
        super().__init__()
        # torchvision's Inception was trained on images in another normalisation, to which it converts them itself.
        options = {"transform_input": True, "init_weights": False} if spec.net == "inception_v3" else {}
        self.net = _untrained(spec.net, **options)
        self.net.fc = nn.Identity()
        state = {key: value for key, value in _state(spec, "features").items() if not key.startswith("fc.")}
        _fill(self.net, state, spec, "features")
        self.side = SIDES[spec.net]
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        features: Tensor = self.net(_normalised(resized))
        return features


def check_weights(spec: FinetuneSpec) -> None:
    """Load every network that the spec names, used or not: a search may use it later. Raises as the networks do."""
    if spec.perceptual is not None:
        PerceptualNetwork(spec.perceptual)
    if spec.features is not None:
        feature_network(spec.features, spec)


def feature_network(spec: FeatureNet, run: FinetuneSpec) -> nn.Module:
    """The network that ``spec`` names, for the images of ``run``. Raises as the networks do."""
    return EncoderFeatures(spec, run) if spec.net == "encoder" else FeatureNetwork(spec)


def _untrained(name: str, **options: bool) -> Any:
    """The network of torchvision with that name, on the meta device."""
    import torchvision.models  # here, since it takes seconds

    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None, **options)


def _folder_of(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _normalised(images: Tensor) -> Tensor:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std  # a grey image becomes three equal channels


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def _state(spec: NetworkSpec, section: str) -> dict[str, Tensor]:
    if missing := spec.missing():
        raise FtaeError(f"{section}.weights: {missing}")
    content = read_state(Path(spec.weights).expanduser(), f"{section}.weights")
    return {str(key): value for key, value in content.items()}


def _fill(net: nn.Module, state: dict[str, Tensor], spec: NetworkSpec, section: str) -> None:
    """Load weights, in fp32, into a network on the meta device."""
    fit = best_fit(state, net.state_dict())
    if not fit.is_exact:
        raise FtaeError(f"{section}.weights: {spec.weights} does not fit {spec.net}: {fit.faults()}")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in fit.state.items()}
    net.load_state_dict(floats, assign=True)


@dataclass(frozen=True)
class AuxiliaryNetworks:
    """The auxiliary networks of a run; None where nothing in the run needs one.

    ``reference``: the untuned model. ``perceptual``, ``features``: pretrained networks; the latter makes features
    (B, D) of images (B, C, H, W) in [0, 1]. These three are frozen and in eval mode. ``adversary``: reconstructions
    (B, C, H, W), inputs of the model and real images -> its adversarial loss, a scalar; the discriminator behind it is
    trained by a loss of its own.
    """

    reference: Autoencoder | None = None
    adversary: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    perceptual: PerceptualNetwork | None = None
    features: nn.Module | None = None


NetworkSource = Callable[[str, Callable[[], Any]], Any]  # name of a network, its builder -> a network, new or reused


def build_new(name: str, build: Callable[[], Any]) -> Any:
    """Build a new network; nothing is shared."""
    return build()


def build_auxiliary_networks(
    spec: FinetuneSpec, num_classes: int | None, device: torch.device, take: NetworkSource = build_new
) -> AuxiliaryNetworks:
    """The networks that the terms and metrics of ``spec`` need. Draws nothing from the random generators.

    Raises:
        FtaeError: the weights of a network cannot be found or do not fit.
    """
    needed = {need for term in spec.losses.weights() for need in Losses.TERMS[term]}
    needed |= {need for name in spec.metrics for need in METRICS[name].needs}
    builders: dict[str, Callable[[], nn.Module]] = {}
    if needs.reference in needed:
        builders["reference"] = lambda: build_autoencoder(spec.model, spec.data, num_classes)
    if needs.perceptual in needed and (perceptual := spec.perceptual) is not None:
        builders["perceptual"] = lambda: PerceptualNetwork(perceptual)
    if needs.features in needed and (features := spec.features) is not None:
        builders["features"] = lambda: feature_network(features, spec)
    with keep_random_state():
        nets: dict[str, Any] = {name: take(name, _frozen(build, device)) for name, build in builders.items()}
    return AuxiliaryNetworks(**nets)


def _frozen(build: Callable[[], nn.Module], device: torch.device) -> Callable[[], nn.Module]:
    return lambda: build().to(device).eval().requires_grad_(False)
