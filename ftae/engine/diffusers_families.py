"""diffusers' autoencoders, cut into stages."""

from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder, Draw, Encoding, Group, Posterior, Stage
from ftae.engine.pretrained import pretrained_folder
from ftae.engine.quantizer import chosen
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
    _check_multiple(data, 2 ** (len(net.config.block_out_channels) - 1), model)
    return _with_posterior(net, _kl_stages(net))


def asymmetric_autoencoder_kl(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AsymmetricAutoencoderKL (Zhu et al. 2023). Raises as ``build_autoencoder``.

    Its decoder can be given the known part of an image with a mask of the rest, which
    ``decoder.condition_encoder`` encodes. Here it is given neither, so that this stage is idle.
    """
    net = _load_diffusers(model, "AsymmetricAutoencoderKL")
    _check_multiple(data, 2 ** (len(net.config.down_block_out_channels) - 1), model)
    stages = _kl_stages(net)
    before = next(i for i, stage in enumerate(stages) if stage.name == "decoder.up_blocks.0")
    stages.insert(before, Stage("decoder.condition_encoder", "decoder", (net.decoder.condition_encoder,), idle=True))
    return _with_posterior(net, stages)


def _check_multiple(data: DataSpec, factor: int, model: DiffusersModel) -> None:
    if data.resolution % factor:
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {data.resolution}")


def _with_posterior(net: Any, stages: list[Stage]) -> Autoencoder:
    def encode(images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        distribution = net.encode(images).latent_dist
        return Encoding.of(Posterior(distribution.mean, distribution.logvar), draw)

    return Autoencoder(
        net,
        stages,
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=encode,
        decode=lambda latents, labels: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _kl_stages(net: Any) -> list[Stage]:
    """AutoencoderKL and VQModel in data-flow order: 16 and 17 stages for Stable Diffusion's configuration."""
    encoder, decoder = net.encoder, net.decoder
    stages = [
        Stage("encoder.conv_in", "encoder", (encoder.conv_in,)),
        *(Stage(f"encoder.down_blocks.{i}", "encoder", (block,)) for i, block in enumerate(encoder.down_blocks)),
        Stage("encoder.mid_block", "encoder", (encoder.mid_block,)),
        Stage("encoder.conv_out", "encoder", (encoder.conv_norm_out, encoder.conv_out)),
    ]
    for name in ("quant_conv", "quantize", "post_quant_conv"):
        if getattr(net, name, None) is not None:
            stages.append(Stage(name, "bottleneck", (getattr(net, name),)))
    return [
        *stages,
        Stage("decoder.conv_in", "decoder", (decoder.conv_in,)),
        Stage("decoder.mid_block", "decoder", (decoder.mid_block,)),
        *(Stage(f"decoder.up_blocks.{i}", "decoder", (block,)) for i, block in enumerate(decoder.up_blocks)),
        Stage("decoder.conv_out", "decoder", (decoder.conv_norm_out, decoder.conv_out)),
    ]


def vq_model(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """VQModel, the VQGAN of Esser et al. (2021). Latents are the chosen codes. Raises as ``build_autoencoder``."""
    net = _load_diffusers(model, "VQModel")
    _check_multiple(data, 2 ** (len(net.config.block_out_channels) - 1), model)
    # Its own loss, which is not used here, would else weigh the commitment with 1 and the codebook with beta.
    net.quantize.legacy = False

    def encode(images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        encoded = net.encode(images).latents
        with torch.autocast(encoded.device.type, enabled=False):
            encoded = encoded.float()
            vectors = encoded.movedim(1, 3)
            indices = torch.cdist(vectors.detach().flatten(0, 2), net.quantize.embedding.weight.detach()).argmin(1)
            codes = net.quantize.embedding(indices).reshape(vectors.shape).movedim(3, 1)
            latents, choice = chosen(
                encoded, codes, indices.reshape(len(images), -1), net.quantize.n_e, by_gradient=True
            )
        return Encoding(latents, codes=(choice,))

    def decode(latents: Tensor, labels: Tensor | None) -> Tensor:
        # As net.decode, which would quantise again.
        spatial = latents if net.config.norm_type == "spatial" else None
        reconstruction: Tensor = net.decoder(net.post_quant_conv(latents), spatial)
        return reconstruction

    return Autoencoder(
        net,
        _kl_stages(net),
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=encode,
        decode=decode,
        save=lambda folder: net.save_pretrained(folder),
    )


def autoencoder_tiny(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderTiny, the distilled TAESD. Raises as ``build_autoencoder``."""
    net = _load_diffusers(model, "AutoencoderTiny")
    _check_multiple(data, 2 ** (len(net.config.encoder_block_out_channels) - 1), model)
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


def autoencoder_dc(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderDC, the deep compression autoencoder (Chen et al. 2024). Raises as ``build_autoencoder``."""
    net = _load_diffusers(model, "AutoencoderDC")
    _check_multiple(data, net.spatial_compression_ratio, model)
    return Autoencoder(
        net,
        _dc_stages(net),
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=lambda images, labels, draw: Encoding(net.encode(images).latent),
        decode=lambda latents, labels: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _dc_stages(net: Any) -> list[Stage]:
    """AutoencoderDC in data-flow order: the decoder's blocks run from the last to the first.

    The outermost block is empty where the first layer of the model is a strided one.
    """
    encoder, decoder = net.encoder, net.decoder
    down = [(i, block) for i, block in enumerate(encoder.down_blocks) if len(block)]
    up = [(i, block) for i, block in enumerate(decoder.up_blocks) if len(block)]
    return [
        Stage("encoder.conv_in", "encoder", (encoder.conv_in,)),
        *(Stage(f"encoder.down_blocks.{i}", "encoder", (block,)) for i, block in down),
        Stage("encoder.conv_out", "encoder", (encoder.conv_out,)),
        Stage("decoder.conv_in", "decoder", (decoder.conv_in,)),
        *(Stage(f"decoder.up_blocks.{i}", "decoder", (block,)) for i, block in reversed(up)),
        Stage("decoder.conv_out", "decoder", (decoder.norm_out, decoder.conv_out)),
    ]
