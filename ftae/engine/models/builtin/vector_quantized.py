"""Codebooks, and the built-in networks that use them."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Codes, Encoding, NoiseFn, StageChain
from ftae.engine.models.builtin.conv_mlp import ChainedNet, ConvNet, check_multiple, conv_block
from ftae.engine.models.staged_model import Stage
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import Size


class Quantizer(nn.Module):
    """A codebook of ``codebook_size`` codes of ``code_dim`` numbers (van den Oord et al. 2017).

    ``codebook`` ``ema``: in training mode, each code follows the mean of the vectors that chose it (appendix A.1),
    with ``ema_decay`` (None: 0.99) a batch. A code that fewer than ``dead_code_threshold`` (None: 0) vectors of a
    batch choose, as a moving average, becomes a random vector of the batch (Dhariwal et al. 2020, section 3).
    ``gradient``: the codes are parameters, which the loss term ``codebook`` trains.

    Raises:
        FtaeError: a setting of the moving average is given for a gradient codebook.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        codebook: str,
        ema_decay: float | None,
        dead_code_threshold: float | None,
    ) -> None:
        from vector_quantize_pytorch import VectorQuantize  # takes seconds

        super().__init__()
        self.by_gradient = codebook == "gradient"
        for name, value in (("ema_decay", ema_decay), ("dead_code_threshold", dead_code_threshold)):
            if self.by_gradient and value is not None:
                raise FtaeError(f"model.{name} has no effect on a codebook that is trained by gradient; leave it out")
        self.nearest = VectorQuantize(
            dim=code_dim,
            codebook_size=codebook_size,
            decay=0.99 if ema_decay is None else ema_decay,
            threshold_ema_dead_code=dead_code_threshold or 0.0,
            learnable_codebook=self.by_gradient,
            ema_update=not self.by_gradient,
            accept_image_fmap=True,
            commitment_weight=0.0,  # the terms are computed here, unweighted
            rotation_trick=False,
            sync_codebook=False,
        )

    def forward(self, encoded: Tensor) -> tuple[Tensor, Codes]:
        """Vectors (B, code_dim, h, w) -> the nearest codes in fp32, and which they are."""
        with torch.autocast(encoded.device.type, enabled=False):  # bf16 would confuse codes that are close
            encoded = encoded.float()
            codes, indices, _ = self.nearest(encoded.detach())
            num_codes = self.nearest.codebook_size
            return chosen(encoded, codes, indices.flatten(1), num_codes, by_gradient=self.by_gradient)


def chosen(
    encoded: Tensor, codes: Tensor, indices: Tensor, num_codes: int, *, by_gradient: bool
) -> tuple[Tensor, Codes]:
    """``codes`` with the gradient of ``encoded`` (straight-through, section 3.2 of the paper), and their ``Codes``."""
    latents = codes.detach() + (encoded - encoded.detach())  # the bracket is exactly 0
    commitment = F.mse_loss(encoded, codes.detach())
    codebook = F.mse_loss(codes, encoded.detach()) if by_gradient else None
    return latents, Codes(indices, num_codes, commitment, codebook)


