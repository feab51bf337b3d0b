"""A small model of every family, for images of 16 pixels in colour, and what tests of families compare."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from safetensors.torch import save_file
from tiny_diffusers import save_tiny_models
from torch import Tensor
from user_models import Vae

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_autoencoder, build_model
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

NAMED_STAGES = {
    "encoder": ["encoder.0", "encoder.1", "encoder.4"],
    "bottleneck": ["mean", "logvar"],
    "decoder": ["decoder.0", "decoder.1", "decoder.3"],
}
CUSTOM = {"family": "user_models:Vae", "image_range": "-1..1", "kwargs": {"width": 4}}
SMALL_CODES = {"channels": 8, "codebook_size": 24, "code_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "mlp_vae": {"family": "mlp_vae", "hidden": 16, "latent_dim": 4},
    "conv_ae": {"family": "conv_ae", "channels": 8, "latent_channels": 2},
    "conv_vae": {"family": "conv_vae", "channels": 8, "latent_dim": 4},
    "conv_vae_adapted": {"family": "conv_vae", "channels": 8, "latent_dim": 4, "depth": 1, "resolution_adapters": 1},
    "mlp_cvae": {"family": "mlp_cvae", "hidden": 16, "latent_dim": 4},
    "conv_cvae": {"family": "conv_cvae", "channels": 8, "latent_dim": 4},
    "hierarchical_vae": {"family": "hierarchical_vae", "channels": 8, "latent_channels": 2},
    "vq_vae": {"family": "vq_vae", **SMALL_CODES, "dead_code_threshold": 4.0},  # some are revived at every step
    "vq_vae_gradient": {"family": "vq_vae", **SMALL_CODES, "codebook": "gradient"},
    "vq_vae_2": {"family": "vq_vae_2", **SMALL_CODES, "dead_code_threshold": 4.0},
    "unet_translator": {"family": "unet_translator", "channels": 8, "depth": 3},
    "resnet_translator": {"family": "resnet_translator", "channels": 4, "blocks": 1},
    "dcgan": {"family": "dcgan", "channels": 4, "latent_dim": 6},
    "stylegan2": {
        "family": "stylegan2",
        "channel_base": 64,
        "channel_max": 8,
        "latent_dim": 6,
        "style_dim": 8,
        "mapping_layers": 2,
    },
    "cyclegan": {"family": "cyclegan", "channels": 4, "blocks": 1},
    "vq_model": {"family": "vq_model", "pretrained": "vq"},
    "autoencoder_kl": {"family": "autoencoder_kl", "pretrained": "kl"},
    "autoencoder_kl_flux2": {"family": "autoencoder_kl_flux2", "pretrained": "flux2"},
    "asymmetric_autoencoder_kl": {"family": "asymmetric_autoencoder_kl", "pretrained": "asymmetric"},
    "autoencoder_tiny": {"family": "autoencoder_tiny", "pretrained": "tiny"},
    "autoencoder_dc": {"family": "autoencoder_dc", "pretrained": "dc"},
    "custom_in_order_safetensors": {**CUSTOM, "pretrained": "vae.safetensors"},
    "custom_named_pt": {**CUSTOM, "pretrained": "vae.pt", "stages": NAMED_STAGES},
    "custom_forward_alone": {"family": "user_models:ForwardAlone", "image_range": "0..1"},
}
DIFFUSERS = (
    *("autoencoder_kl", "autoencoder_kl_flux2", "asymmetric_autoencoder_kl", "autoencoder_tiny", "autoencoder_dc"),
    "vq_model",
)
UNBOUNDED = ("stylegan2", *DIFFUSERS)
BOUNDED = [name for name in MODELS if name not in UNBOUNDED and not name.startswith("custom")]
TRANSLATORS = ("unet_translator", "resnet_translator", "cyclegan")
GENERATORS = ("dcgan", "stylegan2")
BOTH_WAYS = {"cycle": 10.0, "identity": 1.0, "adversarial": 1.0}  # losses
WITHOUT_POSTERIOR = (
    *TRANSLATORS,
    *GENERATORS,
    "conv_ae",
    "autoencoder_tiny",
    "autoencoder_dc",
    "user_models:ForwardAlone",
)


def save_pretrained_models(folder: Path) -> None:
    """Write the models that ``MODELS`` calls pretrained into ``folder``."""
    save_tiny_models(folder)
    weights = Vae(4).state_dict()
    save_file(weights, folder / "vae.safetensors")
    torch.save(weights, folder / "vae.pt")


def model_in(folder: Path, name: str) -> dict[str, Any]:
    """``MODELS[name]``; a pretrained one is taken from ``folder``."""
    model = MODELS[name]
    return model | ({"pretrained": str(folder / model["pretrained"])} if "pretrained" in model else {})


def has_codes(model: dict[str, Any]) -> bool:
    return model["family"] in ("vq_vae", "vq_vae_2", "vq_model")


def code_losses(model: dict[str, Any]) -> dict[str, float]:
    """The losses that move every part of the codebooks."""
    by_gradient = model["family"] == "vq_model" or model.get("codebook") == "gradient"
    return ({"commitment": 0.25} if has_codes(model) else {}) | ({"codebook": 1.0} if by_gradient else {})


def losses_of(model: dict[str, Any]) -> dict[str, float]:
    """Losses that train every stage."""
    return BOTH_WAYS if model["family"] == "cyclegan" else {"mse": 1.0, **code_losses(model)}


def spec_of(model: dict[str, Any], **changes: Any) -> FinetuneSpec:
    both_ways = model["family"] == "cyclegan"
    source = "digit_domains" if both_ways else "digit_edges" if model["family"] in TRANSLATORS else "digits"
    fields: dict[str, Any] = {
        "model": model,
        "data": {"source": source, "resolution": 16, "color": "rgb", "classes": [0, 1], "val": 0.1},
        "losses": losses_of(model),
        "discriminator": {"channels": 4, "depth": 1} if both_ways else {},
        "optimizer": {"lr": 1e-3},
        "batch_size": 8,
        "max_steps": 6,
        "num_evals": 3,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    if model["family"] in GENERATORS:
        small = {"dcgan": {"channels": 4}, "stylegan2": {"channel_base": 64, "channel_max": 8}}
        fields |= {"losses": {"adversarial": 1.0}, "metrics": ["sharpness"], "discriminator": small[model["family"]]}
    return run_spec(**fields | changes)


def grey(resolution: int = 16) -> dict[str, Any]:
    return {"source": "digits", "resolution": resolution, "color": "grey", "classes": [0]}


def rgb(resolution: int = 16) -> dict[str, Any]:
    return grey(resolution) | {"color": "rgb"}


def built(model: dict[str, Any], seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return build_autoencoder(spec_of(model).model, spec_of(model).data, 2).eval()


def refused(model: dict[str, Any], **changes: Any) -> str:
    """The message with which the model is refused."""
    with pytest.raises(FtaeError) as caught:
        build_model(spec_of(model, **changes), None)
    return str(caught.value)


def images_for(autoencoder: Autoencoder, num_images: int = 3) -> Tensor:
    """Inputs of the model: images, or noise."""
    generator = torch.Generator().manual_seed(5)
    if autoencoder.noise_dim is not None:
        return torch.randn(num_images, autoencoder.noise_dim, generator=generator)
    return autoencoder.to_range(torch.rand(num_images, 3, 16, 16, generator=generator))


@torch.no_grad()
def outputs(autoencoder: Autoencoder, images: Tensor) -> list[Tensor]:
    """Latents, the log-variance of the posterior if there is one, and the reconstruction."""
    labels = torch.arange(len(images)) % 2
    encoding, made = autoencoder.run(images, labels)
    spread = [] if encoding.posterior is None else [encoding.posterior.logvar]
    return [encoding.latents, *spread, made]


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, through all nested containers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
