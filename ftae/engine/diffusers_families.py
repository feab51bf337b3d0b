"""diffusers' autoencoders, cut into stages."""

from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder, Draw, Encoding, Group, Posterior, Stage
from ftae.engine.pretrained import pretrained_folder
from ftae.errors import FtaeError
from ftae.specs.data import DataSpec
from ftae.specs.models import DiffusersModel


def _load_diffusers(model: DiffusersModel, class_name: str) -> Any:
    import diffusers

    folder = pretrained_folder(model.pretrained)
    source = str(folder) if folder is not None else model.pretrained
    if folder is None and (model.pretrained.count("/") != 1 or model.pretrained.startswith((".", "/", "~"))):
        raise FtaeError(
            f"model.pretrained: {model.pretrained!r} is neither an existing folder nor a hub id (owner/name)"
        )
    try:
        net, info = getattr(diffusers, class_name).from_pretrained(
            source,
            subfolder=model.subfolder,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise FtaeError(f"model.pretrained: {class_name} cannot be loaded from {source!r}: {error}") from error
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise FtaeError(
            f"model.pretrained: {source!r} lacks weights of {class_name}: {', '.join(map(str, absent[:5]))}"
        )
    return net


def autoencoder_kl(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderKL (Rombach et al. 2022). Raises as ``build_autoencoder``."""
    net = _load_diffusers(model, "AutoencoderKL")
    factor = 2 ** (len(net.config.block_out_channels) - 1)
    if data.resolution % factor:
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {data.resolution}")

    def encode(images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        distribution = net.encode(images).latent_dist
        return Encoding.of(Posterior(distribution.mean, distribution.logvar), draw)

    return Autoencoder(
        net,
        _kl_stages(net),
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=encode,
        decode=lambda latents, labels: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _kl_stages(net: Any) -> list[Stage]:
    """AutoencoderKL in data-flow order: 16 stages for Stable Diffusion's configuration."""
    encoder, decoder = net.encoder, net.decoder
    stages = [
        Stage("encoder.conv_in", "encoder", (encoder.conv_in,)),
        *(Stage(f"encoder.down_blocks.{i}", "encoder", (block,)) for i, block in enumerate(encoder.down_blocks)),
        Stage("encoder.mid_block", "encoder", (encoder.mid_block,)),
        Stage("encoder.conv_out", "encoder", (encoder.conv_norm_out, encoder.conv_out)),
    ]
    for name in ("quant_conv", "post_quant_conv"):
        if getattr(net, name) is not None:
            stages.append(Stage(name, "bottleneck", (getattr(net, name),)))
    return [
        *stages,
        Stage("decoder.conv_in", "decoder", (decoder.conv_in,)),
        Stage("decoder.mid_block", "decoder", (decoder.mid_block,)),
        *(Stage(f"decoder.up_blocks.{i}", "decoder", (block,)) for i, block in enumerate(decoder.up_blocks)),
        Stage("decoder.conv_out", "decoder", (decoder.conv_norm_out, decoder.conv_out)),
    ]


def autoencoder_tiny(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderTiny, the distilled TAESD. Raises as ``build_autoencoder``."""
    net = _load_diffusers(model, "AutoencoderTiny")
    factor = 2 ** (len(net.config.encoder_block_out_channels) - 1)
    if data.resolution % factor:
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {data.resolution}")
    # forward() rounds the latents to 8 bit, which gives the encoder no gradient: encode and decode do not.
    return Autoencoder(
        net,
        [*_tiny_stages(net.encoder.layers, "encoder"), *_tiny_stages(net.decoder.layers, "decoder")],
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=lambda images, labels, draw: Encoding(net.encode(images).latents),
        decode=lambda latents, labels: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _tiny_stages(layers: nn.Sequential, group: Group) -> list[Stage]:
    """One stage per resolution: a new one begins at a strided convolution, or behind an upsampling's.

    The last convolution is a stage of its own.
    """
    groups: list[list[nn.Module]] = [[]]
    for i, layer in enumerate(layers):
        strided = isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)
        last = i == len(layers) - 1
        behind_upsampling = i >= 2 and isinstance(layers[i - 2], nn.Upsample)
        entered = group == "decoder" and i == 2
        if groups[-1] and (strided or last or behind_upsampling or entered):
            groups.append([])
        groups[-1].append(layer)
    return [Stage(f"{group}.{i}", group, tuple(modules)) for i, modules in enumerate(groups)]
