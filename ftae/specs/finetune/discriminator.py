"""The discriminator of the adversarial loss: its network, its loss and its training."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.augmentation import AugmentSpec
from ftae.specs.finetune.generators import GENERATOR_FAMILIES, TWO_WAY_FAMILIES
from ftae.specs.finetune.optimization import Beta, Optimizer
from ftae.specs.reading.base import Fraction, Positive, Spec, Weight, absolute
from ftae.specs.reading.schema import Governed, without_effect

WHOLE_IMAGE = 8  # the least side of an image that is judged as a whole


class DiscriminatorSpec(Spec):
    """A discriminator and its training; it has an effect only where ``losses.adversarial`` is on.

    The learning rate follows the schedule of the run over the time in which the discriminator is trained. A generator
    and a model that translates both ways have other defaults (``OTHER_DEFAULTS``): their discriminators are in use from
    the first step on, unless the file says otherwise.
    """

    architecture: Literal["patch", "dcgan", "stylegan2"] = "patch"
    """``patch`` judges patches (PatchGAN, Isola et al. 2017): two convolutions without stride follow the ``depth``
    strided ones. ``dcgan`` (Radford et al. 2015) and ``stylegan2`` (Karras et al. 2020) judge whole images, whose side
    is a power of two."""
    loss: Literal["hinge", "non_saturating", "lsgan", "relativistic"] = "hinge"
    """The adversarial loss: hinge (Lim & Ye 2017), cross-entropy (Goodfellow et al. 2014), least squares (Mao et al.
    2017), or the pairwise relativistic loss of R3GAN (Huang et al. 2024), whose ``r1`` is taken of generated images,
    too."""
    norm: Annotated[Literal["spectral", "group", "instance"], Governed("discriminator.architecture", ("patch",))] = (
        "spectral"
    )
    """Spectral (Miyato et al. 2018), group or instance normalisation; ``instance`` without factors and offsets, and
    ``depth: 3``, are the discriminator of CycleGAN."""
    channels: Annotated[Positive, Governed("discriminator.architecture", ("patch", "dcgan"))] = 64
    """Channels of the first convolution."""
    depth: Annotated[Annotated[int, Field(ge=1, le=6)], Governed("discriminator.architecture", ("patch",))] = 2
    """Number of strided convolutions."""
    channel_base: Annotated[Positive, Governed("discriminator.architecture", ("stylegan2",))] = 16384
    """Channels times the side of a stage, up to ``channel_max``."""
    channel_max: Annotated[Positive, Governed("discriminator.architecture", ("stylegan2",))] = 512
    """The most channels of a stage."""
    conditional: bool | None = None
    """Whether it sees the input of the model beside each image (Mirza & Osindero 2014); null: if the data are pairs."""
    pretrained: str | None = None
    """A state dict of such a discriminator (``.safetensors`` or ``.pt``), or the folder of a model that has one beside
    it."""
    freeze_depth: Annotated[int, Field(ge=0)] = 0
    """How many of its stages to freeze, from the image on (FreezeD, Mo et al. 2020)."""
    lr_multipliers: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    """Factors on the learning rate by glob over its stages and parameters; where several match, their product
    counts."""
    l2_sp: Weight = 0.0
    """Weight of the mean squared distance of its trainable weights from their pretrained values (Li et al. 2018)."""
    lr: Annotated[float, Field(gt=0.0)] = 2.0e-4
    """Learning rate of Adam."""
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Decay rates of Adam."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Clips the norm of the discriminator's gradient; null does not clip."""
    start_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """The share of the budget after which the term is part of the model's loss."""
    ramp_fraction: Fraction = 0.1
    """The share of the budget over which the weight of the term then rises linearly."""
    warmup_fraction: Fraction = 0.1
    """The share of the budget, before the start, in which the discriminator alone is trained."""
    adaptive: bool = True
    """Scales the term so that its gradient at the last trainable decoder weight is as large as that of all other terms
    together (Esser et al. 2021, eq. 7)."""
    max_adaptive_weight: Annotated[float, Field(gt=0.0), Governed("discriminator.adaptive")] = 100.0
    """The largest factor by which ``adaptive`` scales the term."""
    r1: Weight = 0.0
    """Gamma of the gradient penalty gamma/2 * E||grad||^2 (Mescheder et al. 2018) in the discriminator's loss: the
    gradient of the mean logit of a real image, summed over its pixels in the range of the model."""
    r1_every: Annotated[Positive, Governed("discriminator.r1")] = 1
    """The penalty is computed in every such step and weighted by their number; Adam's rates are adapted to that (lazy
    regularisation, Karras et al. 2020)."""
    augment: AugmentSpec = AugmentSpec()
    """What is changed at random in all images that it sees."""
    lecam: Weight = 0.0
    """Weight of the LeCam penalty (Tseng et al. 2021) in the discriminator's loss."""
    pool_size: Annotated[Annotated[int, Field(ge=0)], Governed("losses.cycle")] = 50
    """Outputs of each direction that are kept to be shown again later (Shrivastava et al. 2017); 0 keeps none."""

    @field_validator("ramp_fraction", "warmup_fraction")
    @classmethod
    def _lies_in_the_budget(cls, value: float, info: ValidationInfo) -> float:
        start = info.data.get("start_fraction", 0.0)
        if info.field_name == "ramp_fraction" and start + value > 1.0:
            raise ValueError(f"must end within the budget, start_fraction {start:g} + {value:g} is more than 1")
        if info.field_name == "warmup_fraction" and value > start:
            raise ValueError(f"must be at most start_fraction ({start:g}), which it comes before, got {value:g}")
        return value

    @field_validator("l2_sp")
    @classmethod
    def _has_a_start(cls, value: float, info: ValidationInfo) -> float:
        if value > 0.0 and info.data.get("pretrained", "") is None:
            raise ValueError("compares with the pretrained discriminator, pretrained is null")
        return value

    @field_validator("norm", "channels", "depth", "channel_base", "channel_max", "max_adaptive_weight")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        if (idle := without_effect(cls, value, info)) is not None:
            governor = idle.governor.rpartition(".")[2]
            wanted = f", it needs {' or '.join(idle.values)}" if idle.values else ""
            raise ValueError(f"has no effect where {governor} is {json.dumps(info.data[governor])}{wanted}")
        return value

    @property
    def least_resolution(self) -> int:
        """The smallest image of which ``patch`` gives a logit: the two last convolutions take a pixel each."""
        return 3 << self.depth

    @property
    def begin_fraction(self) -> float:
        """The share of the budget after which the discriminator is trained."""
        return self.start_fraction - self.warmup_fraction

    def optimizer(self) -> Optimizer:
        """Adam, adapted to penalties that are computed every ``r1_every`` steps (Karras et al. 2020, appendix B)."""
        lazy = self.r1_every / (self.r1_every + 1) if self.r1 > 0.0 and self.r1_every > 1 else 1.0
        first, second = (beta**lazy for beta in self.betas)
        return Optimizer(name="adam", lr=self.lr * lazy, betas=(first, second), lr_multipliers=self.lr_multipliers)

    def share(self, progress: float) -> float:
        """The share of its weight that the term has at ``progress`` (0..1) of the budget; 0 before it starts."""
        if progress < self.start_fraction:
            return 0.0
        passed = progress - self.start_fraction
        return min(1.0, passed / self.ramp_fraction) if self.ramp_fraction > 0.0 else 1.0

    def with_absolute_paths(self) -> "DiscriminatorSpec":
        """The same discriminator with an absolute path to its weights."""
        return self if self.pretrained is None else self.model_copy(update={"pretrained": absolute(self.pretrained)})

    def from_the_start(self) -> "DiscriminatorSpec":
        """The same discriminator with everything in use at step 0, where a step takes the most time and memory."""
        return self.model_copy(update={"start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0})


def not_shared(workers: int) -> str:
    """Why several workers cannot train a run with the adversarial term."""
    return (
        f"{workers} workers cannot share losses.adversarial: its discriminator is trained by one process alone, "
        "use one worker, or leave the term at 0"
    )


# Beside these models a discriminator is in use from the first step on, and their loss has no other term, or a fixed
# weight, to balance the adversarial one.
_AT_ONCE: dict[str, Any] = {
    "max_grad_norm": None,
    "start_fraction": 0.0,
    "ramp_fraction": 0.0,
    "warmup_fraction": 0.0,
    "adaptive": False,
}
_GENERATOR = {**_AT_ONCE, "loss": "non_saturating", "betas": (0.0, 0.99)}  # Karras et al. 2020
_TWO_WAY = {**_AT_ONCE, "loss": "lsgan", "betas": (0.5, 0.999)}  # Zhu et al. 2017
OTHER_DEFAULTS = {family: {"architecture": family, **_GENERATOR} for family in GENERATOR_FAMILIES}
OTHER_DEFAULTS |= dict.fromkeys(TWO_WAY_FAMILIES, _TWO_WAY)
