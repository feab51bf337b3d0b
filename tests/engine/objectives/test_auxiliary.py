"""Auxiliary networks: the published distances, frozen, from local files alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from builders import run_spec
from pydantic import ValidationError
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd
from vision_weights import NAMES, random_weights

from ftae.engine.data.source_base import ImageSet
from ftae.engine.models.autoencoder import Encoding
from ftae.engine.objectives.auxiliary import (
    SIDES,
    AuxiliaryNetworks,
    FeatureNetwork,
    PerceptualNetwork,
    build_auxiliary_networks,
)
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.feature_metrics import FEATURE_METRICS
from ftae.engine.objectives.metrics import METRICS
from ftae.engine.sizing import summarize
from ftae.engine.training.evaluator import check_metrics
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.networks import FeatureNet, PerceptualNet
from ftae.specs.finetune.run import FinetuneSpec

NETS = {"vgg16": "vgg", "alexnet": "alex", "squeezenet": "squeeze"}


def perceptual(net: Any) -> PerceptualNetwork:
    return PerceptualNetwork(PerceptualNet(net=net, weights=random_weights(net)))


def images(count: int = 3, side: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def noisy(target: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(9))
    return (target + sigma * noise).clamp(0, 1)


@pytest.mark.parametrize("net", NETS)
def test_lpips_equals_that_of_torchmetrics_with_the_same_weights(net: Any) -> None:
    theirs = _LPIPS(net=NETS[net], pnet_rand=True)
    state = torch.load(random_weights(net), weights_only=True)
    for name, parameter in theirs.net.named_parameters():
        parts = name.split(".")  # slice1.0.weight, slices.0.0.weight
        at = parts.index("slices") + 2 if "slices" in parts else 1
        parameter.data.copy_(state[".".join(["features", *parts[at:]])])
    a, b = images(), images(seed=1)
    expected = theirs(a, b, normalize=True).flatten()
    assert torch.allclose(perceptual(net).lpips(a, b), expected, rtol=1e-4)


def test_vgg_is_the_mean_over_four_layers() -> None:
    with torch.device("meta"):
        features = torchvision.models.vgg16(weights=None).features
    state = torch.load(random_weights("vgg16"), weights_only=True)
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    norm = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    a, b = images(), images(seed=1)
    by_layer = [F.mse_loss(features[:n](norm(a)), features[:n](norm(b))) for n in (4, 9, 16, 23)]
    assert perceptual("vgg16").vgg(a, b).mean().item() == pytest.approx(torch.stack(by_layer).mean().item(), rel=1e-5)


@pytest.mark.parametrize("distance", ["lpips", "vgg"])
def test_distances_are_0_for_identical_images_and_grow_with_noise(distance: str) -> None:
    measure, target = getattr(perceptual("vgg16"), distance), images()
    values = torch.stack([measure(noisy(target, sigma), target) for sigma in (0.0, 0.05, 0.2, 0.5)])
    assert (values[0] == 0).all()
    assert (values.diff(dim=0) > 0).all()
    alone = torch.cat([measure(a[None], b[None]) for a, b in zip(noisy(target, 0.2), target, strict=True)])
    assert torch.allclose(values[2], alone, rtol=1e-4)


@pytest.mark.parametrize("distance", ["lpips", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_finite_where_all_features_are_0(distance: str, channels: int) -> None:
    network = perceptual("vgg16")
    for layer in network.trunk:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data[:] = 0.0  # every feature of every image is 0
    for net in (network, perceptual("vgg16")):
        flat = torch.full((2, channels, 16, 16), 0.5, requires_grad=True)
        target = images(2, 16, channels).requires_grad_()
        getattr(net, distance)(flat, target).sum().backward()
        assert flat.grad is not None
        assert flat.grad.isfinite().all()
        assert target.grad is None
    assert flat.grad is not None
    assert flat.grad.abs().sum() > 0


def test_grey_images_are_taken_as_rgb() -> None:
    network, grey = perceptual("squeezenet"), images(channels=1)
    other = noisy(grey, 0.2)
    assert torch.allclose(network.lpips(other, grey), network.lpips(other.repeat(1, 3, 1, 1), grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("net", NETS)
def test_the_least_resolution_of_the_spec_is_what_the_network_can_take(net: Any) -> None:
    network, least = perceptual(net), PerceptualNet.LEAST[net]
    assert network.lpips(images(1, least), images(1, least, seed=1)).isfinite().all()
    with pytest.raises(RuntimeError):
        network.lpips(images(1, least - 1), images(1, least - 1))


def test_networks_stay_frozen_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    network = FeatureNetwork(FeatureNet(net="resnet18", weights=random_weights("resnet18")))
    assert torch.equal(torch.get_rng_state(), before)
    whole = nn.Sequential(network, perceptual("squeezenet")).train()
    assert not any(module.training for part in whole for module in part.modules())
    assert not any(parameter.requires_grad for parameter in whole.parameters())


def test_inception_gives_2048_features() -> None:
    network = FeatureNetwork(FeatureNet(net="inception_v3", weights=random_weights("inception_v3")))
    assert network.net.transform_input  # the weights of torchvision need it
    features = network(images(2))
    assert features.shape == (2, 2048)
    assert features.isfinite().all()


# ------------------------------------------------------------------------------------------ metrics


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 4, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 20, "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["lpips", "rfid", "kid"],
        "perceptual": {"net": "squeezenet", "weights": random_weights("squeezenet")},
        "features": {"net": "resnet18", "weights": random_weights("resnet18")},
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


@pytest.fixture(scope="module")
def context() -> EvalContext:
    """Its network of features gets images of 64 pixels, which take a tenth of the time of 224."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIDES, "resnet18", 64)
        auxiliary = build_auxiliary_networks(spec_of(), 2, torch.device("cpu"))
    stored = (255 * train_images()[:, :1]).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    train = ImageSet(stored, None)
    return EvalContext(None, spec_of(), auxiliary, train, torch.device("cpu"))  # type: ignore[arg-type]


