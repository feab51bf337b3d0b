"""The networks of DCGAN (Radford et al. 2015)."""

from itertools import pairwise

from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.engine.models.gans.layers import FIRST_SIDE, SLOPE, sides
from ftae.engine.models.staged_model import Stage

INIT_STD = 0.02  # of new weights
MOST_DOUBLINGS = 3  # of the width, which the paper's images of 64 pixels need


class DcganGeneratorNet(nn.Module):
    """z (B, latent_dim) to images (B, C, R, R) in [-1, 1]: transposed convolutions with batch norms.

    The last features have ``channels`` channels; each stage before has twice as many, at most 8 times.

    Raises:
        FtaeError: ``resolution`` is no power of two from 8 on.
    """

    image_range = (-1.0, 1.0)

    def __init__(self, *, channels_in: int, resolution: int, latent_dim: int = 100, channels: int = 64) -> None:
        super().__init__()
        self.noise_dim = latent_dim
        self.sides = sides(resolution)
        widths = list(reversed(_widths(resolution, channels)))
        blocks = [_up(latent_dim, widths[0], stride=1)]
        blocks += [_up(before, after, stride=2) for before, after in pairwise(widths)]
        last = nn.ConvTranspose2d(widths[-1], channels_in, 4, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList([*blocks, nn.Sequential(last, nn.Tanh())])
        _draw_weights(self)

    def encode(self, z: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None) -> Encoding:
        """The latents are z (B, latent_dim) itself."""
        return Encoding(z)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z (B, latent_dim), standard normal, to images (B, C, R, R)."""
        x = z[:, :, None, None]
        for block in self.blocks:
            x = block(x)
        return x

    def stages(self) -> list[Stage]:
        """All stages in data-flow order, from coarse to fine."""
        return [
            Stage(f"synthesis.{side}", "synthesis", (block,))
            for side, block in zip(self.sides, self.blocks, strict=True)
        ]


class DcganDiscriminatorNet(nn.Module):
    """Images (B, C, R, R) in [-1, 1] to logits (B, 1): the mirror of the generator, without a norm in its first stage.

    Raises:
        FtaeError: ``resolution`` is no power of two from 8 on.
    """

    def __init__(self, *, channels_in: int, resolution: int, channels: int = 64) -> None:
        super().__init__()
        self.sides = sides(resolution)
        widths = _widths(resolution, channels)
        blocks = [_down(channels_in, widths[0], normed=False)]
        blocks += [_down(before, after, normed=True) for before, after in pairwise(widths)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(widths[-1], 1, FIRST_SIDE, bias=False)])
        _draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1)."""
        x = images
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)

    def stages(self) -> list[Stage]:
        """All stages in data-flow order, from fine to coarse."""
        *blocks, last = self.blocks
        named = zip(reversed(self.sides), blocks, strict=False)
        found = [Stage(f"block.{side}", "discriminator", (block,)) for side, block in named]
        return [*found, Stage("epilogue", "discriminator", (last,))]


def _widths(resolution: int, channels: int) -> list[int]:
    """Channels of the features of side R / 2, ..., 4."""
    return [channels * 2 ** min(level, MOST_DOUBLINGS) for level in range(len(sides(resolution)) - 1)]


def _up(before: int, after: int, *, stride: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(before, after, 4, stride=stride, padding=stride - 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def _down(before: int, after: int, *, normed: bool) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, *([nn.BatchNorm2d(after)] if normed else []), nn.LeakyReLU(SLOPE))


def _draw_weights(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, INIT_STD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, INIT_STD)
