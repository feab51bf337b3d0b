"""The discriminator as a staged model: it says whether an image, or each patch of one, looks real."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ftae.engine.models.gans.dcgan import DcganDiscriminatorNet
from ftae.engine.models.gans.stylegan2_discriminator import StyleGan2DiscriminatorNet
from ftae.engine.models.pretrained.file_names import FileNames, NamedInFiles
from ftae.engine.models.pretrained.model_folder import DISCRIMINATOR, DISCRIMINATOR_CONFIG, pretrained_folder, read_json
from ftae.engine.models.pretrained.weights import load_state, save_state
from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.engine.process import keep_random_state
from ftae.errors import FtaeError
from ftae.specs.finetune.discriminator import DiscriminatorSpec
from ftae.specs.finetune.run import FinetuneSpec

SLOPE = 0.2  # of the leaky ReLUs


class Discriminator(StagedModel):
    """A network that gives logits, high where an image looks real: images (B, C, H, W) -> (B, 1, h, w) or (B, 1).

    ``mixes_images``: whether the images of a batch affect each other, so that real ones must come apart from others.
    """

    def __init__(self, net: nn.Module, stages: list[Stage], *, mixes_images: bool) -> None:
        super().__init__(net, stages, save=lambda folder: save_state(net, folder))
        self.mixes_images = mixes_images

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def judge(self, images: Tensor, *, bf16: bool) -> Tensor:
        """The logits in fp32; with ``bf16`` the network computes in bfloat16."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = self(images)
        return logits.float()

    def judge_both(self, real: Tensor, fake: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
        """The logits of real and of other images, in fp32."""
        if self.mixes_images:
            return self.judge(real, bf16=bf16), self.judge(fake, bf16=bf16)
        of_real, of_fake = self.judge(torch.cat([real, fake]), bf16=bf16).chunk(2)
        return of_real, of_fake


def _patch(spec: DiscriminatorSpec, channels: int, resolution: int) -> Discriminator:
    """The PatchGAN of Isola et al. (2017): ``depth`` strided 4x4 convolutions, then two that keep the size.

    Images have at least ``3 * 2**depth`` pixels a side. The width doubles with every convolution, up to eight times.
    Images of a batch do not affect each other.
    """
    widths = [channels, *(spec.channels * min(2**level, 8) for level in range(spec.depth + 1))]
    blocks = [_block(spec, before, width, level) for level, (before, width) in enumerate(pairwise(widths))]
    blocks.append([_normed(nn.Conv2d(widths[-1], 1, 4, padding=1), spec)])
    net = _Patches(*(layer for block in blocks for layer in block))
    stages = [Stage(f"conv_{i}", "discriminator", tuple(block)) for i, block in enumerate(blocks)]
    return Discriminator(net, stages, mixes_images=False)


class _Patches(NamedInFiles, nn.Sequential):
    """The layers of a PatchGAN."""

    def file_names(self) -> FileNames:
        """Each convolution but the first and the last of its authors has a norm behind it, which may do nothing."""
        places = [i for i, layer in enumerate(self) if isinstance(layer, nn.Conv2d)]
        theirs = [0, *(3 * number - 1 for number in range(1, len(places)))]
        modules = {str(ours): f"model.{place}" for ours, place in zip(places, theirs, strict=True)}
        norms = [i for i, layer in enumerate(self) if isinstance(layer, nn.GroupNorm)]
        modules |= {str(ours): f"model.{3 * number}" for number, ours in enumerate(norms, start=1)}
        return FileNames.of_modules(self, modules)


def _block(spec: DiscriminatorSpec, before: int, width: int, level: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, width, 4, stride=2 if level < spec.depth else 1, padding=1)
    norm = _NORMS[spec.norm](width) if level > 0 else []
    return [_normed(conv, spec), *norm, nn.LeakyReLU(SLOPE)]


# By the name in the file: the layers behind a convolution.
_NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "spectral": lambda width: [],  # it is in the convolution
    "group": lambda width: [nn.GroupNorm(math.gcd(8, width), width)],
    "instance": lambda width: [nn.InstanceNorm2d(width)],
}


def _normed(conv: nn.Conv2d, spec: DiscriminatorSpec) -> nn.Module:
    return spectral_norm(conv) if spec.norm == "spectral" else conv


def _dcgan(spec: DiscriminatorSpec, channels: int, resolution: int) -> Discriminator:
    net = DcganDiscriminatorNet(channels_in=channels, resolution=resolution, channels=spec.channels)
    return Discriminator(net, net.stages(), mixes_images=True)


def _stylegan2(spec: DiscriminatorSpec, channels: int, resolution: int) -> Discriminator:
    net = StyleGan2DiscriminatorNet(
        channels_in=channels, resolution=resolution, channel_base=spec.channel_base, channel_max=spec.channel_max
    )
    return Discriminator(net, net.stages(), mixes_images=True)


