"""A small model of each diffusers family, with random weights."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderTiny,
    VQModel,
)
from torch import Tensor

FOLDERS = {
    "autoencoder_kl": "kl",
    "autoencoder_kl_flux2": "flux2",
    "asymmetric_autoencoder_kl": "asymmetric",
    "autoencoder_tiny": "tiny",
    "autoencoder_dc": "dc",
    "vq_model": "vq",
}


def save_tiny_kl(folder: Path, **config: Any) -> None:
    """Write a small AutoencoderKL for images of 16 pixels, the same each time; ``config`` adds to its configuration."""
    torch.manual_seed(1)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
        **config,
    ).save_pretrained(folder)


def save_tiny_models(folder: Path) -> None:
    """Write each, for images of 16 pixels, into its sub-folder of ``folder``."""
    save_tiny_kl(folder / "kl")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    ).save_pretrained(folder / "tiny")
    AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder / "asymmetric")
    AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
    ).save_pretrained(folder / "dc")
    VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        num_vq_embeddings=24,
        norm_num_groups=4,
    ).save_pretrained(folder / "vq")
    torch.manual_seed(2)
    AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder / "flux2")


def as_compvis(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model of two levels as CompVis' code has them."""
    renamed = {_compvis_name(name): t for name, t in state.items()}
    return {
        name: t[:, :, None, None].contiguous() if ".attn" in name and t.ndim == 2 else t for name, t in renamed.items()
    }


def _compvis_name(name: str) -> str:
    name = re.sub(r"encoder\.down_blocks\.(\d)\.", r"encoder.down.\1.", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.", lambda match: f"decoder.up.{1 - int(match[1])}.", name)
    for theirs, its in {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        ".resnets": ".block",
        ".attentions": ".attn",
        ".downsamplers.0": ".downsample",
        ".upsamplers.0": ".upsample",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "group_norm": "norm",
        "to_out.0": "proj_out",
        "to_": "",
    }.items():
        name = name.replace(theirs, its)
    return name
