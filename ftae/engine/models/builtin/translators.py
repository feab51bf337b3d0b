"""The translators: the U-Net of Pix2Pix, the residual generator of Johnson et al., and the two of CycleGAN."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn, StageChain
from ftae.engine.models.builtin.conv_mlp import ChainedNet, check_multiple, deterministic
from ftae.engine.models.pretrained.file_names import FileNames, NamedInFiles
from ftae.engine.models.staged_model import Group, Stage
from ftae.specs.finetune.data_spec import Size

SLOPE = 0.2  # of the leaky ReLUs
INIT_STD = 0.02  # of new weights, in both papers
DROPOUT_STAGES = 3  # the first of the decoder
FIRST_BLOCK = 10  # of the residual ones, in the list of all layers of their authors


class UnetTranslatorNet(NamedInFiles, nn.Module):
    """Encoder of strided 4x4 convolutions; each decoder stage also sees the encoder features of its size.

    Images (B, C, H, W) in [-1, 1] in and out; H and W are multiples of ``2 ** depth``. Widths double with each stage,
    up to eight times.
    """

    image_range = (-1.0, 1.0)

    def __init__(
        self, *, channels_in: int, resolution: int | Size, channels: int = 64, depth: int = 4, dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_multiple(resolution, 2**depth, "2**depth")
        widths = [channels * min(2**level, 8) for level in range(depth)]
        self.down = nn.ModuleList(
            _down(before, width, first=level == 0, last=level == depth - 1)
            for level, (before, width) in enumerate(zip([channels_in, *widths], widths, strict=False))
        )
        # All but the first get the features of the encoder beside those of the stage before.
        befores = [widths[-1], *(2 * width for width in reversed(widths[:-1]))]
        afters = [*reversed(widths[:-1]), channels_in]
        self.up = nn.ModuleList(
            _up(before, after, dropout if i < DROPOUT_STAGES else 0.0, last=i == depth - 1)
            for i, (before, after) in enumerate(zip(befores, afters, strict=True))
        )
        _draw_weights(self)

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        """The features of the last encoder stage; they alone do not give the output."""
        return Encoding(self._features(images)[-1])

    def run(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> tuple[Encoding, Tensor]:
        """The encoding, and the translated images."""
        features = self._features(images)
        first, *others = self.up
        x = first(features[-1])
        for block, seen in zip(others, reversed(features[:-1]), strict=True):
            x = block(torch.cat([x, seen], dim=1))
        return Encoding(features[-1]), x

    def stages(self) -> list[Stage]:
        return [
            *(Stage(f"encoder.down.{i}", "encoder", (block,)) for i, block in enumerate(self.down)),
            *(Stage(f"decoder.up.{i}", "decoder", (block,)) for i, block in enumerate(self.up)),
        ]

    def file_names(self) -> FileNames:
        """Theirs nests each level in the one above, and has the features of the encoder before those of the decoder."""
        depth = len(self.down)
        swapped = frozenset(f"up.{i}.1.weight" for i in range(1, depth))
        return FileNames.of_modules(self, dict(_unet_names(depth)), swapped)

    def _features(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for block in self.down:
            features.append(block(features[-1]))
        return features[1:]


def _unet_names(depth: int) -> Iterator[tuple[str, str]]:
    """The modules of a U-Net and their authors' names; the innermost level has no norm on its way down."""
    yield "down.0.0", "model.model.0"
    yield f"up.{depth - 1}.1", "model.model.3"
    for level in range(1, depth):
        theirs, ours = "model.model.1" + ".model.3" * (level - 1), depth - 1 - level
        conv, norm = (3, 4) if level == depth - 1 else (5, 6)
        yield f"down.{level}.1", f"{theirs}.model.1"
        yield f"down.{level}.2", f"{theirs}.model.2"
        yield f"up.{ours}.1", f"{theirs}.model.{conv}"
        yield f"up.{ours}.2", f"{theirs}.model.{norm}"


def _down(before: int, width: int, *, first: bool, last: bool) -> nn.Sequential:
    conv = nn.Conv2d(before, width, 4, stride=2, padding=1)
    activation = [] if first else [nn.LeakyReLU(SLOPE)]
    norm = [] if first or last else [nn.InstanceNorm2d(width, affine=True)]  # the last may have a single pixel
    return nn.Sequential(*activation, conv, *norm)


