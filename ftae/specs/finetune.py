"""What one fine-tuning run is: model, data, losses, optimisation and metrics.

Everything tied to length is a fraction of ``max_steps``, so that a trial, a rung and a longer
production run mean the same thing by it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ftae.specs.base import Spec

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Positive = Annotated[int, Field(ge=1)]

# ---------------------------------------------------------------------------------------- models


class ModelSpec(Spec):
    """What every family shares.

    ``pretrained``: a local folder (diffusers format, or written by ``ftae train``), or a hub id.
    """

    pretrained: str | None = None

    # Facts of the family; the loop and the checks read them, no file sets them.
    @property
    def has_posterior(self) -> bool | None:
        """Whether the encoder gives a distribution; None where only the module itself can tell."""
        return False

    @property
    def bounded_output(self) -> bool:
        """Whether reconstructions always lie inside the image range (what BCE needs)."""
        return False


class MlpVae(ModelSpec):
    """The classic fully connected VAE: 784-400-20 for 28x28 grey images (Kingma & Welling 2013).

    ``None`` takes the pretrained model's value, or the default: hidden 400, latent_dim 20.
    """

    family: Literal["mlp_vae"]
    hidden: Positive | None = None
    latent_dim: Positive | None = None

    @property
    def has_posterior(self) -> bool:
        return True

    @property
    def bounded_output(self) -> bool:
        return True


class ConvAe(ModelSpec):
    """Fully convolutional autoencoder of strided convolutions; takes any multiple of 2**depth.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_channels 8.
    """

    family: Literal["conv_ae"]
    channels: Positive | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_channels: Positive | None = None

    @property
    def bounded_output(self) -> bool:
        return True


class ConvVae(ModelSpec):
    """VAE of strided convolutions around a linear bottleneck; its resolution is fixed.

    ``None`` takes the pretrained model's value, or the default: channels 32, depth 2, latent_dim 32.
    """

    family: Literal["conv_vae"]
    channels: Positive | None = None
    depth: Annotated[int, Field(ge=1, le=6)] | None = None
    latent_dim: Positive | None = None

    @property
    def has_posterior(self) -> bool:
        return True

    @property
    def bounded_output(self) -> bool:
        return True


class DiffusersModel(ModelSpec):
    """A pretrained diffusers autoencoder; ``subfolder`` is ``vae`` inside a whole pipeline."""

    pretrained: str
    subfolder: str | None = None


class AutoencoderKl(DiffusersModel):
    """diffusers' AutoencoderKL, the VAE of Stable Diffusion; images in [-1, 1]."""

    family: Literal["autoencoder_kl"]

    @property
    def has_posterior(self) -> bool:
        return True


class AutoencoderTiny(DiffusersModel):
    """diffusers' AutoencoderTiny (TAESD); images in [-1, 1]."""

    family: Literal["autoencoder_tiny"]


class CustomStages(Spec):
    """Sub-modules of a user's model, in data-flow order, by dotted name."""

    encoder: tuple[str, ...] = ()
    bottleneck: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()


class CustomModel(ModelSpec):
    """A user's own module: ``family`` is the ``package.module:attr`` that builds it.

    The attribute is called with ``kwargs`` and returns a module with ``encode`` and ``decode``, or
    with ``forward`` alone. ``encode`` returns latents, or ``(mean, logvar)``. ``pretrained`` is a
    state dict: ``.safetensors``, or ``.pt`` loaded with ``weights_only``.
    """

    family: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    kwargs: dict[str, Any] = {}
    stages: CustomStages | None = None
    image_range: Literal["0..1", "-1..1"]

    @property
    def has_posterior(self) -> None:
        return None


def _family_of(value: Any) -> str | None:
    family = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return "custom" if isinstance(family, str) and ":" in family else family