# The settings, the channels and the side of the images -> a new discriminator.
ARCHITECTURES: dict[str, Callable[[DiscriminatorSpec, int, int], Discriminator]] = {
    "patch": _patch,
    "dcgan": _dcgan,
    "stylegan2": _stylegan2,
}


def build_discriminator(spec: DiscriminatorSpec, *, channels: int, resolution: int, seed: int) -> Discriminator:
    """A discriminator of images with ``channels`` and ``resolution`` pixels a side, on the CPU, with frozen stages.

    New weights are drawn from ``seed``; the random generators of the process are left as they were.

    Raises:
        FtaeError: the pretrained weights cannot be found or do not fit, or ``freeze_depth`` leaves nothing to train.
    """
    return _prepared(_new(spec, channels, resolution, seed), spec)


def _new(spec: DiscriminatorSpec, channels: int, resolution: int, seed: int) -> Discriminator:
    with keep_random_state():
        torch.manual_seed(seed)
        return ARCHITECTURES[spec.architecture](spec, channels, resolution)


def _prepared(discriminator: Discriminator, spec: DiscriminatorSpec) -> Discriminator:
    """With its pretrained weights, and frozen stages."""
    if spec.pretrained is not None:
        _check_options(spec, spec.pretrained)
        load_state(discriminator.net, _weights_file(spec.pretrained), "discriminator.pretrained")
    try:
        discriminator.freeze(spec.freeze_depth, ())
    except FtaeError as error:
        raise FtaeError(f"discriminator: {error}") from error
    return discriminator


class TwoDiscriminators(Discriminator):
    """One discriminator for each domain. Images alternate between them: of B, of A, of B, ...

    Their logits alternate alike, so that a mean over all is the mean of both domains.
    """

    def __init__(self, a: Discriminator, b: Discriminator) -> None:
        stages = [
            replace(stage, name=f"{name}.{stage.name}", line=name)
            for name, one in (("a", a), ("b", b))
            for stage in one.stages
        ]
        super().__init__(_Both({"a": a.net, "b": b.net}), stages, mixes_images=a.mixes_images)

    def forward(self, images: Tensor) -> Tensor:
        b, a = apart(images)
        return alternating(self.net["b"](b), self.net["a"](a))  # type: ignore[index]


class _Both(NamedInFiles, nn.ModuleDict):
    """The networks of both domains."""

    def file_names(self) -> FileNames:
        """The authors of CycleGAN name a discriminator after the translator that it judges, which makes images of B
        from A."""
        return FileNames.of_parts(self, {"b": "netD_A", "a": "netD_B"})


def alternating(first: Tensor, second: Tensor) -> Tensor:
    """(2 B, ...) of two (B, ...): a row of the one, a row of the other."""
    return torch.stack([first, second], dim=1).flatten(0, 1)


def apart(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What ``alternating`` joined."""
    return rows[0::2], rows[1::2]


def discriminator_of(spec: FinetuneSpec) -> Discriminator:
    """The discriminator of a run, or those of both domains in one. Raises as ``build_discriminator``."""
    settings, channels, side = spec.discriminator, spec.discriminator_channels, min(spec.data.size)
    if not spec.model.both_ways:
        return build_discriminator(settings, channels=channels, resolution=side, seed=spec.seed)
    a, b = (_new(settings, channels, side, seed) for seed in (spec.seed, spec.seed + 1))
    return _prepared(TwoDiscriminators(a, b), settings)


def export_discriminator(spec: FinetuneSpec, checkpoint: Path, folder: Path) -> None:
    """Write the discriminator of a checkpoint, if it has one, to the folder of a model.

    Raises:
        FtaeError: it cannot be read, or does not fit ``spec``.
    """
    if not (checkpoint / DISCRIMINATOR).is_file():
        return
    settings = spec.discriminator.model_copy(update={"pretrained": str(checkpoint / DISCRIMINATOR)})
    found = discriminator_of(spec.model_copy(update={"discriminator": settings}))
    save_state(found.net, folder, DISCRIMINATOR)


def _check_options(spec: DiscriminatorSpec, pretrained: str) -> None:
    """Compare the settings with those of a converted discriminator, which has them beside it."""
    folder = pretrained_folder(pretrained)
    if folder is None or not (folder / DISCRIMINATOR_CONFIG).is_file():
        return
    for name, value in read_json(folder / DISCRIMINATOR_CONFIG, "discriminator.pretrained").get("options", {}).items():
        if getattr(spec, name, value) != value:
            raise FtaeError(f"discriminator.{name} is {getattr(spec, name)}, but {pretrained} was built with {value}")


def _weights_file(pretrained: str) -> Path:
    """The file itself, or the one beside the model in a folder that ftae wrote."""
    folder = pretrained_folder(pretrained)
    return Path(pretrained).expanduser() if folder is None else folder / DISCRIMINATOR
