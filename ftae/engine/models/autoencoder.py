"""The one shape every family is adapted to: an autoencoder as an ordered list of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.errors import FtaeError

Group = Literal["encoder", "bottleneck", "decoder", "head"]

Draw = Callable[[Tensor], Tensor]  # standard normal noise of a tensor's shape

Run = Callable[[Tensor], Tensor]  # of a batch, each image by itself


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; ``mean`` and ``logvar`` have the shape of the latents.

    ``prior``: mean and logvar of the prior where the model learns it; None for the standard normal.
    """

    mean: Tensor
    logvar: Tensor
    prior: tuple[Tensor, Tensor] | None = None

    def sample(self, draw: Draw = torch.randn_like) -> Tensor:
        """One reparameterised sample (Kingma & Welling 2013), by default from torch's global generator."""
        return self.mean + torch.exp(0.5 * self.logvar) * draw(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from the prior, in nats, per latent element, in fp32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        if self.prior is None:
            return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
        centre, spread = (tensor.float() for tensor in self.prior)
        squares = (mean - centre).square() + logvar.exp()
        return 0.5 * (squares * torch.exp(-spread) - 1.0 - logvar + spread)

    def shift(self) -> Tensor:
        """How far the mean is from the prior's, in standard deviations of the prior, in fp32."""
        if self.prior is None:
            return self.mean.float()
        centre, spread = (tensor.float() for tensor in self.prior)
        return (self.mean.float() - centre) * torch.exp(-0.5 * spread)


@dataclass(frozen=True)
class Codes:
    """What one quantiser chose for a batch.

    ``indices``: int64 (B, positions) below ``num_codes``. ``commitment``: mean squared distance of the
    encoder's output from its code, with a gradient to the encoder alone; ``codebook``: the same number
    with a gradient to the code alone (van den Oord et al. 2017, eq. 3), None where the codebook is a
    moving average. Both fp32 scalars.
    """

    indices: Tensor
    num_codes: int
    commitment: Tensor
    codebook: Tensor | None


@dataclass(frozen=True)
class Encoding:
    """What an encoder says of a batch.

    ``latents``: what the decoder takes: the mode of the posterior or a sample of it, or the chosen codes.
    """

    latents: Tensor
    posterior: Posterior | None = None
    codes: tuple[Codes, ...] = ()

    @classmethod
    def of(cls, posterior: Posterior, draw: Draw | None) -> Encoding:
        """A sample where there is noise to draw, else the mode."""
        return cls(posterior.mean if draw is None else posterior.sample(draw), posterior)

    @property
    def mode(self) -> Tensor:
        """The latents without noise."""
        return self.latents if self.posterior is None else self.posterior.mean


@dataclass(frozen=True)
class Stage:
    """A named piece of the data flow. Every parameter belongs to exactly one stage.

    ``new``: a pretrained model has no weights for it. ``idle``: it takes no part in encoding and decoding,
    so that nothing trains it. ``run``: what it does on a line, (B, ...) to (B, ...); None where it stands
    on none, or is idle.
    """

    name: str
    group: Group
    modules: tuple[nn.Module, ...]
    new: bool = False
    idle: bool = False
    run: Run | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules:
            yield from module.parameters()

    def matches(self, pattern: str) -> bool:
        """Whether ``pattern`` is this stage's group, or a glob that fits its name."""
        return pattern == self.group or fnmatchcase(self.name, pattern)


@dataclass(frozen=True)
class Line:
    """Stages that are one chain: image -> encoder -> bottleneck -> decoder -> image.

    ``bottleneck``: what the last encoder stage gives, and noise to draw or None -> ``Encoding``; it is of the
    stage ``codebook``, or has nothing that is trained. For a posterior it takes mean and logvar, as channels.
    """

    encoder: tuple[Stage, ...]
    bottleneck: Callable[[Tensor, Draw | None], Encoding]
    decoder: tuple[Stage, ...]
    codebook: Stage | None = None

    @property
    def stages(self) -> list[Stage]:
        return [*self.encoder, *([] if self.codebook is None else [self.codebook]), *self.decoder]

    def encode(self, images: Tensor, labels: Tensor | None = None, draw: Draw | None = None) -> Encoding:
        return self.bottleneck(run(self.encoder, images), draw)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return run(self.decoder, latents)


def run(stages: Iterable[Stage], x: Tensor) -> Tensor:
    """What stages of a line make of ``x``, one after the other."""
    for stage in stages:
        if stage.run is not None:
            x = stage.run(x)
    return x


class Autoencoder(nn.Module):
    """A network with its stages in data-flow order and its image range.

    Args:
        net: the wrapped network, in its own format.
        stages: image -> encoder -> bottleneck -> decoder -> image; a head comes last.
        image_range: lowest and highest value of the images the network takes and gives.
        channels: image channels, or None where the network does not say.
        encode: images in ``image_range`` (B, C, H, W), labels (B,) or None, noise to draw or None for
            the mode -> ``Encoding``.
        decode: latents, labels (B,) or None -> reconstructions (B, C, H, W) in ``image_range``.
        save: writes ``net`` into a folder in its family's format.
        prior: how many, labels (B,) or None, noise to draw -> latents of the prior that the model learns;
            None where it is the standard normal of the latents' shape.
        line: where the stages are one chain, which ``encode`` and ``decode`` run; None where they are not.
    """

    def __init__(
        self,
        net: nn.Module,
        stages: list[Stage],
        *,
        image_range: tuple[float, float],
        channels: int | None,
        encode: Callable[[Tensor, Tensor | None, Draw | None], Encoding],
        decode: Callable[[Tensor, Tensor | None], Tensor],
        save: Callable[[Path], None],
        prior: Callable[[int, Tensor | None, Draw], Tensor] | None = None,
        line: Line | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.head: nn.Module | None = None
        self.stages = stages
        self.image_range = image_range
        self.channels = channels
        self.prior = prior
        self.line = line
        self._encode, self._decode, self._save = encode, decode, save
        self._frozen: tuple[Stage, ...] = ()
        self._given_frozen = {id(p) for p in net.parameters() if not p.requires_grad}

    def encode(self, images: Tensor, labels: Tensor | None = None, draw: Draw | None = None) -> Encoding:
        """What the encoder says of images in ``image_range``; ``draw``: None takes the mode of a posterior."""
        return self._encode(images, labels, draw)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstructions in ``image_range``; not clamped."""
        return self._decode(latents, labels)

    def save_pretrained(self, folder: Path) -> None:
        """Write the network to ``folder`` so that ``model.pretrained`` can name it."""
        self._save(folder)

    def to_range(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them; the same tensor where it takes them so."""
        low, high = self.image_range
        return images if (low, high) == (0.0, 1.0) else images * (high - low) + low

    def to_unit(self, images: Tensor) -> Tensor:
        """Images of the network in [0, 1], not clamped; the same tensor where they are so."""
        low, high = self.image_range
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def without_head(self) -> Autoencoder:
        """The same network, whose tensors both have, without a head and with no stage frozen."""
        return Autoencoder(
            self.net,
            [stage for stage in self.stages if stage.group != "head"],
            image_range=self.image_range,
            channels=self.channels,
            encode=self._encode,
            decode=self._decode,
            save=self._save,
            prior=self.prior,
            line=self.line,
        )

    def add_head(self, head: nn.Module) -> None:
        """Attach a classification head beside the line, as the last stage."""
        assert self.head is None
        self.head = head
        self.stages = [*self.stages, Stage("head", "head", (head,), new=True)]

    # ------------------------------------------------------------------------------ freezing

    def freeze(self, depth: int, patterns: tuple[str, ...]) -> None:
        """Freeze the first ``depth`` stages, those that match a pattern, the idle ones, and those that came frozen.

        Frozen means: no gradient, not in the optimizer (``trainable_stages``), and eval mode that
        survives ``train()``, so that dropout is off and running statistics do not move.

        Raises:
            FtaeError: ``depth`` exceeds the stages, a pattern matches none, or nothing is left to train.
        """
        line = [stage for stage in self.stages if stage.group != "head"]
        if depth > len(line):
            raise FtaeError(f"freeze_depth must be at most {len(line)}, the number of stages, got {depth}")
        for pattern in patterns:
            if not any(stage.matches(pattern) for stage in self.stages):
                raise FtaeError(f"freeze: {pattern!r} matches no stage. Stages: {self._stage_names()}")
        asked = [s for s in self.stages if s.idle or s in line[:depth] or any(s.matches(p) for p in patterns)]
        frozen = [s for s in self.stages if s in asked or self.came_frozen(s)]
        if not any(p.requires_grad for s in self.stages if s not in frozen for p in s.parameters()):
            if not asked:
                raise FtaeError("nothing is left to train: the module itself has frozen all its parameters")
            raise FtaeError(
                f"freeze_depth {depth} and freeze {list(patterns)} leave nothing to train. "
                f"Stages: {self._stage_names()}"
            )
        self._frozen = tuple(frozen)
        for stage in frozen:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Autoencoder:
        super().train(mode)
        for stage in getattr(self, "_frozen", ()):
            for module in stage.modules:
                module.eval()
        return self

    def trainable_stages(self) -> list[Stage]:
        return [stage for stage in self.stages if stage not in self._frozen]

    def came_frozen(self, part: Stage | nn.Parameter) -> bool:
        """Whether the network itself had frozen a parameter (by ``requires_grad``), or all of a stage."""
        parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        return bool(parameters) and all(id(p) in self._given_frozen for p in parameters)

    def _stage_names(self) -> str:
        return ", ".join(stage.name for stage in self.stages)


def pooled(latents: Tensor) -> Tensor:
    """(B, D) of (B, D) or (B, C, h, w): spatial latents averaged over at most 4x4 places each."""
    if latents.ndim == 4:
        latents = F.adaptive_avg_pool2d(latents, min(4, *latents.shape[2:]))
    return latents.flatten(1)


class ClassificationHead(nn.Module):
    """Linear classifier on pooled latents.

    Input (B, D) or (B, C, h, w); output logits (B, num_classes).
    """

    def __init__(self, latents: Tensor, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled(latents).shape[1], num_classes)

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.linear(pooled(latents))
        return logits
