"""The augmentation of what a discriminator sees, and the probability of ADA, which follows its overfitting."""

from typing import Any

from torch import Tensor

from ftae.engine.tasks.image_transforms import ada, diffaugment
from ftae.specs.finetune.augmentation import AugmentSpec

MOST = 0.8  # probability, above which changes show in what a generator makes (Karras et al. 2020)
MEMORY = 0.1  # of the speed: the images whose mean is compared with the target


class AdaptiveProbability:
    """Rises while a measure of overfitting is above its target on average, and falls else; within [0, ``MOST``].

    Args:
        target: of the measure.
        speed: images in which the probability would rise from 0 to 1.
    """

    def __init__(self, target: float, speed: float) -> None:
        self._target, self._speed = target, speed
        self.p = 0.0
        self._mean = self._weight = 0.0  # running mean of the measure, and the sum of its weights so far

    def update(self, measure: float, num_images: int) -> None:
        """Take the measure of the next ``num_images`` training images."""
        share = 1.0 - 0.5 ** (num_images / (MEMORY * self._speed))
        self._mean += share * (measure - self._mean)
        self._weight += share * (1.0 - self._weight)
        step = num_images / self._speed
        is_above = self._mean / self._weight > self._target
        self.p = min(MOST, max(0.0, self.p + (step if is_above else -step)))

    def state(self) -> dict[str, float]:
        return {"p": self.p, "mean": self._mean, "weight": self._weight}

    def load_state(self, state: dict[str, float]) -> None:
        self.p, self._mean, self._weight = state["p"], state["mean"], state["weight"]


class Augmentation:
    """Changes real and generated images alike.

    Args:
        spec: what is changed.
        budget: the training images of the run.
    """

    def __init__(self, spec: AugmentSpec, budget: int) -> None:
        self._spec = spec
        self._adaptive = AdaptiveProbability(spec.target, spec.speed_fraction * budget)

    @property
    def p(self) -> float:
        """The probability with which each change is made, 0..1."""
        return {"none": 0.0, "diffaugment": 1.0}.get(self._spec.name, self._adaptive.p)

    def seen(self, images: Tensor) -> Tensor:
        """What a discriminator sees of images (B, C, H, W) in [-1, 1]; drawn anew in each call."""
        if self._spec.name == "diffaugment":
            return diffaugment(images, self._spec.parts)
        return ada(images, self.p, self._spec.parts, turns=self._spec.turns)

    def update(self, measure: float, num_images: int) -> None:
        """Take r_t, the mean sign of the logits, of the next ``num_images`` training images."""
        if self._spec.name == "ada":
            self._adaptive.update(measure, num_images)

    def state(self) -> dict[str, Any]:
        return self._adaptive.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._adaptive.load_state(state)
