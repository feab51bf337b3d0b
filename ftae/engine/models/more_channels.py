"""Networks for images of 3 channels, made to take and to give another number of channels."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from ftae.engine.models.pretrained.weights import note
from ftae.engine.models.staged_model import Stage
from ftae.specs.finetune.data_spec import DataSpec

NEW = ("encoder.conv_in", "decoder.conv_out")  # the stages whose weights are made anew


def with_channels(net: Any, data: DataSpec) -> bool:
    """Give a network of diffusers the channels of ``data``; whether it had others, and got two new convolutions.

    That happens where ``data`` names bands, or has channels that no picture has: otherwise the colour is a mistake. The
    first convolution sees the mean over channels as it saw that of 3; the last gives its mean to each channel.
    """
    pictures = data.chosen_bands is None and data.channels in (1, 3)
    before = net.config.in_channels
    if pictures or before == data.channels:
        return False
    _take(net.encoder.conv_in, data.channels)
    _give(net.decoder.conv_out, data.channels)
    net.register_to_config(in_channels=data.channels, out_channels=data.channels)
    note(f"the pretrained model has {before} channels, the data {data.channels}: {' and '.join(NEW)} are new")
    return True


def marked_new(stages: Iterable[Stage], *, is_new: bool) -> tuple[Stage, ...]:
    """The stages, of which those with a new convolution are new if ``is_new``."""
    return tuple(replace(stage, new=True) if is_new and stage.name in NEW else stage for stage in stages)


def _take(conv: nn.Conv2d, channels: int) -> None:
    mean = conv.weight.detach().mean(dim=1, keepdim=True) * (conv.in_channels / channels)
    conv.weight = nn.Parameter(mean.repeat(1, channels, 1, 1))
    conv.in_channels = channels


def _give(conv: nn.Conv2d, channels: int) -> None:
    conv.weight = nn.Parameter(conv.weight.detach().mean(dim=0, keepdim=True).repeat(channels, 1, 1, 1))
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach().mean().repeat(channels))
    conv.out_channels = channels
