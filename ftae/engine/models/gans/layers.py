"""Layers that the networks of StyleGAN2 share, and the sides of the images inside a network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import Size, shown

SLOPE = 0.2  # of the leaky ReLUs
FIRST_SIDE, SMALLEST_RESOLUTION = 4, 8


def sides(resolution: int | Size) -> list[int]:
    """4, 8, 16, ..., ``resolution``.

    Raises:
        FtaeError: ``resolution`` is no power of two, or less than 8.
    """
    if isinstance(resolution, tuple) or resolution < SMALLEST_RESOLUTION or resolution & (resolution - 1):
        raise FtaeError(f"resolution must be a power of two from {SMALLEST_RESOLUTION} on, got {shown(resolution)}")
    return [2**level for level in range(FIRST_SIDE.bit_length() - 1, resolution.bit_length())]


def widths(resolution: int, channel_base: int, channel_max: int) -> dict[int, int]:
    """Channels by side: ``channel_base`` / side, at most ``channel_max``.

    Raises:
        FtaeError: none are left at ``resolution``, or ``sides`` refuses it.
    """
    if channel_base < resolution:
        raise FtaeError(
            f"channel_base must be at least the resolution, {resolution}, got {channel_base}: "
            "an image side r has channel_base / r channels"
        )
    return {side: min(channel_base // side, channel_max) for side in sides(resolution)}


def activate(x: Tensor) -> Tensor:
    """A leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, SLOPE) * 2**0.5


class Dense(nn.Module):
    """A linear layer with an equalised learning rate (Karras et al. 2018): weights are drawn from N(0, 1) and scaled.

    ``lr_multiplier``: the share of the learning rate that the layer learns with; it is part of the stored weights.
    """

    def __init__(self, before: int, after: int, *, bias: float = 0.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((after,), bias))
        self.scale = lr_multiplier * before**-0.5
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)


class Resampling(nn.Module):
    """A module with the FIR filter [1, 3, 3, 1] in two dimensions, which each file of StyleGAN2 stores."""

    resample_filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("resample_filter", torch.outer(taps, taps) / taps.sum().square())

    def smooth(self, x: Tensor, padding: int) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3), each channel filtered."""
        return _Fir.apply(x, self.resample_filter, padding)  # type: ignore[no-any-return]


class _Fir(torch.autograd.Function):
    """A depthwise convolution, whose gradient is one, too.

    The second gradient that torch derives by itself takes up to seven times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.padding = padding
        channels = x.shape[1]
        kernels = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
        return F.conv2d(x, kernels, padding=padding, groups=channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kernel,) = ctx.saved_tensors
        padding = kernel.shape[0] - 1 - ctx.padding
        return _Fir.apply(gradient, kernel.flip(0, 1), padding), None, None


def doubled(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W) by the filter [1, 3, 3, 1]; images are zero beyond their borders."""
    # Inside the image this filter is bilinear interpolation.
    padded = F.interpolate(F.pad(images, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return padded[..., 2:-2, 2:-2]
