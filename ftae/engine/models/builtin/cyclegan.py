"""The network of CycleGAN: two translators, from A to B and from B to A."""

from dataclasses import replace

from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn
from ftae.engine.models.builtin.translators import ResnetTranslatorNet
from ftae.engine.models.staged_model import Group, Stage


class CycleGanNet(nn.Module):
    """Two residual translators of one size (Zhu et al. 2017), which share nothing.

    Images (B, C, H, W) in [-1, 1], sides multiples of 4. Each direction is a line of stages of its own.
    """

    image_range = (-1.0, 1.0)

    def __init__(self, *, channels_in: int, resolution: int, channels: int = 64, blocks: int = 6) -> None:
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
