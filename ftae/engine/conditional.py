"""The VAEs of ``networks.py``, conditioned on labels (Sohn et al. 2015).

Encoder and decoder both see the label as a one-hot code: appended to pixels or latents where the layer is
linear, as constant planes beside the channels where it is a convolution. An image without a label (-1)
has a code of zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.autoencoder import Draw, Encoding
from ftae.engine.networks import ConvVaeNet, MlpVaeNet, conv_block
from ftae.errors import FtaeError


class MlpCvaeNet(MlpVaeNet):
    """Fully connected conditional VAE; latents (B, latent_dim)."""

    def __init__(
        self, *, channels_in: int, resolution: int, num_classes: int, hidden: int = 400, latent_dim: int = 20
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, hidden=hidden, latent_dim=latent_dim)
        self.num_classes = num_classes
        self.hidden = nn.Linear(self.hidden.in_features + num_classes, hidden)
        self.decoder_hidden = nn.Linear(latent_dim + num_classes, hidden)

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        return super().encode(torch.cat([images.flatten(1), one_hot(labels, self.num_classes)], dim=1), None, draw)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return super().decode(torch.cat([latents, one_hot(labels, self.num_classes)], dim=1), None)


class ConvCvaeNet(ConvVaeNet):
    """Convolutional conditional VAE around a linear bottleneck; latents (B, latent_dim)."""

    def __init__(
        self,
        *,
        channels_in: int,
        resolution: int,
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

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        planes = one_hot(labels, self.num_classes)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return super().encode(torch.cat([images, planes], dim=1), None, draw)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return super().decode(torch.cat([latents, one_hot(labels, self.num_classes)], dim=1), None)


def one_hot(labels: Tensor | None, num_classes: int) -> Tensor:
    """fp32 (B, num_classes); zeros for the label -1.

    Raises:
        FtaeError: there are no labels at all.
    """
    if labels is None:
        raise FtaeError(
            "the model is conditioned on labels and these images have none: put those of each class into a sub-folder"
        )
    codes = F.one_hot(labels.clamp_min(0), num_classes).float()
    return codes * (labels >= 0).unsqueeze(1)
