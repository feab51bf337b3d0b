"""ftae's own small networks. Images lie in [0, 1]; every decoder ends in a sigmoid."""

import math

import torch
from torch import Tensor, nn

from ftae.engine.autoencoder import Draw, Encoding, Posterior, Stage
from ftae.errors import FtaeError


class MlpVaeNet(nn.Module):
    """Fully connected VAE (Kingma & Welling 2013): pixels - hidden - latent_dim, and back."""

    def __init__(self, *, channels_in: int, resolution: int, hidden: int = 400, latent_dim: int = 20) -> None:
        super().__init__()
        self.shape = (channels_in, resolution, resolution)
        pixels = math.prod(self.shape)
        self.hidden = nn.Linear(pixels, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.logvar = nn.Linear(hidden, latent_dim)
        self.decoder_hidden = nn.Linear(latent_dim, hidden)
        self.out = nn.Linear(hidden, pixels)

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        features = torch.relu(self.hidden(images.flatten(1)))
        return Encoding.of(Posterior(self.mean(features), self.logvar(features)), draw)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        features = torch.relu(self.decoder_hidden(latents))
        return torch.unflatten(torch.sigmoid(self.out(features)), 1, self.shape)

    def stages(self) -> list[Stage]:
        return [
            Stage("encoder.hidden", "encoder", (self.hidden,)),
            Stage("bottleneck", "bottleneck", (self.mean, self.logvar)),
            Stage("decoder.hidden", "decoder", (self.decoder_hidden,)),
            Stage("decoder.out", "decoder", (self.out,)),
        ]


class ConvNet(nn.Module):
    """Strided-convolution encoder and its mirror; the width doubles at every level, up to four times.

    ``resolution`` must be a multiple of ``2 ** depth``.
    """

    def __init__(self, *, channels_in: int, resolution: int, channels: int, depth: int) -> None:
        super().__init__()
        if resolution % 2**depth:
            raise FtaeError(f"resolution must be a multiple of {2**depth} (2**depth), got {resolution}")
        self.widths = widths = [channels * min(2**level, 4) for level in range(depth)]
        self.inner = (widths[-1], resolution // 2**depth, resolution // 2**depth)
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
        return torch.sigmoid(self.out(features))

    def _stages(self, bottleneck: tuple[nn.Module, ...], decoder_in: nn.Module) -> list[Stage]:
        return [
            *(Stage(f"encoder.down.{i}", "encoder", (block,)) for i, block in enumerate(self.down)),
            Stage("bottleneck", "bottleneck", bottleneck),
            Stage("decoder.in", "decoder", (decoder_in,)),
            *(Stage(f"decoder.up.{i}", "decoder", (block,)) for i, block in enumerate(self.up)),
            Stage("decoder.out", "decoder", (self.out,)),
        ]


class ConvAeNet(ConvNet):
    """Fully convolutional autoencoder; latents (B, latent_channels, H / 2**depth, W / 2**depth)."""

    def __init__(
        self, *, channels_in: int, resolution: int, channels: int = 32, depth: int = 2, latent_channels: int = 8
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        self.to_latents = nn.Conv2d(self.inner[0], latent_channels, 1)
        self.from_latents = conv_block(nn.Conv2d(latent_channels, self.inner[0], 3, padding=1), self.inner[0])

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        return Encoding(self.to_latents(self._down(images)))

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self._up(self.from_latents(latents))

    def stages(self) -> list[Stage]:
        return self._stages((self.to_latents,), self.from_latents)


class ConvVaeNet(ConvNet):
    """Convolutional VAE around a linear bottleneck; latents (B, latent_dim)."""

    def __init__(
        self, *, channels_in: int, resolution: int, channels: int = 32, depth: int = 2, latent_dim: int = 32
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        self.mean = nn.Linear(math.prod(self.inner), latent_dim)
        self.logvar = nn.Linear(math.prod(self.inner), latent_dim)
        self.from_latents = nn.Linear(latent_dim, math.prod(self.inner))

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        features = self._down(images).flatten(1)
        return Encoding.of(Posterior(self.mean(features), self.logvar(features)), draw)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self._up(torch.unflatten(torch.relu(self.from_latents(latents)), 1, self.inner))

    def stages(self) -> list[Stage]:
        return self._stages((self.mean, self.logvar), self.from_latents)


def conv_block(conv: nn.Conv2d, width: int) -> nn.Sequential:
    """A convolution to ``width`` channels, normalised in groups of them, activated."""
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(8, width), width), nn.SiLU())