def train_images() -> Tensor:
    """Grey, in steps of 1 / 255, as images of a dataset are."""
    return (255 * images(14, 20, channels=1, seed=5)).floor() / 255


def measured(metric: Any, target: Tensor, made: Tensor, batch_size: int = 100) -> float:
    with torch.no_grad():
        for a, b in zip(target.split(batch_size), made.split(batch_size), strict=True):
            metric.update(EvalBatch(a, a, b, Encoding(torch.zeros(len(a), 1)), None, None))
        return float(metric.compute())


@pytest.mark.parametrize("metric", [METRICS[name] for name in ("lpips", "rfid", "kid")])
def test_metrics_are_best_for_identical_images_and_worse_with_noise(metric: Any, context: EvalContext) -> None:
    target = images(12, 20)
    values = [measured(metric(context), target, noisy(target, sigma)) for sigma in (0.0, 0.1, 0.4)]
    assert values[0] < values[1] < values[2]
    assert values[0] <= 1e-4
    before = torch.get_rng_state()
    assert measured(metric(context), target, noisy(target, 0.4), batch_size=5) == pytest.approx(values[2], rel=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_too_few_images_have_no_value(name: str, context: EvalContext) -> None:
    assert math.isnan(measured(METRICS[name](context), images(9, 20), images(9, 20, seed=1)))
    few = ImageSet(np.zeros((9, 20, 20, 1), np.uint8), None)
    with pytest.raises(FtaeError, match=f"metrics: {name} needs at least 10 validation images, data has 9"):
        check_metrics([name], context.train, few)


def test_distances_equal_those_of_torchmetrics_in_batches_of_any_size(
    context: EvalContext,
) -> None:
    target = images(12, 20)
    made = noisy(target, 0.2)
    network = context.auxiliary.features
    assert network is not None
    scale = network(train_images()).square().mean().sqrt()
    real, theirs = ((network(x) / scale).double() for x in (target, made))
    given = nn.Identity()
    given.num_features = 512  # type: ignore[assignment]
    frechet = FrechetInceptionDistance(feature=given)
    frechet.update(real, real=True)
    frechet.update(theirs, real=False)
    assert measured(METRICS["rfid"](context), target, made, batch_size=4) == pytest.approx(
        float(frechet.compute()), rel=1e-7
    )
    assert measured(METRICS["kid"](context), target, made) == pytest.approx(float(poly_mmd(real, theirs)), rel=1e-9)


# -------------------------------------------------------------------------------------------- files


MISSING = r"no/such.pth is not a file. ftae downloads no weights: fetch {} of torchvision where there is a network"


@pytest.mark.parametrize(
    ("section", "net", "file"),
    [("perceptual", "vgg16", "vgg16-397923af.pth"), ("features", "inception_v3", "inception_v3_google-0cc3c7bd.pth")],
)
def test_missing_weights_are_named_with_how_to_get_them(section: str, net: str, file: str) -> None:
    spec = spec_of(**{section: {"net": net, "weights": "no/such.pth"}})
    for build in (lambda: summarize(spec, 2), lambda: build_auxiliary_networks(spec, 2, torch.device("cpu"))):
        with pytest.raises(FtaeError, match=f"{section}.weights: {MISSING.format(file)}"):
            build()


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    other = {"net": "vgg16", "weights": random_weights("squeezenet")}
    with pytest.raises(FtaeError, match=r"perceptual\.weights: .* does not fit vgg16"):
        summarize(spec_of(perceptual=other), 2)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(FtaeError, match=r"features\.weights: .*text\.pth is no file of weights"):
        summarize(spec_of(features={"net": "resnet18", "weights": str(tmp_path / "text.pth")}), 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"perceptual": None}, r"lpips needs a network to compare images with: set perceptual: "),
        ({"features": None}, r"rfid needs a network that gives features: set features: "),
        ({"losses": {"vgg": 1.0}}, r"needs perceptual\.net vgg16, got squeezenet"),
        (
            {"data": {"source": "digits", "resolution": 16}},
            r"with squeezenet needs a resolution of at least 17, got 16",
        ),
    ],
)
def test_a_missing_network_is_a_problem_of_the_spec(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        spec_of(**changes)


def test_auxiliary_networks_are_no_part_of_the_model() -> None:
    training = Trainer(spec_of(losses={"mse": 1.0, "lpips": 0.1}))
    assert training.auxiliary.perceptual is not None
    theirs = {id(parameter) for parameter in training.auxiliary.perceptual.parameters()}
    assert not theirs & {id(parameter) for parameter in training.autoencoder.parameters()}
    assert build_auxiliary_networks(spec_of(metrics=["psnr"]), 2, torch.device("cpu")) == AuxiliaryNetworks()
    assert NAMES["squeezenet"] == "squeezenet1_1"
