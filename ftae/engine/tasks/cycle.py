"""The task ``cycle``: translation between two domains without partners, after CycleGAN (Zhu et al. 2017)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import Batch
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.frozen_cache.plan import precision
from ftae.engine.models.autoencoder import Autoencoder, NoiseFn
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.losses import LossInputs, loss_terms
from ftae.engine.tasks.adversarial import Adversarial
from ftae.engine.tasks.discriminator import alternating, apart
from ftae.engine.tasks.task import Loss, NetworkInTraining
from ftae.specs.finetune.run import FinetuneSpec


class Cycle(Adversarial):
    """Both directions under one optimizer, then the discriminators of both domains under another.

    Losses take images of both directions at once, in alternating rows: B' and A', compared with B and A where they
    judge an output, with A and B where they judge what has come back. So each is the mean of both directions, and the
    loss of the discriminators is half the sum of theirs, as in the paper. Arguments as for ``Reconstruct``.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        autoencoder: Autoencoder,
        auxiliary: AuxiliaryNetworks,
        frozen_cache: FrozenFeatureCache,
        *,
        noise: NoiseFn,
        averaged: bool,
    ) -> None:
        super().__init__(spec, autoencoder, auxiliary, frozen_cache, noise=noise, averaged=averaged)
        self.forward = BothDirections(spec, autoencoder, replace(auxiliary, adversary=self.model_loss))
        self.pools = [ImagePool(spec.discriminator.pool_size) for _ in range(2)]  # of B and of A

    def loss(self, network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        """The discriminators see earlier outputs, too: those of ``pools``."""
        if network is self.model:
            return super().loss(network, batch, step)
        real = alternating(*(self._autoencoder.to_range(images) for images in (batch.images, batch.inputs)))
        made = apart(self._reconstructions.pop(0))
        fake = alternating(*(pool.exchange(images) for pool, images in zip(self.pools, made, strict=True)))
        return self.discriminator_loss(real, fake, real, step)

    def judge(self, images: Tensor) -> Tensor | None:
        return None  # the discriminators know two kinds of images

    def state(self) -> dict[str, Any]:
        return super().state() | {"pools": [[image.cpu() for image in pool.images] for pool in self.pools]}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        for pool, images in zip(self.pools, state["pools"], strict=True):
            pool.images = [image.to(self._logit_averages.device) for image in images]


class ImagePool:
    """Up to ``size`` earlier images of one domain (Shrivastava et al. 2017)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []  # (C, H, W) each

    def exchange(self, images: Tensor) -> Tensor:
        """Keep images (B, C, H, W); returns as many, each of them or, with probability 1/2, an earlier one.

        Until the pool is full, all that come are kept and returned. Draws come from torch's global generator.
        """
        return images if self.size == 0 else torch.stack([self._exchange(image) for image in images])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if torch.rand(()) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        earlier, self.images[place] = self.images[place], image.clone()  # not the whole batch
        return earlier


class BothDirections(nn.Module):
    """The forward passes of both directions (in bf16 where the spec says so) and the loss terms, in fp32."""

    def __init__(self, spec: FinetuneSpec, autoencoder: Autoencoder, auxiliary: AuxiliaryNetworks) -> None:
        super().__init__()
        self.autoencoder, self._spec = autoencoder, spec
        self._auxiliary = auxiliary  # a plain object, so its parameters do not become this module's

    def forward(self, batch: Batch, names: list[str], progress: float) -> tuple[dict[str, Tensor], Tensor]:
        """The named terms, and B' and A' in alternating rows without a gradient: fp32 (2 B, C, H, W).

        ``progress``: 0..1 of the budget.
        """
        a, b = (self.autoencoder.to_range(images) for images in (batch.inputs, batch.images))
        with precision(self._spec, a.device):
            encoding, made_b = self.autoencoder.run(a)
            made_a = self._reverse(b)
            cycled = alternating(self._reverse(made_b), self._run(made_a)) if "cycle" in names else None
            unchanged = alternating(self._run(b), self._reverse(a)) if "identity" in names else None
        made = alternating(made_b, made_a).float()
        target = alternating(b, a)
        seen = LossInputs(
            given=alternating(a, b),
            target=target,
            reconstruction=made,
            target_unit=self.autoencoder.to_unit(target),
            reconstruction_unit=self.autoencoder.to_unit(made),
            encoding=encoding,
            logits=None,
            labels=None,
            autoencoder=self.autoencoder,
            auxiliary=self._auxiliary,
            settings=self._spec.losses,
            progress=progress,
            cycled=None if cycled is None else cycled.float(),
            unchanged=None if unchanged is None else unchanged.float(),
        )
        return loss_terms(seen, names), made.detach()

    def _run(self, images: Tensor) -> Tensor:
        _, made = self.autoencoder.run(images)
        return made

    def _reverse(self, images: Tensor) -> Tensor:
        assert self.autoencoder.reverse is not None
        return self.autoencoder.reverse(images)
