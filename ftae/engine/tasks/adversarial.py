"""The adversarial term: a discriminator that is trained beside the model, and what it makes the model lose."""

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.discriminator import build_discriminator
from ftae.engine.objectives.losses import weighted_sum
from ftae.engine.tasks.optim import lr_factor
from ftae.errors import Reason, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec

TERM = "adversarial"


LECAM_DECAY = 0.99  # of the averages, a step (Tseng et al. 2021)

EPSILON = 1e-4  # of the adaptive weight (Esser et al. 2021)

logger = logging.getLogger(__name__)


class Adversary:
    """The discriminator of a run with its optimizer, beside the model and its own.

    The model's loss leaves no gradient in the discriminator, nor the discriminator's in the model. Between
    two optimizer steps of the model it is shown every batch, and then takes a step of its own.
    """

    def __init__(self, spec: FinetuneSpec, autoencoder: Autoencoder, device: torch.device) -> None:
        self._run, self._spec = spec, spec.discriminator
        discriminator = build_discriminator(self._spec, channels=spec.data.channels, seed=spec.seed)
        self.discriminator = discriminator.to(device)
        self.net = self.discriminator.net
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=self._spec.lr, betas=self._spec.betas, fused=True)
        self._averages = torch.zeros(2, device=device)  # of the logits of real and of fake images, for LeCam
        self._shown: list[tuple[Tensor, Tensor]] = []
        self._balanced_at = _last_decoder_weight(autoencoder) if self._spec.adaptive else None
        if self._spec.adaptive and self._balanced_at is None:
            logger.warning("discriminator.adaptive has no effect: no weight of the decoder is trained")

    # ------------------------------------------------------------------------------------ the model's side

    def loss(self, reconstruction: Tensor) -> Tensor:
        """What the model loses, a scalar: its reconstructions (B, C, H, W) are not taken for real images.

        Minus the mean logit for hinge (Lim & Ye 2017), so it may be negative; softplus of that for
        ``non_saturating`` (Goodfellow et al. 2014).
        """
        self.net.eval().requires_grad_(False)
        logits = self._judge(reconstruction)
        return -logits.mean() if self._spec.loss == "hinge" else F.softplus(-logits).mean()

    def ramped(self, weights: dict[str, float], progress: float) -> dict[str, float]:
        """The weights at ``progress`` (0..1) of the budget, without the term where it is not there yet."""
        weight = weights[TERM] * self._spec.share(progress)
        others = {name: value for name, value in weights.items() if name != TERM}
        return others | {TERM: weight} if weight > 0.0 else others

    def balance(self, terms: dict[str, Tensor], weights: dict[str, float]) -> float:
        """What the term is to be multiplied by, besides its weight: the adaptive weight, or 1 where there is none.

        The norm of the gradient of all other terms over that of this one, both at the last weight of the
        decoder that is trained; 1 where no other term depends on that.
        """
        if self._balanced_at is None:
            return 1.0
        others = weighted_sum({name: term for name, term in terms.items() if name != TERM}, weights)
        theirs, own = (_gradient_norm(loss, self._balanced_at) for loss in (others, terms[TERM]))
        if theirs is None or own is None:
            return 1.0
        return min(theirs / (own + EPSILON), self._spec.max_adaptive_weight)

    # ---------------------------------------------------------------------------- the discriminator's side

    def show(self, target: Tensor, reconstruction: Tensor) -> None:
        """Images and what the model made of them, (B, C, H, W) in its range, to learn from at the next step."""
        self._shown.append((target.detach(), reconstruction.detach()))

    def step(self, step: int) -> dict[str, float]:
        """The optimizer step ``step`` (from 0) on all that was shown since the last, if its training has begun.

        Returns what was measured.

        Raises:
            TrainingFailed: its loss or its gradient is not finite.
        """
        progress = step / self._run.max_steps
        shown, self._shown = self._shown, []
        if progress < self._spec.begin_fraction:
            return {}
        self.net.train().requires_grad_(True)
        self._optimizer.zero_grad(set_to_none=True)
        measured: dict[str, float] = {}
        for target, reconstruction in shown:
            loss, logits = self._learn(target, reconstruction)
            (loss / len(shown)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"discriminator": loss.item(), **logits}.items():
                measured[name] = measured.get(name, 0.0) + value / len(shown)
        parameters = list(self.net.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        measured["discriminator_grad_norm"] = float(norm)
        if not all(math.isfinite(value) for value in measured.values()):
            raise TrainingFailed(Reason.BLOW_UP, step)
        if self._spec.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._spec.max_grad_norm, norm)
        self._set_lr((step + 0.5) / self._run.max_steps)
        self._optimizer.step()
        means = torch.tensor([measured["logits_real"], measured["logits_fake"]], device=self._averages.device)
        self._averages.lerp_(means, 1.0 - LECAM_DECAY)
        return measured

    def _learn(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and the mean logits."""
        spec = self._spec
        of_real, of_fake = self._judge(torch.cat([real, fake])).chunk(2)
        if spec.loss == "hinge":
            loss = F.relu(1.0 - of_real).mean() + F.relu(1.0 + of_fake).mean()
        else:
            loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        if spec.r1 > 0.0:
            loss = loss + 0.5 * spec.r1 * squared_slope(self.net, real)
        if spec.lecam > 0.0:
            average_real, average_fake = self._averages
            anchors = (of_real - average_fake).square().mean() + (of_fake - average_real).square().mean()
            loss = loss + spec.lecam * anchors
        return loss, {"logits_real": of_real.mean().item(), "logits_fake": of_fake.mean().item()}

    def _judge(self, images: Tensor) -> Tensor:
        return self.discriminator.judge(images, bf16=self._run.precision == "bf16")

    def _set_lr(self, progress: float) -> None:
        """The run's schedule, over the time from where its own training begins."""
        begin = self._spec.begin_fraction
        factor = lr_factor(self._run.schedule, (progress - begin) / (1.0 - begin))
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.lr * factor

    # ----------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """Everything but the network that its training needs to go on: tensors and plain values."""
        return {"optimizer": self._optimizer.state_dict(), "averages": self._averages.cpu()}

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up, in place, the network's state dict and what ``state`` gave."""
        self.net.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        self._averages.copy_(state["averages"])


def _gradient_norm(loss: Tensor, at: nn.Parameter) -> float | None:
    """Of the gradient of ``loss`` at a parameter; None where it does not depend on that."""
    if not loss.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(loss, [at], retain_graph=True, allow_unused=True)
    return None if gradient is None else float(gradient.norm())


def squared_slope(net: nn.Module, images: Tensor) -> Tensor:
    """R1 without its factor: of an image's mean logit, the squared gradient summed over its pixels; in fp32.

    The mean over ``images`` (B, C, H, W).
    """
    images = images.detach().requires_grad_(True)
    logits = net(images).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(logits.sum(), [images], create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def _last_decoder_weight(autoencoder: Autoencoder) -> nn.Parameter | None:
    """The last weight of the decoder that is trained; None where it is frozen."""
    stages = [stage for stage in autoencoder.trainable_stages() if stage.group == "decoder"]
    weights = [p for stage in stages for p in stage.parameters() if p.requires_grad and p.ndim > 1]
    return weights[-1] if weights else None
