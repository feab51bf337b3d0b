"""The built-in fully connected and convolutional networks, plain and conditioned on labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn, Posterior, StageChain
from ftae.engine.models.staged_model import Stage
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import Size, size_of


class ChainedNet:
    """A network whose stages form one chain; ``encode``, ``decode`` and ``stages`` follow from it."""

    def chain(self) -> StageChain:
        """The stages, image to image, and the bottleneck between them."""
        raise NotImplementedError

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        """Images (B, C, H, W) in [0, 1] to latents; without ``noise`` to the mode of the posterior."""
        return self.chain().encode(images, labels, noise)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Latents to images (B, C, H, W) in [0, 1]."""
        return self.chain().decode(latents, labels)

    def stages(self) -> list[Stage]:
        """All stages in data-flow order."""
        return self.chain().stages


def check_multiple(resolution: int | Size, factor: int, reason: str) -> None:
    """Raise FtaeError where a side is no multiple of ``factor``; ``reason``: where it comes from."""
    height, width = size_of(resolution)
    if height % factor or width % factor:
        got = height if height == width else [height, width]
        raise FtaeError(f"resolution must be a multiple of {factor} ({reason}), got {got}")


class MlpVaeNet(ChainedNet, nn.Module):
    """Fully connected VAE (Kingma & Welling 2013): pixels - hidden - latent_dim, and back."""

    def __init__(self, *, channels_in: int, resolution: int | Size, hidden: int = 400, latent_dim: int = 20) -> None:
        super().__init__()
        self.shape = (channels_in, *size_of(resolution))
        pixels = math.prod(self.shape)
        self.hidden = nn.Linear(pixels, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.logvar = nn.Linear(hidden, latent_dim)
        self.decoder_hidden = nn.Linear(latent_dim, hidden)
        self.out = nn.Linear(hidden, pixels)

    def chain(self) -> StageChain:
        return StageChain(
            (
                Stage("encoder.hidden", "encoder", (self.hidden,), run=self._encode_hidden),
                Stage("bottleneck", "bottleneck", (self.mean, self.logvar), run=self._moments),
            ),
            gaussian,
            (
                Stage("decoder.hidden", "decoder", (self.decoder_hidden,), run=self._decode_hidden),
                Stage("decoder.out", "decoder", (self.out,), run=self._pixels),
            ),
        )

    def _encode_hidden(self, images: Tensor) -> Tensor:
        return torch.relu(self.hidden(images.flatten(1)))

    def _moments(self, features: Tensor) -> Tensor:
        return torch.cat([self.mean(features), self.logvar(features)], dim=1)

    def _decode_hidden(self, latents: Tensor) -> Tensor:
        return torch.relu(self.decoder_hidden(latents))

    def _pixels(self, features: Tensor) -> Tensor:
        return torch.unflatten(torch.sigmoid(self.out(features)), 1, self.shape)


class ConvNet(nn.Module):
    """Encoder of strided convolutions and a decoder that mirrors it; widths double at each level, up to fourfold.

    Height and width must be multiples of ``2 ** depth``.
    """

    def __init__(self, *, channels_in: int, resolution: int | Size, channels: int, depth: int) -> None:
        super().__init__()
        check_multiple(resolution, 2**depth, "2**depth")
        self.widths = widths = [channels * min(2**level, 4) for level in range(depth)]
        height, width = size_of(resolution)
        self.inner = (widths[-1], height // 2**depth, width // 2**depth)
        self.down = nn.ModuleList(
            conv_block(nn.Conv2d(before, width, 4, stride=2, padding=1), width)
            for before, width in zip([channels_in, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), conv_block(nn.Conv2d(width, after, 3, padding=1), after))
            for width, after in zip(reversed(widths), [*reversed(widths[:-1]), channels], strict=True)
        )
        self.out = nn.Conv2d(channels, channels_in, 3, padding=1)

    def _down(self, features: Tensor) -> Tensor:
        for block in self.down:
            features = block(features)
        return features

    def _up(self, features: Tensor) -> Tensor:
        for block in self.up:
            features = block(features)
        return self._pixels(features)

    def _pixels(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.out(features))

    def _encoder(self) -> list[Stage]:
        """The encoder stages, without the bottleneck."""
        return [Stage(f"encoder.down.{i}", "encoder", (block,), run=block) for i, block in enumerate(self.down)]

    def _decoder(self, first: Stage) -> tuple[Stage, ...]:
        ups = (Stage(f"decoder.up.{i}", "decoder", (block,), run=block) for i, block in enumerate(self.up))
        return first, *ups, Stage("decoder.out", "decoder", (self.out,), run=self._pixels)


class ConvAeNet(ChainedNet, ConvNet):
    """Fully convolutional autoencoder; latents (B, latent_channels, H / 2**depth, W / 2**depth)."""

    def __init__(
        self, *, channels_in: int, resolution: int | Size, channels: int = 32, depth: int = 2, latent_channels: int = 8
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        self.to_latents = nn.Conv2d(self.inner[0], latent_channels, 1)
        self.from_latents = conv_block(nn.Conv2d(latent_channels, self.inner[0], 3, padding=1), self.inner[0])

    def chain(self) -> StageChain:
        last = Stage("bottleneck", "bottleneck", (self.to_latents,), run=self.to_latents)
        first = Stage("decoder.in", "decoder", (self.from_latents,), run=self.from_latents)
        return StageChain((*self._encoder(), last), deterministic, self._decoder(first))


class ConvVaeNet(ChainedNet, ConvNet):
    """Convolutional VAE around a linear bottleneck; latents (B, latent_dim)."""

    def __init__(
        self, *, channels_in: int, resolution: int | Size, channels: int = 32, depth: int = 2, latent_dim: int = 32
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        self.mean = nn.Linear(math.prod(self.inner), latent_dim)
        self.logvar = nn.Linear(math.prod(self.inner), latent_dim)
        self.from_latents = nn.Linear(latent_dim, math.prod(self.inner))

    def chain(self) -> StageChain:
        last = Stage("bottleneck", "bottleneck", (self.mean, self.logvar), run=self._moments)
        first = Stage("decoder.in", "decoder", (self.from_latents,), run=self._features)
        return StageChain((*self._encoder(), last), gaussian, self._decoder(first))

    def _moments(self, features: Tensor) -> Tensor:
        features = features.flatten(1)
        return torch.cat([self.mean(features), self.logvar(features)], dim=1)

    def _features(self, latents: Tensor) -> Tensor:
        return torch.unflatten(torch.relu(self.from_latents(latents)), 1, self.inner)


def gaussian(moments: Tensor, noise: NoiseFn | None) -> Encoding:
    """The bottleneck of a VAE: mean and logvar are the halves of (B, 2 * C, ...)."""
    mean, logvar = moments.chunk(2, dim=1)
    return Encoding.of(Posterior(mean, logvar), noise)


def deterministic(encoded: Tensor, noise: NoiseFn | None) -> Encoding:
    """The bottleneck of an autoencoder without a posterior."""
    return Encoding(encoded)


def conv_block(conv: nn.Conv2d, width: int) -> nn.Sequential:
    """A convolution to ``width`` channels with group normalisation and an activation."""
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(8, width), width), nn.SiLU())


class MlpCvaeNet(MlpVaeNet):
    """Fully connected conditional VAE; latents (B, latent_dim)."""

    def __init__(
        self, *, channels_in: int, resolution: int | Size, num_classes: int, hidden: int = 400, latent_dim: int = 20
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, hidden=hidden, latent_dim=latent_dim)
        self.num_classes = num_classes
        self.hidden = nn.Linear(self.hidden.in_features + num_classes, hidden)
        self.decoder_hidden = nn.Linear(latent_dim + num_classes, hidden)

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        return super().encode(torch.cat([images.flatten(1), one_hot(labels, self.num_classes)], dim=1), None, noise)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return super().decode(torch.cat([latents, one_hot(labels, self.num_classes)], dim=1), None)


class ConvCvaeNet(ConvVaeNet):
    """Convolutional conditional VAE around a linear bottleneck; latents (B, latent_dim)."""

    def __init__(
        self,
        *,
        channels_in: int,
        resolution: int | Size,
        num_classes: int,
        channels: int = 32,
        depth: int = 2,
        latent_dim: int = 32,
    ) -> None:
        super().__init__(
            channels_in=channels_in, resolution=resolution, channels=channels, depth=depth, latent_dim=latent_dim
        )
        self.num_classes = num_classes
        self.down[0] = conv_block(nn.Conv2d(channels_in + num_classes, channels, 4, stride=2, padding=1), channels)
        self.from_latents = nn.Linear(latent_dim + num_classes, self.from_latents.out_features)

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        planes = one_hot(labels, self.num_classes)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return super().encode(torch.cat([images, planes], dim=1), None, noise)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return super().decode(torch.cat([latents, one_hot(labels, self.num_classes)], dim=1), None)


def one_hot(labels: Tensor | None, num_classes: int) -> Tensor:
    """fp32 (B, num_classes); zeros for the label -1.

    Raises:
        FtaeError: the images have no labels.
    """
    if labels is None:
        raise FtaeError(
            "the model is conditioned on labels and these images have none: put those of each class into a sub-folder"
        )
    codes = F.one_hot(labels.clamp_min(0), num_classes).float()
    return codes * (labels >= 0).unsqueeze(1)
