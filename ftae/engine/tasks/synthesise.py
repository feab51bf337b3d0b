"""The task ``synthesise``: a generator makes images of noise, and a discriminator tells them from real ones."""

import math
from typing import Any

import torch
from torch import Tensor

from ftae.engine.data.batches import Batch
from ftae.engine.tasks.adversarial import Adversarial
from ftae.engine.tasks.task import Loss, NetworkInTraining

PATH_LENGTH_EVERY = 4  # steps (lazy regularisation, Karras et al. 2020)
PATH_LENGTH_DECAY = 0.99  # of the mean length, per step that computes it


class Synthesise(Adversarial):
    """The generator, whose loss needs no image, then the discriminator, which learns from the images it made.

    Until ``discriminator.start_fraction`` the generator rests: a discriminator that is new beside a pretrained
    generator learns first to tell its images from those of the data. Arguments as for ``Reconstruct``.
    """

    _mean_length: Tensor | None = None  # a scalar, once a length was measured

    def is_due(self, network: NetworkInTraining, step: int) -> bool:
        if network is self.model:
            return step / self.spec.max_steps >= self._settings.start_fraction
        return super().is_due(network, step)

    def loss(self, network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        found = super().loss(network, batch, step)
        weight = self.spec.losses.path_length
        if network is not self.model or weight == 0.0 or step % PATH_LENGTH_EVERY:
            return found
        penalty = self._path_length(batch)
        total = found.total + PATH_LENGTH_EVERY * weight * penalty
        return Loss(total, found.terms | {"loss": total, "path_length": penalty}, found.numbers)

    def fakes(self, batch: Batch) -> Tensor:
        """As in ``Adversarial``; while the generator rests, images are made for the discriminator alone."""
        if self._reconstructions:
            return super().fakes(batch)
        self._autoencoder.eval()  # it rests: neither its running statistics nor its weights move
        with torch.no_grad():
            _, made = self._autoencoder.run(self._autoencoder.as_input(batch.inputs), batch.labels)
        return made.float()

    def state(self) -> dict[str, Any]:
        return super().state() | {"mean_path_length": self._mean_length}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._mean_length = state["mean_path_length"]

    def _path_length(self, batch: Batch) -> Tensor:
        """The mean squared distance of path lengths from their running mean, on half of the batch, in fp32.

        The length is the norm of the gradient, by the styles, of the image times noise of variance 1 / pixels.
        """
        noise = batch.inputs[: max(1, len(batch.inputs) // 2)]
        styles = self._autoencoder.encode(noise).latents
        styles = styles if styles.requires_grad else styles.detach().requires_grad_(True)  # the mapping may be frozen
        images = self._autoencoder.decode(styles)
        directions = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        (slope,) = torch.autograd.grad((images * directions).sum(), [styles], create_graph=True)
        lengths = slope.square().sum(1).sqrt()
        now = lengths.detach().mean().cpu()
        before = now if self._mean_length is None else self._mean_length
        self._mean_length = before.lerp(now, 1.0 - PATH_LENGTH_DECAY)
        return (lengths - self._mean_length.to(lengths.device)).square().mean()
