"""Modules as they are found in other people's code, none of them written for ftae: colour images of 16 pixels."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.distributions import Independent, Normal


def encoder(channels: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, channels, 4, 2, 1))


def decoder() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(2, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1))


class Children(nn.Module):
    """Nothing but two children."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()


class Gaussian(nn.Module):
    """An encoder that returns a distribution of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = encoder(4)

    def forward(self, images: Tensor) -> Any:
        mean, scale = self.layers(images).chunk(2, dim=1)
        return Independent(Normal(mean, nn.functional.softplus(scale) + 1e-3), 3)


class GaussianChildren(nn.Module):
    """Children alone, whose encoder returns a distribution and whose decoder a dict; and a parameter beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.encoder, self.decoder = Gaussian(), DictDecoder()


class DictDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = decoder()

    def forward(self, latents: Tensor) -> dict[str, Any]:
        return {"recon": self.layers(latents), "latents": latents, "steps": 3}


class TupleForward(Children):
    """The VAE of many tutorials: ``forward`` returns (reconstruction, mu, logvar)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))  # a parameter of its own
        self.fc_mu, self.fc_var = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Any:
        features = self.encoder(images)
        mu, logvar = self.fc_mu(features), self.fc_var(features)
        latents = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.decoder(latents) * self.gain, mu, logvar


class ListForward(TupleForward):
    """[reconstruction, input, mu, logvar], as PyTorch-VAE returns."""

    def forward(self, images: Tensor) -> Any:
        reconstruction, *others = super().forward(images)
        return [reconstruction, images, *others]


class DictForward(TupleForward):
    def forward(self, images: Tensor) -> Any:
        reconstruction, mu, logvar = super().forward(images)
        return {"input": images, "x_hat": reconstruction, "mu": mu, "logvar": logvar}


@dataclass
class Output:
    loss: Tensor
    reconstruction: Tensor


class ObjectForward(TupleForward):
    def forward(self, images: Tensor) -> Any:
        reconstruction, *_ = super().forward(images)
        return Output((reconstruction - images).square().mean(), reconstruction)


class Moments(NamedTuple):
    mean: Tensor
    logvar: Tensor


class NamedMoments(Children):
    """encode and decode that return objects."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(4)

    def encode(self, images: Tensor) -> Any:
        return Moments(*self.encoder(images).chunk(2, dim=1))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(latents))


class DictMoments(NamedMoments):
    def encode(self, images: Tensor) -> Any:
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return {"z": mean + torch.exp(0.5 * logvar), "mu": mean, "log_var": logvar}


class Quantized(Children):
    """taming's VQModel: ``encode`` returns codes, a loss and more."""

    def encode(self, images: Tensor) -> Any:
        z = self.encoder(images)
        return z + (z.round() - z).detach(), (z - z.round()).square().mean(), (None, None, z.argmax(1))

    def decode(self, codes: Tensor) -> Any:
        return self.decoder(codes), torch.zeros(())


TINY: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 2,
    "norm_num_groups": 4,
}


def diffusers_kl() -> nn.Module:
    """``encode`` returns an output with a ``latent_dist``, ``decode`` one with a ``sample``."""
    return AutoencoderKL(**TINY)


class KlForward(nn.Module):
    """``forward`` returns an output of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL(**TINY)

    def forward(self, images: Tensor) -> Any:
        return self.vae(images)


def diffusers_vq() -> nn.Module:
    """``encode`` returns an output with ``latents``."""
    return VQModel(**TINY, num_vq_embeddings=16)
