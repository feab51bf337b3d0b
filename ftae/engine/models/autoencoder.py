"""Autoencoder: a staged model that encodes and decodes images, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.staged_model import Stage, StagedModel, run_stages

NoiseFn = Callable[[Tensor], Tensor]  # standard normal noise in the shape of a tensor


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; ``mean`` and ``logvar`` have the shape of the latents.

    ``prior``: mean and logvar of the prior where the model learns it; None for the standard normal.
    """

    mean: Tensor
    logvar: Tensor
    prior: tuple[Tensor, Tensor] | None = None

    def sample(self, noise: NoiseFn = torch.randn_like) -> Tensor:
        """One reparameterised sample (Kingma & Welling 2013), by default from torch's global generator."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from the prior, in nats, per latent element, in fp32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        if self.prior is None:
            return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
        prior_mean, prior_logvar = (tensor.float() for tensor in self.prior)
        squares = (mean - prior_mean).square() + logvar.exp()
        return 0.5 * (squares * torch.exp(-prior_logvar) - 1.0 - logvar + prior_logvar)

    def shift(self) -> Tensor:
        """Distance of the mean from the mean of the prior, in standard deviations of the prior, in fp32."""
        if self.prior is None:
            return self.mean.float()
        prior_mean, prior_logvar = (tensor.float() for tensor in self.prior)
        return (self.mean.float() - prior_mean) * torch.exp(-0.5 * prior_logvar)


@dataclass(frozen=True)
class Codes:
    """The codes that one quantiser chose for a batch.

    ``indices``: int64 (B, positions) below ``num_codes``. ``commitment``: mean squared distance between the output
    of the encoder and its code, with a gradient to the encoder alone; ``codebook``: the same number with a gradient
    to the code alone (van den Oord et al. 2017, eq. 3), None where the codebook is a moving average. Both are fp32
    scalars.
    """

    indices: Tensor
    num_codes: int
    commitment: Tensor
    codebook: Tensor | None


@dataclass(frozen=True)
class Encoding:
    """The output of an encoder for a batch.

    ``latents``: the input of the decoder: the mode of the posterior or a sample from it, or the chosen codes.
    """

    latents: Tensor
    posterior: Posterior | None = None
    codes: tuple[Codes, ...] = ()

    @classmethod
    def of(cls, posterior: Posterior, noise: NoiseFn | None) -> Encoding:
        """A sample from the posterior; the mode where ``noise`` is None."""
        return cls(posterior.mean if noise is None else posterior.sample(noise), posterior)

    @property
    def mode(self) -> Tensor:
        """The latents without noise."""
        return self.latents if self.posterior is None else self.posterior.mean


@dataclass(frozen=True)
class StageChain:
    """Stages in which each takes the output of the one before it: image -> encoder -> bottleneck -> decoder -> image.

    ``bottleneck``: output of the last encoder stage, noise or None -> ``Encoding``. Its parameters, if any, are those
    of the stage ``codebook``. For a posterior its input holds mean and logvar as channels.
    """

    encoder: tuple[Stage, ...]
    bottleneck: Callable[[Tensor, NoiseFn | None], Encoding]
    decoder: tuple[Stage, ...]
    codebook: Stage | None = None

    @property
    def stages(self) -> list[Stage]:
        return [*self.encoder, *([] if self.codebook is None else [self.codebook]), *self.decoder]

    def encode(self, images: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None) -> Encoding:
        return self.bottleneck(run_stages(self.encoder, images), noise)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return run_stages(self.decoder, latents)


class Autoencoder(StagedModel):
    """A network that gives images: an autoencoder encodes and decodes them, a translator makes others of them, and a
    generator makes them of noise, which its mapping encodes and its synthesis decodes.

    Args:
        net: the wrapped network, in its own format.
        stages: input -> encoder -> bottleneck -> decoder -> image; a head comes last.
        image_range: lowest and highest value of the images that the network takes and gives.
        channels: image channels, or None where the network does not say.
        encode: inputs, labels (B,) or None, noise or None for the mode -> ``Encoding``. Inputs are images
            (B, C, H, W) in ``image_range``, or, of a generator, standard normal noise (B, ``noise_dim``).
        decode: latents, labels (B,) or None -> reconstructions (B, C, H, W) in ``image_range``; None where ``run`` is
            given.
        save: writes ``net`` into a folder in the format of its family.
        prior: number, labels (B,) or None, noise -> latents drawn from the prior that the model learns; None where
            the prior is the standard normal in the shape of the latents.
        chain: the chain that ``encode`` and ``decode`` run; None where the stages are no chain.
        run: arguments of ``encode`` -> ``Encoding``, outputs, for a network whose outputs depend on more than the
            latents.
        noise_dim: the length of the noise that a generator takes; None for a model that takes images.
        truncate: latents of a generator, factor -> latents drawn towards their mean; None where there is no mean.
        reverse: images -> what they are on the side of the inputs, all (B, C, H, W) in ``image_range``, for a network
            that translates both ways.
    """

    def __init__(
        self,
        net: nn.Module,
        stages: Iterable[Stage],
        *,
        image_range: tuple[float, float],
        channels: int | None,
        encode: Callable[[Tensor, Tensor | None, NoiseFn | None], Encoding],
        decode: Callable[[Tensor, Tensor | None], Tensor] | None,
        save: Callable[[Path], None],
        prior: Callable[[int, Tensor | None, NoiseFn], Tensor] | None = None,
        chain: StageChain | None = None,
        run: Callable[[Tensor, Tensor | None, NoiseFn | None], tuple[Encoding, Tensor]] | None = None,
        noise_dim: int | None = None,
        truncate: Callable[[Tensor, float], Tensor] | None = None,
        reverse: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(net, stages, save=save)
        self.head: nn.Module | None = None
        self.image_range = image_range
        self.channels = channels
        self.prior = prior
        self.chain = chain
        self.noise_dim = noise_dim
        self.truncate = truncate
        self.reverse = reverse
        assert decode is not None or run is not None
        self._encode, self._decode, self._run = encode, decode, run

    def encode(self, images: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None) -> Encoding:
        """Encode inputs (see ``as_input``); without ``noise`` the latents are the mode of the posterior."""
        return self._encode(images, labels, noise)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstructions in ``image_range``; not clamped. Only of a model whose latents are all that it needs."""
        assert self._decode is not None
        return self._decode(latents, labels)

    def run(
        self, images: Tensor, labels: Tensor | None = None, noise: NoiseFn | None = None
    ) -> tuple[Encoding, Tensor]:
        """What ``encode`` gives for inputs (see ``as_input``), and what the model makes of it; not clamped."""
        if self._run is not None:
            return self._run(images, labels, noise)
        encoding = self.encode(images, labels, noise)
        return encoding, self.decode(encoding.latents, labels)

    def as_input(self, given: Tensor) -> Tensor:
        """What the network takes of the inputs of a batch: images in ``image_range``, or noise as it is."""
        return given if self.noise_dim is not None else self.to_range(given)

    def example_input(self, shape: tuple[int, int, int]) -> Tensor:
        """One grey image in ``image_range``, or the noise of all zeros, as ``encode`` takes them."""
        if self.noise_dim is not None:
            return torch.zeros(1, self.noise_dim)
        return self.to_range(torch.full((1, *shape), 0.5))

    def to_range(self, images: Tensor) -> Tensor:
        """Convert images from [0, 1] to ``image_range``; returns the same tensor where that is [0, 1]."""
        low, high = self.image_range
        return images if (low, high) == (0.0, 1.0) else images * (high - low) + low

    def to_unit(self, images: Tensor) -> Tensor:
        """Convert images from ``image_range`` to [0, 1], not clamped; the same tensor where that is [0, 1]."""
        low, high = self.image_range
        return images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)

    def add_head(self, head: nn.Module) -> None:
        """Attach a classification head beside the decoder, as the last stage."""
        assert self.head is None
        self.head = head
        self.stages = [*self.stages, Stage("head", "head", (head,), new=True)]

    def without_head(self) -> Autoencoder:
        """A model that shares the network and its tensors, without a head and with no stage frozen."""
        return Autoencoder(
            self.net,
            [stage for stage in self.stages if stage.group != "head"],
            image_range=self.image_range,
            channels=self.channels,
            encode=self._encode,
            decode=self._decode,
            save=self._save,
            prior=self.prior,
            chain=self.chain,
            run=self._run,
            noise_dim=self.noise_dim,
            truncate=self.truncate,
            reverse=self.reverse,
        )


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