def _up(before: int, after: int, dropout: float, *, last: bool) -> nn.Sequential:
    conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
    if last:
        return nn.Sequential(nn.ReLU(), conv, nn.Tanh())
    return nn.Sequential(nn.ReLU(), conv, nn.InstanceNorm2d(after, affine=True), nn.Dropout(dropout))


class ResnetTranslatorNet(NamedInFiles, ChainedNet, nn.Module):
    """Two halvings, residual blocks, two doublings; images (B, C, H, W) in [-1, 1], sides multiples of 4."""

    image_range = (-1.0, 1.0)

    def __init__(self, *, channels_in: int, resolution: int | Size, channels: int = 64, blocks: int = 6) -> None:
        super().__init__()
        check_multiple(resolution, 4, "two halvings")
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = _normed(nn.Conv2d(channels_in, channels, 7, padding=3, padding_mode="reflect"), channels)
        self.down = nn.ModuleList(
            _normed(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), 2 * width) for width in widths[:2]
        )
        self.blocks = nn.ModuleList(_Residual(widths[2]) for _ in range(blocks))
        self.up = nn.ModuleList(
            _normed(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1), width // 2)
            for width in reversed(widths[1:])
        )
        self.out = nn.Sequential(nn.Conv2d(channels, channels_in, 7, padding=3, padding_mode="reflect"), nn.Tanh())
        _draw_weights(self)

    def chain(self) -> StageChain:
        encoder = [Stage("encoder.stem", "encoder", (self.stem,), run=self.stem)]
        encoder += [Stage(f"encoder.down.{i}", "encoder", (part,), run=part) for i, part in enumerate(self.down)]
        encoder += [Stage(f"bottleneck.{i}", "bottleneck", (part,), run=part) for i, part in enumerate(self.blocks)]
        decoder = [Stage(f"decoder.up.{i}", "decoder", (part,), run=part) for i, part in enumerate(self.up)]
        last = Stage("decoder.out", "decoder", (self.out,), run=self.out)
        return StageChain(tuple(encoder), deterministic, (*decoder, last))

    def file_names(self) -> FileNames:
        """Theirs is a list of layers, in which paddings, norms and activations count."""
        after = FIRST_BLOCK + len(self.blocks)
        names = {"stem.0": "model.1", "down.0.0": "model.4", "down.1.0": "model.7"}
        for i in range(len(self.blocks)):
            theirs = f"model.{FIRST_BLOCK + i}.conv_block"
            names |= {f"blocks.{i}.path.0.0": f"{theirs}.1", f"blocks.{i}.path.1": f"{theirs}.5"}
        names |= {"up.0.0": f"model.{after}", "up.1.0": f"model.{after + 3}", "out.0": f"model.{after + 7}"}
        return FileNames.of_modules(self, names)


class CycleGanNet(NamedInFiles, nn.Module):
    """Two residual translators of one size (Zhu et al. 2017), which share nothing.

    Images (B, C, H, W) in [-1, 1], sides multiples of 4. Each direction is a line of stages of its own.
    """

    image_range = (-1.0, 1.0)

    def __init__(self, *, channels_in: int, resolution: int | Size, channels: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.ab, self.ba = (
            ResnetTranslatorNet(channels_in=channels_in, resolution=resolution, channels=channels, blocks=blocks)
            for _ in range(2)
        )

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        """The features of A before those stages that make B of them."""
        return self.ab.encode(images, labels, noise)

    def run(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> tuple[Encoding, Tensor]:
        """The features of images of A, and the images that they become in B."""
        encoding = self.encode(images, labels, noise)
        return encoding, self.ab.decode(encoding.latents, labels)

    def reverse(self, images: Tensor) -> Tensor:
        """Images of B, as they are in A."""
        return self.ba.decode(self.ba.encode(images, None, None).latents, None)

    def stages(self) -> list[Stage]:
        directions: tuple[tuple[Group, ResnetTranslatorNet], ...] = (("ab", self.ab), ("ba", self.ba))
        return [
            replace(stage, name=f"{name}.{stage.name}", group=name, line=name, run=None)
            for name, net in directions
            for stage in net.stages()
        ]

    def file_names(self) -> FileNames:
        return FileNames.of_parts(self, {"ab": "netG_A", "ba": "netG_B"})


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect") for _ in range(2))
        self.path = nn.Sequential(_normed(first, width), second, nn.InstanceNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.path(features)
        return added


def _normed(conv: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.InstanceNorm2d(width), nn.ReLU())


def _draw_weights(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, INIT_STD)
