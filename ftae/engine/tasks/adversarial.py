"""The task ``adversarial``: reconstruction, and a discriminator that learns to tell it from real images."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import Batch
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.autoencoder import Autoencoder, NoiseFn
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.losses import weighted_sum, weights_at
from ftae.engine.tasks.adversarial_losses import ADVERSARIAL_LOSSES, gradient_penalty
from ftae.engine.tasks.augmentation import Augmentation
from ftae.engine.tasks.discriminator import discriminator_of
from ftae.engine.tasks.reconstruct import Reconstruct, total_loss
from ftae.engine.tasks.task import Loss, NetworkInTraining, build_optimizer, lr_factor
from ftae.errors import Reason
from ftae.specs.finetune.discriminator import not_shared
from ftae.specs.finetune.run import FinetuneSpec

TERM = "adversarial"
DISCRIMINATOR = "discriminator"
LECAM_DECAY = 0.99  # of the averages, per step (Tseng et al. 2021)
EPSILON = 1e-4  # of the adaptive weight (Esser et al. 2021)

logger = logging.getLogger(__name__)


class Adversarial(Reconstruct):
    """The autoencoder with the adversarial term in its loss, then the discriminator.

    The discriminator learns from the images of a batch and from the reconstructions that the model made of them in its
    turn; a conditional one sees the input of the model beside each. Neither loss leaves a gradient in the other
    network. Arguments as for ``Reconstruct``.
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
        auxiliary = replace(auxiliary, adversary=self.model_loss)
        super().__init__(spec, autoencoder, auxiliary, frozen_cache, noise=noise, averaged=averaged)
        self._settings, self._autoencoder = spec.discriminator, autoencoder
        self._loss = ADVERSARIAL_LOSSES[self._settings.loss]
        device = next(autoencoder.parameters()).device
        net = discriminator_of(spec).to(device)
        self._net = net
        self._start = [
            (p, p.detach().clone()) for p in net.parameters() if p.requires_grad and self._settings.l2_sp > 0.0
        ]
        optimizer = self._settings.optimizer()
        self.discriminator = NetworkInTraining(
            DISCRIMINATOR,
            net,
            build_optimizer(net, optimizer, section="discriminator"),
            lambda step: optimizer.lr * self._lr_factor(step),
            max_grad_norm=self._settings.max_grad_norm,
            failures=(Reason.BLOW_UP, Reason.BLOW_UP),
            saved=net.net,
        )
        self.networks = (self.model, self.discriminator)
        self._images_per_step = spec.batch_size * spec.grad_accumulation
        self._augmentation = Augmentation(self._settings.augment, spec.max_steps * self._images_per_step)
        self._logit_averages = torch.zeros(2, device=device)  # of real and of reconstructed images, for LeCam
        self._reconstructions: list[Tensor] = []  # of the batches of this step, until the discriminator has seen them
        self._balanced_at = _last_decoder_weight(autoencoder) if self._settings.adaptive else None
        if self._settings.adaptive and self._balanced_at is None:
            logger.warning("discriminator.adaptive has no effect: no weight of the decoder is trained")

    def is_due(self, network: NetworkInTraining, step: int) -> bool:
        return network is self.model or step / self.spec.max_steps >= self._settings.begin_fraction

    def loss(self, network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        """The model's turn records its reconstructions, from which the discriminator then learns."""
        if network is self.discriminator:
            real = self._autoencoder.to_range(batch.images)
            given = real if batch.inputs is batch.images else self._autoencoder.as_input(batch.inputs)
            return self.discriminator_loss(real, self.fakes(batch), given, step)
        progress = step / self.spec.max_steps
        weights = self.ramped(weights_at(self.spec.losses, progress), progress)
        terms, reconstruction = self.forward(batch, list(weights), progress)
        if self.is_due(self.discriminator, step):
            self._reconstructions.append(reconstruction)
        if TERM not in terms:
            return total_loss(terms, weights)
        factor = self.adaptive_weight(terms, weights)
        numbers = {"adaptive_weight": factor} if self._settings.adaptive else {}
        return total_loss(terms, weights | {TERM: weights[TERM] * factor}, numbers)

    def stepped(self, network: NetworkInTraining, parts: list[dict[str, float]], grad_norm: float) -> dict[str, float]:
        if network is self.model:
            return super().stepped(network, parts, grad_norm)
        means = {name: sum(part[name] / len(parts) for part in parts) for name in parts[0]}
        logits = torch.tensor([means["logits_real"], means["logits_fake"]], device=self._logit_averages.device)
        self._logit_averages.lerp_(logits, 1.0 - LECAM_DECAY)
        measured = means | {"discriminator_grad_norm": grad_norm}
        if self._settings.augment.name != "ada":
            return measured
        self._augmentation.update(means["sign_real"], self._images_per_step)
        return measured | {"augment_p": self._augmentation.p}

    @staticmethod
    def why_one_worker(workers: int) -> str | None:
        return not_shared(workers)

    def state(self) -> dict[str, Any]:
        return {"logit_averages": self._logit_averages.cpu(), "augmentation": self._augmentation.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._logit_averages.copy_(state["logit_averages"])
        if "augmentation" in state:  # older checkpoints have none
            self._augmentation.load_state(state["augmentation"])

    # ---------------------------------------------------------------------------------- the model's turn

    def model_loss(self, reconstruction: Tensor, given: Tensor, real: Tensor) -> Tensor:
        """The adversarial term, a scalar: low where the discriminator takes the reconstructions (B, C, H, W) for real.

        ``given``: what the model made them of. ``real``: the images of the batch, in the same form.
        """
        self.discriminator.rest()
        of_fake = self._judge(self._seen(reconstruction, given))
        of_real = self._judge(self._seen(real, given)) if self._loss.is_relative else None
        return self._loss.model(of_fake, of_real)

    def ramped(self, weights: dict[str, float], progress: float) -> dict[str, float]:
        """The weights at ``progress`` (0..1) of the budget; the adversarial term is left out until it begins."""
        weight = weights[TERM] * self._settings.share(progress)
        others = {name: value for name, value in weights.items() if name != TERM}
        return others | {TERM: weight} if weight > 0.0 else others

    def adaptive_weight(self, terms: dict[str, Tensor], weights: dict[str, float]) -> float:
        """The factor of the adversarial term besides its weight; 1 where ``discriminator.adaptive`` is off.

        The norm of the gradient of all other terms divided by that of the adversarial term, both at the last decoder
        weight that is trained; 1 where no other term depends on that weight.
        """
        if self._balanced_at is None:
            return 1.0
        others = weighted_sum({name: term for name, term in terms.items() if name != TERM}, weights)
        of_others, of_term = (_gradient_norm(loss, self._balanced_at) for loss in (others, terms[TERM]))
        if of_others is None or of_term is None:
            return 1.0
        return min(of_others / (of_term + EPSILON), self._settings.max_adaptive_weight)

    # -------------------------------------------------------------------------- the discriminator's turn

    def fakes(self, batch: Batch) -> Tensor:
        """What the model made of ``batch`` in its turn of this step, (B, C, H, W) in its range."""
        return self._reconstructions.pop(0)

    def discriminator_loss(self, real: Tensor, fake: Tensor, given: Tensor, step: int) -> Loss:
        """The loss on images and on what the model made of its inputs ``given``, with its penalties.

        Images are (B, C, H, W) in the model's range, without gradients.
        """
        of_real, of_fake = self._net.judge_both(
            self._seen(real, given), self._seen(fake, given), bf16=self.spec.precision == "bf16"
        )
        loss = self._loss.discriminator(of_real, of_fake)
        for penalty in self._penalties(real, fake, given, of_real, of_fake, step):
            loss = loss + penalty
        terms = {"discriminator": loss, "logits_real": of_real.mean(), "logits_fake": of_fake.mean()}
        if self._settings.augment.name == "ada":
            terms["sign_real"] = of_real.sign().mean()
        return Loss(loss, terms)

    def _penalties(
        self, real: Tensor, fake: Tensor, given: Tensor, of_real: Tensor, of_fake: Tensor, step: int
    ) -> Iterator[Tensor]:
        """The weighted penalties that are due in this step."""
        settings = self._settings
        if settings.r1 > 0.0 and step % settings.r1_every == 0:
            weight = 0.5 * settings.r1 * settings.r1_every
            for images in (real, fake) if self._loss.is_relative else (real,):
                yield weight * gradient_penalty(lambda x: self._net(self._seen(x, given)), images)
        if settings.lecam > 0.0:
            average_real, average_fake = self._logit_averages
            anchors = (of_real - average_fake).square().mean() + (of_fake - average_real).square().mean()
            yield settings.lecam * anchors
        if self._start:
            squares = torch.stack([(p - start).square().sum() for p, start in self._start])
            yield settings.l2_sp * squares.sum() / sum(start.numel() for _, start in self._start)

    def _judge(self, seen: Tensor) -> Tensor:
        return self._net.judge(seen, bf16=self.spec.precision == "bf16")

    def _seen(self, images: Tensor, given: Tensor) -> Tensor:
        """What the discriminator sees: images, augmented, or behind the inputs of the model where it is conditional."""
        if self.spec.is_conditional:
            return torch.cat([given, images], dim=1)
        if self._settings.augment.name == "none":
            return images
        model = self._autoencoder
        return model.to_range((self._augmentation.seen(2.0 * model.to_unit(images) - 1.0) + 1.0) / 2.0)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Tensor | None:
        """The mean logit of each of some images (B, C, H, W) in [0, 1], as they are: (B,).

        None where the discriminator has learned nothing yet, or judges images beside inputs.
        """
        if self.spec.is_conditional or self.discriminator.lr == 0.0:
            return None
        self.discriminator.rest()
        return self._judge(self._autoencoder.to_range(images)).flatten(1).mean(1)

    def _lr_factor(self, step: int) -> float:
        """The schedule of the run, over the part of the budget in which the discriminator is trained."""
        begin, progress = self._settings.begin_fraction, (step + 0.5) / self.spec.max_steps
        return lr_factor(self.spec.schedule, (progress - begin) / (1.0 - begin))


def _gradient_norm(loss: Tensor, at: nn.Parameter) -> float | None:
    """The norm of the gradient of ``loss`` at a parameter; None where ``loss`` does not depend on it."""
    if not loss.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(loss, [at], retain_graph=True, allow_unused=True)
    return None if gradient is None else float(gradient.norm())


def _last_decoder_weight(autoencoder: Autoencoder) -> nn.Parameter | None:
    """The last weight of the decoder that is trained; None where the decoder is frozen."""
    stages = [stage for stage in autoencoder.trainable_stages() if stage.group == "decoder"]
    weights = [p for stage in stages for p in stage.parameters() if p.requires_grad and p.ndim > 1]
    return weights[-1] if weights else None
