"""A PatchGAN: for every patch of an image, whether it looks like one of a real image."""

import math
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ftae.engine.models.weights import load_state
from ftae.engine.rng import keep_random_state
from ftae.specs.finetune.networks import DiscriminatorSpec
from ftae.specs.finetune.run import FinetuneSpec

SLOPE = 0.2  # of the leaky ReLUs


class PatchGan(nn.Sequential):
    """The PatchGAN of Isola et al. (2017): ``depth`` strided 4x4 convolutions, then two that keep the size.

    Images (B, C, H, W), at least ``3 * 2**depth`` pixels a side -> logits (B, 1, h, w), high where a patch looks
    real. The width doubles with every convolution, up to eight times. An image's logits do not depend on the others.
    """

    def __init__(self, channels_in: int, spec: DiscriminatorSpec) -> None:
        widths = [channels_in, *(spec.channels * min(2**level, 8) for level in range(spec.depth + 1))]
        layers: list[nn.Module] = []
        for level, (before, width) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(before, width, 4, stride=2 if level < spec.depth else 1, padding=1)
            layers.append(spectral_norm(conv) if spec.norm == "spectral" else conv)
            if spec.norm == "group" and level > 0:
                layers.append(nn.GroupNorm(math.gcd(8, width), width))
            layers.append(nn.LeakyReLU(SLOPE))
        last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        super().__init__(*layers, spectral_norm(last) if spec.norm == "spectral" else last)

    def judge(self, images: Tensor, *, bf16: bool) -> Tensor:
        """The logits in fp32; computed in bfloat16 where asked for."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = self(images)
        return logits.float()


def build_discriminator(spec: FinetuneSpec) -> PatchGan:
    """The discriminator of ``spec`` on the CPU. New weights are drawn from ``spec.seed``, and nothing else is drawn.

    Raises:
        FtaeError: its pretrained weights cannot be found or do not fit.
    """
    with keep_random_state():
        torch.manual_seed(spec.seed)
        net = PatchGan(spec.data.channels, spec.discriminator)
    if spec.discriminator.pretrained is not None:
        load_state(net, Path(spec.discriminator.pretrained).expanduser(), "discriminator.pretrained")
    return net
