"""The residual discriminator of StyleGAN2 (Karras et al. 2020). Parameters have the names of NVIDIA's PyTorch files."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.gans.layers import FIRST_SIDE, Dense, Resampling, activate, widths
from ftae.engine.models.staged_model import Stage

GROUP = 4  # images that the minibatch standard deviation compares
EPSILON = 1e-8


class StyleGan2DiscriminatorNet(nn.Module):
    """Images (B, C, R, R) in [-1, 1] to logits (B, 1): high for images of the data. Twice differentiable.

    Raises:
        FtaeError: ``resolution`` is no power of two from 8 on, or exceeds ``channel_base``.
    """

    def __init__(self, *, channels_in: int, resolution: int, channel_base: int = 16384, channel_max: int = 512) -> None:
        super().__init__()
        channels = widths(resolution, channel_base, channel_max)
        for side in reversed(channels):
            if side > FIRST_SIDE:
                in_front = channels_in if side == resolution else None
                self.add_module(f"b{side}", DiscriminatorBlock(channels[side], channels[side // 2], in_front))
        self.b4 = Epilogue(channels[FIRST_SIDE])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1)."""
        x = images
        for block in self.children():
            x = block(x)
        return x

    def stages(self) -> list[Stage]:
        """All stages in data-flow order, from fine to coarse."""
        found = []
        for name, block in self.named_children():
            if isinstance(block, DiscriminatorBlock):
                if block.fromrgb is not None:
                    found.append(Stage("from_rgb", "discriminator", (block.fromrgb,)))
                parts = (block.conv0, block.conv1, block.skip)
                found.append(Stage(f"block.{name[1:]}", "discriminator", parts))
        return [*found, Stage("epilogue", "discriminator", (self.b4,))]


class EqualizedConv(Resampling):
    """A convolution with an equalised learning rate, at a stride of 2 behind the filter where it halves."""

    def __init__(self, before: int, after: int, kernel: int, *, bias: bool = True, halves: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale = (before * kernel**2) ** -0.5
        self.padding = kernel // 2
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if not self.halves:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        return F.conv2d(self.smooth(x, padding=self.padding + 1), weight, self.bias, stride=2)


class DiscriminatorBlock(Resampling):
    """(B, before, H, W) to (B, after, H / 2, W / 2): two convolutions beside a linear path.

    ``image_channels``: the block takes images of so many channels.
    """

    def __init__(self, before: int, after: int, image_channels: int | None) -> None:
        super().__init__()
        self.fromrgb = None if image_channels is None else EqualizedConv(image_channels, before, 1)
        self.conv0 = EqualizedConv(before, before, 3)
        self.conv1 = EqualizedConv(before, after, 3, halves=True)
        self.skip = EqualizedConv(before, after, 1, bias=False, halves=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x = activate(self.fromrgb(x))
        through = activate(self.conv1(activate(self.conv0(x))))
        both: Tensor = self.skip(x) + through
        return both * 2**-0.5


class Epilogue(nn.Module):
    """(B, width, 4, 4) to logits (B, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = EqualizedConv(width + 1, width, 3)
        self.fc = Dense(width * FIRST_SIDE**2, width)
        self.out = Dense(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.conv(with_deviation(x)))
        logits: Tensor = self.out(activate(self.fc(x.flatten(1))))
        return logits


def with_deviation(x: Tensor) -> Tensor:
    """Add a channel to (B, C, H, W): the standard deviation within a group of images, the mean over all features.

    Every ``groups``-th image belongs to one group, so that groups have 4 images, or 3 and less where 4 does not divide
    the batch. An image alone differs by nothing.
    """
    groups = math.ceil(len(x) / GROUP)
    features = x.float()
    variances = [features[i::groups].var(dim=0, correction=0) for i in range(groups)]
    deviations = (torch.stack(variances) + EPSILON).sqrt().mean(dim=(1, 2, 3)).to(x.dtype)
    channel = deviations.repeat(GROUP)[: len(x), None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)