AnyModel = Annotated[
    Annotated[MlpVae, Tag("mlp_vae")]
    | Annotated[ConvAe, Tag("conv_ae")]
    | Annotated[ConvVae, Tag("conv_vae")]
    | Annotated[AutoencoderKl, Tag("autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(_family_of),
]

# ------------------------------------------------------------------------------------------ data


class DataSpec(Spec):
    """What every source shares. Images are square, ``resolution`` pixels a side, grey or RGB.

    ``random_crop_from``: decode at this side and train on random crops of ``resolution``
    (validation takes the centre). ``flip``: mirror training images left-right at random.
    """

    resolution: Annotated[int, Field(ge=8, le=4096)]
    color: Literal["rgb", "grey"] = "rgb"
    val: Annotated[float, Field(gt=0.0, lt=1.0)] | str = 0.1
    random_crop_from: Positive | None = None
    flip: bool = False

    @model_validator(mode="after")
    def _crop_has_room(self) -> "DataSpec":
        side = self.random_crop_from
        if side is not None and side <= self.resolution:
            raise ValueError(
                f"random_crop_from must be larger than resolution ({self.resolution}) to have an effect, got {side}"
            )
        return self

    @property
    def decoded_side(self) -> int:
        """Pixels a side of the decoded arrays."""
        return self.random_crop_from or self.resolution

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1


class ImageFolder(DataSpec):
    """A folder of images; its sub-folders, if any, are the labels.

    ``val``: the share held out of ``train`` (always the same images), or a folder of its own.
    """

    source: Literal["image_folder"]
    train: str


class Digits(DataSpec):
    """scikit-learn's 1,797 handwritten digits (8x8, enlarged), labelled 0-9.

    ``classes`` keeps some of them; ``shift`` makes another domain of the same digits.
    """

    source: Literal["digits"]
    color: Literal["rgb", "grey"] = "grey"
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    classes: Annotated[tuple[Annotated[int, Field(ge=0, le=9)], ...], Field(min_length=1)] = tuple(range(10))
    shift: Literal["none", "invert", "rotate", "noise"] = "none"


class Photos(DataSpec):
    """Patches of scikit-learn's two photographs (427x640), cut at ``resolution``; no labels.

    Validation patches come from the right-hand ``val`` share of each photograph, training patches
    from the rest, so that the two never overlap.
    """

    source: Literal["photos"]
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    num_patches: Annotated[int, Field(ge=10)] = 1000


AnyData = Annotated[ImageFolder | Digits | Photos, Field(discriminator="source")]

# ------------------------------------------------------------------------- losses and metrics


class Losses(Spec):
    """Weights of the loss terms; 0 is off. Each term is a mean over elements, computed in fp32.

    Pixel terms compare in the model's own image range; ``bce`` and ``ssim`` in [0, 1]. ``kl`` is per
    latent element (times image elements over latent elements it is the summed weight of Stable
    Diffusion's training). ``ce`` adds a classification head on the pooled latents.
    """

    mse: Weight = 0.0
    l1: Weight = 0.0
    huber: Weight = 0.0
    bce: Weight = 0.0
    kl: Weight = 0.0
    tv: Weight = 0.0
    ssim: Weight = 0.0
    ce: Weight = 0.0
    huber_delta: Annotated[float, Field(gt=0.0)] = 0.1
    kl_warmup_fraction: Fraction = 0.0

    TERMS: ClassVar = ("mse", "l1", "huber", "bce", "kl", "tv", "ssim", "ce")

    def weights(self) -> dict[str, float]:
        """The enabled terms with their weights, in a fixed order."""
        return {term: getattr(self, term) for term in self.TERMS if getattr(self, term) > 0.0}


MetricName = Literal["mse", "l1", "psnr", "ssim", "kl", "active_units", "accuracy"]

# The worst and best value a metric can take: what a diverged trial scores depends on the direction.
METRIC_BOUNDS: dict[str, tuple[float, float]] = {
    "mse": (0.0, 1.0),
    "l1": (0.0, 1.0),
    "psnr": (0.0, 100.0),
    "ssim": (-1.0, 1.0),
    "kl": (0.0, 1.0e9),
    "active_units": (0.0, 1.0e9),
    "accuracy": (0.0, 1.0),
}
NEEDS_POSTERIOR = frozenset({"kl", "active_units"})

# --------------------------------------------------------------------------------- optimisation


class Optimizer(Spec):
    """Optimizer and learning rates.

    ``lr_multipliers``: keys are groups (``encoder bottleneck decoder head``) or globs over stage and
    parameter names; where several match, their product counts. ``weight_decay`` never touches
    norms and biases. ``betas`` are Adam's, ``momentum`` is SGD's.
    """

    name: Literal["adamw", "adam", "radam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0.0)]
    lr_multipliers: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    weight_decay: Weight = 0.0
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] | None = None
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _setting_has_effect(self) -> "Optimizer":
        if self.name == "sgd" and self.betas is not None:
            raise ValueError("betas has no effect on sgd; it takes momentum")
        if self.name != "sgd" and self.momentum is not None:
            raise ValueError(f"momentum has no effect on {self.name}; it takes betas")
        return self


class Schedule(Spec):
    """Learning rate over the budget: linear warm-up, then the named curve down to ``final_fraction``.

    ``cyclical`` is the triangular policy of Smith (2017) with ``num_cycles`` over the budget.
    """

    name: Literal["constant", "linear", "cosine", "cyclical"] = "constant"
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    final_fraction: Fraction = 0.0
    num_cycles: Positive = 3

    @model_validator(mode="after")
    def _setting_has_effect(self) -> "Schedule":
        if self.name == "constant" and self.final_fraction != 0.0:
            raise ValueError("final_fraction has no effect on a constant schedule; choose linear, cosine or cyclical")
        if self.name != "cyclical" and self.num_cycles != 3:
            raise ValueError(f"num_cycles has no effect on a {self.name} schedule; choose cyclical")
        return self


# ------------------------------------------------------------------------------------------ whole


class FinetuneSpec(Spec):
    """A complete fine-tuning run.

    ``batch_size`` images go through the model at a time; an optimizer step sees ``batch_size *
    grad_accumulation`` of them. ``num_evals`` evaluations are spread evenly over ``max_steps``.
    ``sample_posterior``: train on a sample of the posterior (as the model is used) or on its mode.
    ``num_threads``: CPU threads; the last digits of a result depend on it, so a search sets it.
    """

    model: AnyModel
    data: AnyData
    freeze_depth: Annotated[int, Field(ge=0)] = 0
    freeze: tuple[str, ...] = ()
    losses: Losses
    optimizer: Optimizer
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    schedule: Schedule = Schedule()
    ema_half_life_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    batch_size: Positive = 8
    grad_accumulation: Positive = 1
    max_steps: Positive
    num_evals: Positive = 6
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] = ("psnr", "ssim")
    sample_posterior: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "FinetuneSpec":
        problems = [*self._loss_problems(), *self._metric_problems()]
        if self.num_evals > self.max_steps:
            problems.append(f"num_evals: must not exceed max_steps ({self.max_steps}), got {self.num_evals}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _loss_problems(self) -> list[str]:
        weights, family = self.losses.weights(), self.model.family
        problems = []
        if not weights:
            problems.append(f"losses: at least one of {', '.join(Losses.TERMS)} needs a weight above 0")
        if "bce" in weights and not self.model.bounded_output:
            problems.append(f"losses.bce: needs outputs inside the image range; {family} does not bound them (use mse or l1)")
        if "kl" in weights and self.model.has_posterior is False:
            problems.append(f"losses.kl: needs a posterior; {family} has none")
        if "ssim" in weights and self.data.resolution < 16:
            problems.append(f"losses.ssim: needs a resolution of at least 16, got {self.data.resolution}")
        if "ce" in weights and self.data.source == "photos":
            problems.append("losses.ce: needs labels; photos has none")
        return problems

    def _metric_problems(self) -> list[str]:
        problems = []
        for metric in self.metrics:
            if metric in NEEDS_POSTERIOR and self.model.has_posterior is False:
                problems.append(f"metrics: {metric} needs a posterior; {self.model.family} has none")
        if "accuracy" in self.metrics and self.losses.ce == 0.0:
            problems.append("metrics: accuracy needs the classification head that losses.ce > 0 brings")
        if "ssim" in self.metrics and self.data.resolution < 16:
            problems.append(f"metrics: ssim needs a resolution of at least 16, got {self.data.resolution}")
        return problems

    def eval_steps(self) -> list[int]:
        """The steps after which the model is evaluated; the last is ``max_steps``."""
        return [round(i * self.max_steps / self.num_evals) for i in range(1, self.num_evals + 1)]
