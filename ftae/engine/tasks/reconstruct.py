"""The task ``reconstruct``: an autoencoder learns to give back its images."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ftae.engine.data.batches import Batch
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.frozen_cache.plan import precision
from ftae.engine.models.autoencoder import Autoencoder, NoiseFn
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.losses import LossInputs, loss_terms, weighted_sum, weights_at
from ftae.engine.tasks.task import MODEL, Loss, NetworkInTraining, WeightAverage, base_lr, build_optimizer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec


class Reconstruct:
    """One network, the autoencoder, and the weighted sum of the loss terms of the spec.

    Args:
        auxiliary: the frozen networks that loss terms need.
        frozen_cache: runs the autoencoder on training batches.
        noise: gives standard normal noise of the shape of a tensor, to sample the posterior.
        averaged: keep the moving average that the spec asks for.
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
        self.spec = spec
        half_life = spec.ema_half_life_fraction if averaged else None
        self.model = NetworkInTraining(
            MODEL,
            autoencoder,
            build_optimizer(autoencoder, spec.optimizer),
            lambda step: base_lr(spec, step),
            max_grad_norm=spec.max_grad_norm,
            average=None if half_life is None else WeightAverage(autoencoder, half_life * spec.max_steps),
        )
        self.networks: Sequence[NetworkInTraining] = (self.model,)
        self.forward: nn.Module = ForwardPass(spec, autoencoder, auxiliary, frozen_cache, noise)

    def is_due(self, network: NetworkInTraining, step: int) -> bool:
        return True

    def loss(self, network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        progress = step / self.spec.max_steps
        weights = weights_at(self.spec.losses, progress)
        terms, _ = self.forward(batch, list(weights), progress)
        return total_loss(terms, weights)

    def stepped(self, network: NetworkInTraining, parts: list[dict[str, float]], grad_norm: float) -> dict[str, float]:
        return {"grad_norm": grad_norm, "lr": network.lr}

    def judge(self, images: Tensor) -> Tensor | None:
        return None

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        self.forward = wrapper(self.forward)

    @staticmethod
    def why_one_worker(workers: int) -> str | None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state


def total_loss(terms: dict[str, Tensor], weights: dict[str, float], numbers: dict[str, float] | None = None) -> Loss:
    """The weighted sum of the terms, with what reports say of it.

    Raises:
        FtaeError: no term depends on anything that is trained.
    """
    total = weighted_sum(terms, weights)
    if not total.requires_grad:
        raise FtaeError(f"freeze leaves nothing to train that losses ({', '.join(terms)}) depend on")
    return Loss(total, {"loss": total, **terms}, numbers or {})


class ForwardPass(nn.Module):
    """The forward pass of the autoencoder (in bf16 where the spec says so) and the loss terms, in fp32.

    It is a module so that ``DistributedDataParallel`` can wrap it.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        autoencoder: Autoencoder,
        auxiliary: AuxiliaryNetworks,
        frozen_cache: FrozenFeatureCache,
        noise: NoiseFn,
    ) -> None:
        super().__init__()
        self.autoencoder, self._spec, self._frozen_cache = autoencoder, spec, frozen_cache
        self._auxiliary = auxiliary  # a plain object, so its parameters do not become this module's
        self._noise = noise if spec.sample_posterior else None

    def forward(self, batch: Batch, names: list[str], progress: float) -> tuple[dict[str, Tensor], Tensor]:
        """The named terms, and the reconstructions without a gradient: fp32 (B, C, H, W) in the model's range.

        ``progress``: 0..1 of the budget.
        """
        autoencoder, spec = self.autoencoder, self._spec
        target = autoencoder.to_range(batch.images)
        inputs = target if batch.inputs is batch.images else autoencoder.as_input(batch.inputs)
        with precision(spec, batch.images.device):
            encoding, reconstruction = self._frozen_cache.run(inputs, batch, self._noise)
            logits = autoencoder.head(encoding.latents) if autoencoder.head is not None else None
        reconstruction = reconstruction.float()
        seen = LossInputs(
            given=inputs,
            target=target,
            reconstruction=reconstruction,
            target_unit=batch.images,
            reconstruction_unit=autoencoder.to_unit(reconstruction),
            encoding=encoding,
            logits=None if logits is None else logits.float(),
            labels=batch.labels,
            autoencoder=autoencoder,
            auxiliary=self._auxiliary,
            settings=spec.losses,
            progress=progress,
        )
        return loss_terms(seen, names), reconstruction.detach()
