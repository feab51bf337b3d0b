"""The discriminator: a PatchGAN, which says for every patch of an image whether it looks like a real one."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.engine.models.weights import load_state, save_state
from ftae.engine.process import keep_random_state
from ftae.specs.finetune.networks import DiscriminatorSpec
from ftae.specs.finetune.run import FinetuneSpec

SLOPE = 0.2  # of the leaky ReLUs


class Discriminator(StagedModel):
    """The PatchGAN of Isola et al. (2017): ``depth`` strided 4x4 convolutions, then two that keep the size.

    Images (B, C, H, W), at least ``3 * 2**depth`` pixels a side -> logits (B, 1, h, w), high where a patch looks
    real. The width doubles with every convolution, up to eight times. Images of a batch do not affect each other.
    """

    def __init__(self, spec: DiscriminatorSpec, channels: int) -> None:
        widths = [channels, *(spec.channels * min(2**level, 8) for level in range(spec.depth + 1))]
        blocks = [_block(spec, before, width, level) for level, (before, width) in enumerate(pairwise(widths))]
        blocks.append([_normed(nn.Conv2d(widths[-1], 1, 4, padding=1), spec)])
        net = nn.Sequential(*(layer for block in blocks for layer in block))
        stages = [Stage(f"conv_{i}", "discriminator", tuple(block)) for i, block in enumerate(blocks)]
        super().__init__(net, stages, save=lambda folder: save_state(net, folder))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def judge(self, images: Tensor, *, bf16: bool) -> Tensor:
        """The logits in fp32; with ``bf16`` the network computes in bfloat16."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = self(images)
        return logits.float()


def _block(spec: DiscriminatorSpec, before: int, width: int, level: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, width, 4, stride=2 if level < spec.depth else 1, padding=1)
    norm = [nn.GroupNorm(math.gcd(8, width), width)] if spec.norm == "group" and level > 0 else []
    return [_normed(conv, spec), *norm, nn.LeakyReLU(SLOPE)]


def _normed(conv: nn.Conv2d, spec: DiscriminatorSpec) -> nn.Module:
    return spectral_norm(conv) if spec.norm == "spectral" else conv


def build_discriminator(spec: DiscriminatorSpec, *, channels: int, seed: int) -> Discriminator:
    """A discriminator of images with ``channels``, on the CPU.

    New weights are drawn from ``seed``; the random generators of the process are left as they were.

    Raises:
        FtaeError: the pretrained weights cannot be found or do not fit.
    """
    with keep_random_state():
        torch.manual_seed(seed)
        discriminator = Discriminator(spec, channels)
    if spec.pretrained is not None:
        load_state(discriminator.net, Path(spec.pretrained).expanduser(), "discriminator.pretrained")
    return discriminator


class TwoDiscriminators(StagedModel):
    """One discriminator for each domain. Images alternate between them: of B, of A, of B, ...

    Their logits alternate alike, so that a mean over all is the mean of both domains.
    """

    def __init__(self, a: Discriminator, b: Discriminator) -> None:
        net = nn.ModuleDict({"a": a.net, "b": b.net})
        stages = [
            replace(stage, name=f"{name}.{stage.name}", line=name)
            for name, one in (("a", a), ("b", b))
            for stage in one.stages
        ]
        super().__init__(net, stages, save=lambda folder: save_state(net, folder))

    def forward(self, images: Tensor) -> Tensor:
        b, a = apart(images)
        return alternating(self.net["b"](b), self.net["a"](a))  # type: ignore[index]

    def judge(self, images: Tensor, *, bf16: bool) -> Tensor:
        """As ``Discriminator.judge``."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = self(images)
        return logits.float()


def alternating(first: Tensor, second: Tensor) -> Tensor:
    """(2 B, ...) of two (B, ...): a row of the one, a row of the other."""
    return torch.stack([first, second], dim=1).flatten(0, 1)


def apart(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What ``alternating`` joined."""
    return rows[0::2], rows[1::2]


def discriminator_of(spec: FinetuneSpec) -> Discriminator | TwoDiscriminators:
    """The discriminator of a run, or that of each domain. Raises as ``build_discriminator``."""
    settings, channels = spec.discriminator, spec.discriminator_channels
    if not spec.model.both_ways:
        return build_discriminator(settings, channels=channels, seed=spec.seed)
    new = settings.model_copy(update={"pretrained": None})
    a, b = (build_discriminator(new, channels=channels, seed=seed) for seed in (spec.seed, spec.seed + 1))
    both = TwoDiscriminators(a, b)
    if settings.pretrained is not None:
        load_state(both.net, Path(settings.pretrained).expanduser(), "discriminator.pretrained")
    return both
