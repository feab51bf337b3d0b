"""A small model of each diffusers family, with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

FOLDERS = {
    "autoencoder_kl": "kl",
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