class QuantizedNet(ConvNet):
    """Fully convolutional, with quantisers between encoder and decoder, which take the options of ``Quantizer``."""

    def __init__(
        self,
        *,
        channels_in: int,
        resolution: int | Size,
        channels: int = 32,
        depth: int = 2,
        codebook_size: int = 128,
        code_dim: int = 16,
        codebook: str = "ema",
        ema_decay: float | None = None,
        dead_code_threshold: float | None = None,
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        self.code_dim = code_dim
        quantizer = partial(
            Quantizer,
            codebook_size=codebook_size,
            code_dim=code_dim,
            codebook=codebook,
            ema_decay=ema_decay,
            dead_code_threshold=dead_code_threshold,
        )
        self._add_levels(self.inner[0], quantizer)

    def _add_levels(self, width: int, quantizer: Callable[[], Quantizer]) -> None:
        """Add the layers between ``_down`` and ``_up``, which both have ``width`` channels."""
        raise NotImplementedError


class VqVaeNet(ChainedNet, QuantizedNet):
    """VQ-VAE (van den Oord et al. 2017); latents (B, code_dim, H / 2**depth, W / 2**depth)."""

    def _add_levels(self, width: int, quantizer: Callable[[], Quantizer]) -> None:
        self.to_latents = nn.Conv2d(width, self.code_dim, 1)
        self.quantizer = quantizer()
        self.from_latents = conv_block(nn.Conv2d(self.code_dim, width, 3, padding=1), width)

    def chain(self) -> StageChain:
        last = Stage("bottleneck", "bottleneck", (self.to_latents,), run=self.to_latents)
        codebook = Stage("codebook", "bottleneck", (self.quantizer,))
        first = Stage("decoder.in", "decoder", (self.from_latents,), run=self.from_latents)
        return StageChain((*self._encoder(), last), self._quantized, self._decoder(first), codebook)

    def _quantized(self, encoded: Tensor, noise: NoiseFn | None) -> Encoding:
        latents, codes = self.quantizer(encoded)
        return Encoding(latents, codes=(codes,))


class VqVae2Net(QuantizedNet):
    """VQ-VAE-2 of two levels (Razavi et al. 2019): the choice of bottom codes depends on the top codes.

    The bottom level has a side of image side / 2**depth, the top level half of that. Latents (B, D): the codes of
    the top, then those of the bottom, each (code_dim, h, w), flattened.
    """

    def _add_levels(self, width: int, quantizer: Callable[[], Quantizer]) -> None:
        factor, (_, *inner) = 2 ** len(self.down), self.inner
        check_multiple((inner[0] * factor, inner[1] * factor), 2 * factor, "2**(depth + 1)")
        self.down_top = conv_block(nn.Conv2d(width, width, 4, stride=2, padding=1), width)
        self.to_top = nn.Conv2d(width, self.code_dim, 1)
        self.top = quantizer()
        self.condition = nn.Sequential(
            nn.Upsample(scale_factor=2), conv_block(nn.Conv2d(self.code_dim, width, 3, padding=1), width)
        )
        self.to_bottom = nn.Conv2d(2 * width, self.code_dim, 1)
        self.bottom = quantizer()
        self.up_top = nn.Upsample(scale_factor=2)
        self.from_latents = conv_block(nn.Conv2d(2 * self.code_dim, width, 3, padding=1), width)

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        """Images (B, C, H, W) to latents (B, D); ``noise`` is not used."""
        features = self._down(images)
        top, top_codes = self.top(self.to_top(self.down_top(features)))
        bottom, bottom_codes = self.bottom(self.to_bottom(torch.cat([features, self.condition(top)], dim=1)))
        return Encoding(torch.cat([top.flatten(1), bottom.flatten(1)], dim=1), codes=(top_codes, bottom_codes))

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (B, D) to images (B, C, H, W) in [0, 1]."""
        positions = latents.shape[1] // (5 * self.code_dim)  # of the top level; the bottom has four times as many
        height = round(math.sqrt(positions * self.inner[1] / self.inner[2]))
        width = positions // height
        top, bottom = torch.split(latents, [positions * self.code_dim, 4 * positions * self.code_dim], dim=1)
        top = torch.unflatten(top, 1, (self.code_dim, height, width))
        bottom = torch.unflatten(bottom, 1, (self.code_dim, 2 * height, 2 * width))
        return self._up(self.from_latents(torch.cat([self.up_top(top), bottom], dim=1)))

    def stages(self) -> list[Stage]:
        """All stages in data-flow order, the top level before the bottom level."""
        return [
            *self._encoder(),
            Stage("encoder.top", "encoder", (self.down_top,)),
            Stage("bottleneck.top", "bottleneck", (self.to_top,)),
            Stage("codebook.top", "bottleneck", (self.top,)),
            Stage("bottleneck.bottom", "bottleneck", (self.condition, self.to_bottom)),
            Stage("codebook.bottom", "bottleneck", (self.bottom,)),
            *self._decoder(Stage("decoder.in", "decoder", (self.from_latents,))),
        ]
