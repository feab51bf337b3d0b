"""The task ``synthesise``: a generator makes images of noise, and a discriminator tells them from real ones."""

import torch
from torch import Tensor

from ftae.engine.data.batches import Batch
from ftae.engine.tasks.adversarial import Adversarial
from ftae.engine.tasks.task import NetworkInTraining


class Synthesise(Adversarial):
    """The generator, whose loss needs no image, then the discriminator, which learns from the images it made.

    Until ``discriminator.start_fraction`` the generator rests: a discriminator that is new beside a pretrained
    generator learns first to tell its images from those of the data.
    """

    def is_due(self, network: NetworkInTraining, step: int) -> bool:
        if network is self.model:
            return step / self.spec.max_steps >= self._settings.start_fraction
        return super().is_due(network, step)

    def fakes(self, batch: Batch) -> Tensor:
        if self._reconstructions:
            return super().fakes(batch)
        self._autoencoder.eval()  # it rests: neither its running statistics nor its weights move
        with torch.no_grad():
            _, made = self._autoencoder.run(self._autoencoder.as_input(batch.inputs), batch.labels)
        return made.float()
