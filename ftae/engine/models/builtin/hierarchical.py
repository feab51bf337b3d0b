"""A small hierarchical VAE: groups of latents at several resolutions, each with a prior that depends on the last."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Encoding, NoiseFn, Posterior
from ftae.engine.models.builtin.conv_mlp import ConvNet, conv_block
from ftae.engine.models.staged_model import Stage
from ftae.specs.finetune.data_spec import Size, size_of

LOGVAR_BOUND = 5.0


class HierarchicalVaeNet(ConvNet):
    """Latents from coarse to fine, one group for each of ``depth`` halvings, after NVAE (Vahdat & Kautz 2020).

    Bottom-up, the strided encoder computes the evidence of each group. Top-down, the decoder starts from a learned
    tensor; at each group it predicts the prior from its features, merges the latents of the group into them, and
    doubles their resolution. The posterior is relative to the prior (NVAE, section 3.2): with evidence (d, s) and
    prior N(m, exp(v)) it is N(m + d, exp(v + s)). Unlike in NVAE, the evidence depends on the image alone, as in
    ladder VAEs (Sonderby et al. 2016): no encoder stage comes after one of the decoder.

    Latents (B, D): the groups, each (latent_channels, h, w), flattened, coarsest first. Prior and posterior of
    a group are conditioned on the latents of the groups before it.
    """

    def __init__(
        self, *, channels_in: int, resolution: int | Size, channels: int = 32, depth: int = 2, latent_channels: int = 4
    ) -> None:
        super().__init__(channels_in=channels_in, resolution=resolution, channels=channels, depth=depth)
        height, width = size_of(resolution)
        sizes = [(height // 2**level, width // 2**level) for level in range(depth, 0, -1)]
        widths = self.widths[::-1]
        self.shapes = [(latent_channels, *size) for size in sizes]
        self.evidence = nn.ModuleList(nn.Conv2d(width, 2 * latent_channels, 1) for width in widths)
        self.start = _Start(self.inner)
        self.say_prior = nn.ModuleList(nn.Conv2d(width, 2 * latent_channels, 1) for width in widths)
        self.take_in = nn.ModuleList(
            conv_block(nn.Conv2d(width + latent_channels, width, 3, padding=1), width) for width in widths
        )

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        """Images (B, C, H, W) to the latents of all groups (B, D), flattened, coarsest group first."""
        levels = [images]
        for down in self.down:
            levels.append(down(levels[-1]))
        coarse_first = zip(self.evidence, levels[:0:-1], strict=True)
        evidence = [_mean_and_logvar(conv(features)) for conv, features in coarse_first]
        posteriors: list[Posterior] = []

        def choose(prior: tuple[Tensor, Tensor]) -> Tensor:
            shift, spread = evidence[len(posteriors)]
            posteriors.append(Posterior(prior[0] + shift, prior[1] + spread, prior))
            return Encoding.of(posteriors[-1], noise).latents

        return Encoding(self._descend(images.shape[0], choose), _joined(posteriors))

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Latents (B, D) as ``encode`` gives them to images (B, C, H, W) in [0, 1]."""
        features = self.start(latents.shape[0])
        pieces = torch.split(latents, [math.prod(shape) for shape in self.shapes], dim=1)
        for i, (piece, shape) in enumerate(zip(pieces, self.shapes, strict=True)):
            features = self._step(i, features, torch.unflatten(piece, 1, shape))
        return torch.sigmoid(self.out(features))

    def prior(self, number: int, labels: Tensor | None, noise: NoiseFn) -> Tensor:
        """Latents drawn from the learned prior, each group conditioned on those before it."""
        return self._descend(number, lambda prior: Posterior(*prior).sample(noise))

    def _descend(self, number: int, choose: Callable[[tuple[Tensor, Tensor]], Tensor]) -> Tensor:
        """Latents of all groups, coarsest first; ``choose`` gives those of a group from its prior (mean, logvar)."""
        features: Tensor = self.start(number)
        latents: list[Tensor] = []
        for i, predict_prior in enumerate(self.say_prior):
            if i > 0:
                features = self._step(i - 1, features, latents[-1])
            latents.append(choose(_mean_and_logvar(predict_prior(features))))
        return _flat(latents)

    def _step(self, i: int, features: Tensor, latents: Tensor) -> Tensor:
        """Merge the latents of group ``i`` into the features, and double their resolution."""
        merged: Tensor = features + self.take_in[i](torch.cat([features, latents], dim=1))
        doubled: Tensor = self.up[i](merged)
        return doubled

    def stages(self) -> list[Stage]:
        """All stages in data-flow order; a group of latents is one stage of the decoder."""
        steps = zip(self.say_prior, self.take_in, self.up, strict=True)
        return [
            *(Stage(f"encoder.down.{i}", "encoder", (down,)) for i, down in enumerate(self.down)),
            Stage("bottleneck", "bottleneck", (self.evidence,)),
            Stage("decoder.in", "decoder", (self.start,)),
            *(Stage(f"decoder.group.{i}", "decoder", modules) for i, modules in enumerate(steps)),
            Stage("decoder.out", "decoder", (self.out,)),
        ]


class _Start(nn.Module):
    """A learned tensor, the same for every image."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.zeros(shape))

    def forward(self, number: int) -> Tensor:
        return self.tensor.expand(number, *self.tensor.shape)


def _mean_and_logvar(features: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the channels; log-variances are bounded, as in NVAE."""
    mean, logvar = features.chunk(2, dim=1)
    return mean, LOGVAR_BOUND * torch.tanh(logvar / LOGVAR_BOUND)


def _flat(groups: list[Tensor]) -> Tensor:
    return torch.cat([group.flatten(1) for group in groups], dim=1)


def _joined(posteriors: list[Posterior]) -> Posterior:
    priors = [posterior.prior for posterior in posteriors if posterior.prior is not None]
    return Posterior(
        _flat([posterior.mean for posterior in posteriors]),
        _flat([posterior.logvar for posterior in posteriors]),
        (_flat([mean for mean, _ in priors]), _flat([logvar for _, logvar in priors])),
    )
