"""Modules as a user may write them, for tests that name them in ``model.family``."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Vae(nn.Module):
    """Spatial latents, and all that makes training mode different: dropout, batch statistics, noise."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU()),
        )
        self.mean = nn.Conv2d(width, 2, 1)
        self.logvar = nn.Conv2d(width, 2, 1)
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(2, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh()),
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            images = images + 0.1 * random.gauss(0, 1) + 0.1 * np.random.standard_normal() + 0.1 * torch.randn(())
        features = self.encoder(images)
        return self.mean(features), self.logvar(features)

    def decode(self, latents: Tensor) -> Any:
        return self.decoder(latents)


class ForwardAlone(nn.Module):
    """Neither encode nor decode, and a view() that needs contiguous activations."""

    def __init__(self) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm1d(64, affine=False)
        self.dropout = nn.Dropout(0.1)
        self.code = nn.Linear(64, 8)
        self.decode_linear = nn.Linear(8, 768)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.encode_conv(images))
        features = self.dropout(self.norm(features.view(len(images), -1)))
        return torch.sigmoid(self.decode_linear(self.code(features))).view(-1, 3, 16, 16)


def not_a_module() -> str:
    return "a string"
