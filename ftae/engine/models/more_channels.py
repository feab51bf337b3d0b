"""Networks for images of 3 channels, made to take and to give another number of channels."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ftae.engine.models.pretrained.weights import note
from ftae.engine.models.staged_model import Stage
from ftae.specs.finetune.data_spec import DataSpec


def with_channels(net: Any, data: DataSpec, first: Any, last: Any) -> tuple[nn.Conv2d, ...]:
    """Give a network of diffusers the channels of ``data``; returns the convolutions that are new for it.

    ``first`` and ``last``: those that take and give images, or the blocks around them. They are made anew where
    ``data`` names bands, or has channels that no picture has: otherwise the colour is a mistake. The first sees the
    mean over channels as it saw that of the channels before; the last gives its mean to each channel.
    """
    pictures = data.chosen_bands is None and data.channels in (1, 3)
    before = net.config.in_channels
    if pictures or before == data.channels:
        return ()
    new = tuple(module if isinstance(module, nn.Conv2d) else module.conv for module in (first, last))
    take_channels(new[0], data.channels)
    _give_channels(new[1], before, data.channels)
    net.register_to_config(**{key: data.channels for key in ("in_channels", "out_channels") if key in net.config})
    names = " and ".join(name for name, module in net.named_modules() if module in new)
    note(f"the pretrained model has {before} channels, the data {data.channels}: {names} are new")
    return new


def marked_new(stages: Iterable[Stage], new: tuple[nn.Conv2d, ...]) -> tuple[Stage, ...]:
    """The stages, of which those with a convolution of ``new`` are new."""

    def is_new(stage: Stage) -> bool:
        return any(part in new for module in stage.modules for part in module.modules())

    return tuple(replace(stage, new=True) if is_new(stage) else stage for stage in stages)


def take_channels(conv: nn.Conv2d, channels: int) -> None:
    """Let a convolution take another number of channels, whose mean it sees as it saw that of the ones before."""
    mean = conv.weight.detach().mean(dim=1, keepdim=True) * (conv.in_channels / channels)
    conv.weight = nn.Parameter(mean.repeat(1, channels, 1, 1))
    conv.in_channels = channels


def _give_channels(conv: nn.Conv2d, before: int, channels: int) -> None:
    """Let it give another number; it may give several values of each, which become pixels."""

    def of_mean(values: Tensor) -> nn.Parameter:
        mean = values.detach().reshape(before, -1, *values.shape[1:]).mean(dim=0)
        return nn.Parameter(mean.repeat(channels, *(1 for _ in mean.shape[1:])))

    conv.weight = of_mean(conv.weight)
    if conv.bias is not None:
        conv.bias = of_mean(conv.bias)
    conv.out_channels = conv.weight.shape[0]
