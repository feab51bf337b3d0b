"""Other people's modules train as they are: no wrapper has to be written."""

from pathlib import Path
from typing import Any

import pytest
import strangers_models
import torch
from small_models import spec_of
from torch import Tensor

from ftae.engine.models.families import build_model
from ftae.engine.training.loop import finetune

# Name -> what the module itself calls the mean of its posterior, its latents or its reconstruction of images.
POSTERIOR = {
    "GaussianChildren": lambda net, x: net.encoder(x).mean,
    "NamedMoments": lambda net, x: net.encode(x).mean,
    "DictMoments": lambda net, x: net.encode(x)["mu"],
    "diffusers_kl": lambda net, x: net.encode(x).latent_dist.mean,
}
PLAIN = {
    "Children": lambda net, x: net.encoder(x),
    "Quantized": lambda net, x: net.encode(x)[0],
    "diffusers_vq": lambda net, x: net.encode(x).latents,
}
WHOLE = {
    "TupleForward": lambda net, x: net(x)[0],
    "ListForward": lambda net, x: net(x)[0],
    "DictForward": lambda net, x: net(x)["x_hat"],
    "ObjectForward": lambda net, x: net(x).reconstruction,
    "KlForward": lambda net, x: net(x).sample,
}
DECODED = {
    "GaussianChildren": lambda net, z: net.decoder(z)["recon"],
    "Children": lambda net, z: net.decoder(z),
    "Quantized": lambda net, z: net.decode(z)[0],
}


def model(name: str) -> dict[str, Any]:
    return {"family": f"strangers_models:{name}", "image_range": "-1..1"}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", [*POSTERIOR, *PLAIN, *WHOLE])
@torch.no_grad()
def test_a_module_means_what_it_returns(name: str, images: Tensor) -> None:
    autoencoder = build_model(spec_of(model(name)), None)
    encoding, output = autoencoder.run(images)
    if name in WHOLE:
        assert torch.equal(output, WHOLE[name](autoencoder.net, images))
        return
    assert (encoding.posterior is not None) == (name in POSTERIOR)
    assert torch.equal(encoding.mode, (POSTERIOR | PLAIN)[name](autoencoder.net, images))
    decode = DECODED.get(name, lambda net, z: net.decode(z).sample)
    assert torch.equal(output, decode(autoencoder.net, encoding.latents))


@pytest.mark.parametrize("name", ["GaussianChildren", "TupleForward", "diffusers_kl"])
def test_a_module_is_trained_with_every_parameter_in_a_stage(name: str, tmp_path: Path) -> None:
    losses = {"mse": 1.0, "kl": 1e-3} if name in POSTERIOR else {"mse": 1.0}
    spec = spec_of(model(name), losses=losses, max_steps=2, num_evals=1)
    before = build_model(spec, None)
    assert sum(len(list(stage.parameters())) for stage in before.stages) == len(list(before.net.parameters()))
    first, last = finetune(spec, tmp_path)
    assert last.metrics != first.metrics


def test_a_deviation_becomes_a_log_variance(images: Tensor) -> None:
    autoencoder = build_model(spec_of(model("GaussianChildren")), None)
    posterior = autoencoder.encode(images).posterior
    assert posterior is not None
    theirs = autoencoder.net.get_submodule("encoder")(images)
    assert torch.allclose(posterior.logvar.exp(), theirs.variance)


def test_every_module_is_under_test() -> None:
    own = {
        name for name, kind in vars(strangers_models).items() if getattr(kind, "__module__", "") == "strangers_models"
    }
    parts = {"encoder", "decoder", "Gaussian", "DictDecoder", "Output", "Moments"}
    assert own - parts == {*POSTERIOR, *PLAIN, *WHOLE}
