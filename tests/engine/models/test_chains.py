"""Stages in order: a chain does what the network itself does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from small_models import DIFFUSERS, GENERATORS, MODELS, built, images_for, model_in

WITHOUT_CHAIN = (
    *("mlp_cvae", "conv_cvae", "hierarchical_vae", "vq_vae_2", "unet_translator", "cyclegan", *GENERATORS),
    *("custom_in_order_safetensors", "custom_named_pt", "custom_forward_alone"),
)


@pytest.mark.parametrize("name", MODELS)
def test_a_chain_is_all_stages_in_order(name: str, pretrained_models: Path) -> None:
    autoencoder = built(model_in(pretrained_models, name))
    chain = autoencoder.chain
    assert (chain is None) == (name in WITHOUT_CHAIN)
    if chain is not None:
        assert chain.stages == autoencoder.stages
        assert [s.name for s in chain.stages if s.run is None] == [
            s.name for s in chain.stages if s.idle or s is chain.codebook
        ]


@pytest.mark.parametrize("name", DIFFUSERS)
@torch.no_grad()
def test_chains_of_diffusers_models_do_what_these_do(name: str, pretrained_models: Path) -> None:
    autoencoder = built(model_in(pretrained_models, name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net: Any = autoencoder.net
    images = images_for(autoencoder)
    encoding, theirs = autoencoder.encode(images), net.encode(images)
    if encoding.posterior is not None:
        assert torch.equal(encoding.posterior.mean, theirs.latent_dist.mean)
        assert torch.equal(encoding.posterior.logvar, theirs.latent_dist.logvar)
        assert encoding.posterior.mean.stride() == theirs.latent_dist.mean.stride()
    elif encoding.codes:
        assert torch.equal(encoding.codes[0].indices.flatten(), net.quantize(theirs.latents)[2][2])
    else:
        assert torch.equal(encoding.latents, theirs.latent if name == "autoencoder_dc" else theirs.latents)
    options = {"force_not_quantize": True} if encoding.codes else {}
    assert torch.equal(autoencoder.decode(encoding.latents), net.decode(encoding.latents, **options).sample)


def test_a_vq_model_whose_blocks_see_the_latents_has_no_chain(pretrained_models: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        num_vq_embeddings=24,
        norm_type="spatial",
    ).save_pretrained(tmp_path)
    autoencoder = built({"family": "vq_model", "pretrained": str(tmp_path)})
    images = images_for(autoencoder)
    assert autoencoder.chain is None
    latents = autoencoder.encode(images).latents
    net: Any = autoencoder.net
    assert torch.equal(autoencoder.decode(latents), net.decode(latents, force_not_quantize=True).sample)


def test_stages_of_diffusers_models(pretrained_models: Path) -> None:
    kl = [stage.name for stage in built(model_in(pretrained_models, "autoencoder_kl")).stages]
    assert kl == [
        *("encoder.conv_in", "encoder.down_blocks.0", "encoder.down_blocks.1", "encoder.mid_block"),
        *("encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in", "decoder.mid_block"),
        *("decoder.up_blocks.0", "decoder.up_blocks.1", "decoder.conv_out"),
    ]
    tiny = [stage.name for stage in built(model_in(pretrained_models, "autoencoder_tiny")).stages]
    assert tiny == [*(f"encoder.{i}" for i in range(3)), *(f"decoder.{i}" for i in range(4))]
    asymmetric = [stage.name for stage in built(model_in(pretrained_models, "asymmetric_autoencoder_kl")).stages]
    assert asymmetric == [*kl[:9], "decoder.condition_encoder", *kl[9:]]
    dc = [stage.name for stage in built(model_in(pretrained_models, "autoencoder_dc")).stages]
    assert dc == [
        *("encoder.conv_in", "encoder.down_blocks.1", "encoder.down_blocks.2", "encoder.conv_out"),
        *("decoder.conv_in", "decoder.up_blocks.2", "decoder.up_blocks.1", "decoder.conv_out"),
    ]


def test_every_encoder_parameter_of_the_tiny_one_gets_a_gradient(pretrained_models: Path) -> None:
    autoencoder = built(model_in(pretrained_models, "autoencoder_tiny")).train()
    images = images_for(autoencoder)
    (autoencoder.decode(autoencoder.encode(images).latents) - images).square().mean().backward()
    encoder = [s for s in autoencoder.stages if s.group == "encoder"]
    gradients = [p.grad for stage in encoder for p in stage.parameters()]
    assert len(gradients) == len(list(autoencoder.net.encoder.parameters()))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_stages_in_order_take_modules_without_parameters_along(pretrained_models: Path) -> None:
    stages = {s.name: [type(m).__name__ for m in s.modules] for s in built(MODELS["custom_forward_alone"]).stages}
    assert stages == {
        "encode_conv": ["Conv2d"],
        "code": ["BatchNorm1d", "Dropout", "Linear"],
        "decode_linear": ["Linear"],
    }
