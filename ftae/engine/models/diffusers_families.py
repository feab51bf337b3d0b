"""The autoencoders of diffusers, divided into stages.

A chain runs the modules of the network itself, as its ``encode`` and ``decode`` do; a test compares both to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Autoencoder, Encoding, NoiseFn, Posterior, StageChain
from ftae.engine.models.builtin.conv_mlp import deterministic
from ftae.engine.models.builtin.vector_quantized import chosen
from ftae.engine.models.more_channels import marked_new, take_channels, with_channels
from ftae.engine.models.staged_model import Group, Stage, StageFn
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec, shown
from ftae.specs.finetune.models import DiffusersModel


def _load_diffusers(model: Any) -> Any:
    from ftae.engine.models.diffusers_loading import load_network  # here, since it takes seconds

    return load_network(model.family, model.pretrained, model.subfolder, getattr(model, "scaling", None))


def autoencoder_kl(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderKL (Rombach et al. 2022). Raises as ``build_autoencoder``."""
    net = _load_diffusers(model)
    _check_multiple(data, 2 ** (len(net.config.block_out_channels) - 1), model)
    encoder, decoder = _ends(net, data)
    return _autoencoder(net, StageChain(encoder, _diagonal_gaussian, decoder))


def autoencoder_kl_flux2(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderKLFlux2. Raises as ``build_autoencoder``.

    Its ``bn`` holds statistics of latents for the diffusion model, and takes no part in encoding and decoding.
    """
    net = _load_diffusers(model)
    _check_multiple(data, 2 ** (len(net.config.block_out_channels) - 1), model)
    encoder, decoder = _ends(net, data)
    idle = Stage("bn", "bottleneck", (net.bn,), idle=True)
    return _autoencoder(net, StageChain((*encoder, idle), _diagonal_gaussian, decoder))


def asymmetric_autoencoder_kl(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AsymmetricAutoencoderKL (Zhu et al. 2023). Raises as ``build_autoencoder``.

    For inpainting, its decoder also takes an image and a mask, which ``decoder.condition_encoder`` encodes. Here it
    takes neither, so that stage is idle.
    """
    net = _load_diffusers(model)
    _check_multiple(data, 2 ** (len(net.config.down_block_out_channels) - 1), model)
    before = net.config.in_channels
    encoder, decoder = _ends(net, data)
    if net.config.in_channels != before:
        take_channels(net.decoder.condition_encoder.layers[0], net.config.in_channels)
    stages = list(decoder)
    middle = next(i for i, stage in enumerate(stages) if stage.name == "decoder.mid_block")

    def in_full_precision(x: Tensor) -> Tensor:
        features: Tensor = net.decoder.mid_block(x)
        return features.to(next(net.decoder.up_blocks.parameters()).dtype)

    stages[middle] = replace(stages[middle], run=in_full_precision)
    idle = Stage("decoder.condition_encoder", "decoder", (net.decoder.condition_encoder,), idle=True)
    stages.insert(middle + 1, idle)
    return _autoencoder(net, StageChain(encoder, _diagonal_gaussian, tuple(stages)))


def _check_multiple(data: DataSpec, factor: int, model: DiffusersModel) -> None:
    if any(side % factor for side in data.size):
        got = shown(data.resolution)
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {got}")


def _autoencoder(
    net: Any, chain: StageChain, decode: Callable[[Tensor, Tensor | None], Tensor] | None = None
) -> Autoencoder:
    """The model around ``net``. ``decode``: given where the chain does not decode; then the stages are no chain."""
    return Autoencoder(
        net,
        chain.stages,
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=chain.encode,
        decode=decode or chain.decode,
        save=lambda folder: net.save_pretrained(folder),
        chain=chain if decode is None else None,
    )


def _diagonal_gaussian(moments: Tensor, noise: NoiseFn | None) -> Encoding:
    """The bottleneck of a VAE with the bounds of the class of this name in diffusers."""
    mean, logvar = moments.chunk(2, dim=1)
    return Encoding.of(Posterior(mean, logvar.clamp(-30.0, 20.0)), noise)


def _in_turn(*steps: StageFn) -> StageFn:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _ends(net: Any, data: DataSpec) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The stages of the encoder and of the decoder, which get the channels of ``data``."""
    new = with_channels(net, data, net.encoder.conv_in, net.decoder.conv_out)
    return marked_new(_encoder(net), new), marked_new(_decoder(net), new)


def _encoder(net: Any) -> tuple[Stage, ...]:
    """The stages of ``encode`` of AutoencoderKL and VQModel."""
    encoder, quant = net.encoder, getattr(net, "quant_conv", None)
    blocks = [(f"encoder.down_blocks.{i}", block) for i, block in enumerate(encoder.down_blocks)]
    named = [("encoder.conv_in", encoder.conv_in), *blocks, ("encoder.mid_block", encoder.mid_block)]
    run = _in_turn(encoder.conv_norm_out, encoder.conv_act, encoder.conv_out)
    last = Stage("encoder.conv_out", "encoder", (encoder.conv_norm_out, encoder.conv_out), run=run)
    after = [] if quant is None else [Stage("quant_conv", "bottleneck", (quant,), run=quant)]
    return (*(Stage(name, "encoder", (module,), run=module) for name, module in named), last, *after)


def _decoder(net: Any) -> tuple[Stage, ...]:
    """The stages of ``decode`` of AutoencoderKL and VQModel, without quantising again."""
    decoder, post_quant = net.decoder, getattr(net, "post_quant_conv", None)
    before = [] if post_quant is None else [Stage("post_quant_conv", "bottleneck", (post_quant,), run=post_quant)]
    blocks = [(f"decoder.up_blocks.{i}", block) for i, block in enumerate(decoder.up_blocks)]
    named = [("decoder.conv_in", decoder.conv_in), ("decoder.mid_block", decoder.mid_block), *blocks]
    run = _in_turn(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    last = Stage("decoder.conv_out", "decoder", (decoder.conv_norm_out, decoder.conv_out), run=run)
    return (*before, *(Stage(name, "decoder", (module,), run=module) for name, module in named), last)


def vq_model(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """VQModel, the VQGAN of Esser et al. (2021). Latents are the codes. Raises as ``build_autoencoder``."""
    net = _load_diffusers(model)
    _check_multiple(data, 2 ** (len(net.config.block_out_channels) - 1), model)
    # Otherwise the loss of the network, which is not used here, would weigh the commitment with 1, the codebook with
    # beta.
    net.quantize.legacy = False

    def quantized(encoded: Tensor, noise: NoiseFn | None) -> Encoding:
        """Replace each vector of the encoder's output by its nearest code."""
        with torch.autocast(encoded.device.type, enabled=False):
            encoded = encoded.float()
            vectors = encoded.movedim(1, 3)
            indices = torch.cdist(vectors.detach().flatten(0, 2), net.quantize.embedding.weight.detach()).argmin(1)
            codes = net.quantize.embedding(indices).reshape(vectors.shape).movedim(3, 1)
            latents, choice = chosen(
                encoded, codes, indices.reshape(len(encoded), -1), net.quantize.n_e, by_gradient=True
            )
        return Encoding(latents, codes=(choice,))

    encoder, decoder = _ends(net, data)
    chain = StageChain(encoder, quantized, decoder, Stage("quantize", "bottleneck", (net.quantize,)))
    if net.config.norm_type != "spatial":
        return _autoencoder(net, chain)

    def decode(latents: Tensor, labels: Tensor | None) -> Tensor:
        reconstruction: Tensor = net.decoder(net.post_quant_conv(latents), latents)
        return reconstruction

    return _autoencoder(net, chain, decode=decode)  # every block of the decoder also takes the latents


def autoencoder_tiny(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderTiny, the distilled TAESD. Raises as ``build_autoencoder``."""
    net = _load_diffusers(model)
    _check_multiple(data, 2 ** (len(net.config.encoder_block_out_channels) - 1), model)
    # Unlike encode and decode, forward() rounds the latents to 8 bit, which gives the encoder no gradient.
    encoder = _tiny_stages(net.encoder.layers, "encoder", first=lambda images: images.add(1).div(2))
    decoder = _tiny_stages(
        net.decoder.layers,
        "decoder",
        first=lambda latents: torch.tanh(latents / 3) * 3,
        last=lambda images: images.mul(2).sub(1),
    )
    new = with_channels(net, data, net.encoder.layers[0], net.decoder.layers[-1])
    return _autoencoder(net, StageChain(marked_new(encoder, new), deterministic, marked_new(decoder, new)))


def _tiny_stages(
    layers: nn.Sequential, group: Group, *, first: StageFn, last: StageFn | None = None
) -> tuple[Stage, ...]:
    """One stage per resolution: a new one begins at a strided convolution, or after the convolution of an upsampling.

    The last convolution is a stage of its own. ``first``, ``last``: functions that net.encode or net.decode applies
    before and after the layers.
    """
    groups: list[list[nn.Module]] = [[]]
    for i, layer in enumerate(layers):
        strided = isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)
        outermost = i == len(layers) - 1
        after_upsampling = i >= 2 and isinstance(layers[i - 2], nn.Upsample)
        entered = group == "decoder" and i == 2
        if groups[-1] and (strided or outermost or after_upsampling or entered):
            groups.append([])
        groups[-1].append(layer)
    runs = [_in_turn(*modules) for modules in groups]
    runs[0] = _in_turn(first, runs[0])
    runs[-1] = runs[-1] if last is None else _in_turn(runs[-1], last)
    return tuple(
        Stage(f"{group}.{i}", group, tuple(modules), run=run)
        for i, (modules, run) in enumerate(zip(groups, runs, strict=True))
    )


def autoencoder_dc(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """AutoencoderDC, the deep compression autoencoder (Chen et al. 2024). Raises as ``build_autoencoder``."""
    net = _load_diffusers(model)
    _check_multiple(data, net.spatial_compression_ratio, model)
    new = with_channels(net, data, net.encoder.conv_in, net.decoder.conv_out)
    encoder, decoder = marked_new(_dc_encoder(net.encoder), new), marked_new(_dc_decoder(net.decoder), new)
    return _autoencoder(net, StageChain(encoder, deterministic, decoder))


def _dc_encoder(encoder: Any) -> tuple[Stage, ...]:
    """The stages of its forward. The outermost block is empty where the first layer of the model is strided."""

    def last(x: Tensor) -> Tensor:
        shortcut: Tensor | float = 0.0
        if encoder.out_shortcut:
            shortcut = torch.unflatten(x, 1, (-1, encoder.out_shortcut_average_group_size)).mean(dim=2)
        encoded: Tensor = encoder.conv_out(x) + shortcut
        return encoded

    blocks = [(i, block) for i, block in enumerate(encoder.down_blocks) if len(block)]
    return (
        Stage("encoder.conv_in", "encoder", (encoder.conv_in,), run=encoder.conv_in),
        *(Stage(f"encoder.down_blocks.{i}", "encoder", (block,), run=block) for i, block in blocks),
        Stage("encoder.conv_out", "encoder", (encoder.conv_out,), run=last),
    )


def _dc_decoder(decoder: Any) -> tuple[Stage, ...]:
    """The stages of its forward: blocks run from the last to the first, which may be empty as in the encoder."""

    def first(x: Tensor) -> Tensor:
        shortcut: Tensor | float = 0.0
        if decoder.in_shortcut:
            shortcut = x.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        decoded: Tensor = decoder.conv_in(x) + shortcut
        return decoded

    def normalised(x: Tensor) -> Tensor:
        channels_last: Tensor = decoder.norm_out(x.movedim(1, -1))
        return channels_last.movedim(-1, 1)

    blocks = [(i, block) for i, block in enumerate(decoder.up_blocks) if len(block)]
    last = _in_turn(normalised, decoder.conv_act, decoder.conv_out)
    return (
        Stage("decoder.conv_in", "decoder", (decoder.conv_in,), run=first),
        *(Stage(f"decoder.up_blocks.{i}", "decoder", (block,), run=block) for i, block in reversed(blocks)),
        Stage("decoder.conv_out", "decoder", (decoder.norm_out, decoder.conv_out), run=last),
    )
