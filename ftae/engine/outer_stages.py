"""A network of one resolution made to take twice of it: a new stage on either side of the old ones."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.autoencoder import Draw, Encoding, Line, Stage

WIDTH = 32  # channels of the residual paths
NEAREST = 1e-6  # how near 0 and 1 a logit is taken


class OuterStages(nn.Module):
    """``inner`` behind a stage that halves the images, and before one that doubles its reconstructions.

    Untrained it is resizing: average pooling on the way in, bilinear on the way out, beside each a residual
    path whose last layer begins at zero. Wrapped again it takes twice of that. Images (B, C, H, W) in [0, 1].

    ``new``: the two stages have no weights from a pretrained model.
    """

    def __init__(self, inner: nn.Module, channels: int, *, new: bool) -> None:
        super().__init__()
        self.inner: Any = inner  # a network, or one with outer stages
        self.number: int = inner.number + 1 if isinstance(inner, OuterStages) else 0
        self.new = new
        self.shrink = _Shrink(channels)
        self.enlarge = _Enlarge(channels)

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        encoding: Encoding = self.inner.encode(self.shrink(images), labels, draw)
        return encoding

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.enlarge(self.inner.decode(latents, labels))
        return images

    def stages(self) -> list[Stage]:
        first, last = self._ends()
        return [first, *self.inner.stages(), last]

    def line(self) -> Line:
        """That of ``inner``, which has one, between the new stages."""
        inner: Line = self.inner.line()
        first, last = self._ends()
        return replace(inner, encoder=(first, *inner.encoder), decoder=(*inner.decoder, last))

    def _ends(self) -> tuple[Stage, Stage]:
        return (
            Stage(f"encoder.outer.{self.number}", "encoder", (self.shrink,), new=self.new, run=self.shrink),
            Stage(f"decoder.outer.{self.number}", "decoder", (self.enlarge,), new=self.new, run=self.enlarge),
        )


class _Shrink(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _residual(channels, nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        shrunk: Tensor = F.avg_pool2d(images, 2) + self.residual(images)
        return shrunk


class _Enlarge(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W).

    The residual is added to the logits of the pixels, so that they stay within [0, 1].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _residual(channels, nn.Conv2d(channels, WIDTH, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        enlarged = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        # In fp32 also under bf16 autocast, where a logit so near to 1 would be infinite.
        return torch.sigmoid(torch.logit(enlarged.float(), NEAREST) + self.residual(enlarged))


def _residual(channels: int, first: nn.Conv2d) -> nn.Sequential:
    last = nn.Conv2d(WIDTH, channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), last)
