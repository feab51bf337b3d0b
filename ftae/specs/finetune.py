"""What one fine-tuning run is: model, data, losses, optimisation and metrics.

Everything tied to length is a fraction of ``max_steps``, so that a trial, a rung and a longer
production run mean the same thing by it.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator

from ftae.specs.base import Spec
from ftae.specs.problems import Problem, matching, refusal

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

    family: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "written package.module:attr")]
    kwargs: dict[str, JsonValue] = {}
    stages: CustomStages | None = None
    image_range: Literal["0..1", "-1..1"]

    @property
    def has_posterior(self) -> None:
        return None


def _family(value: Any) -> str | None:
    """The tag of a model; error messages take the key's name from this function's."""
    family = value.get("family") if isinstance(value, dict) else getattr(value, "family", None)
    return "package.module:attr" if isinstance(family, str) and ":" in family else family


AnyModel = Annotated[
    Annotated[MlpVae, Tag("mlp_vae")]
    | Annotated[ConvAe, Tag("conv_ae")]
    | Annotated[ConvVae, Tag("conv_vae")]
    | Annotated[AutoencoderKl, Tag("autoencoder_kl")]
    | Annotated[AutoencoderTiny, Tag("autoencoder_tiny")]
    | Annotated[CustomModel, Tag("package.module:attr")],
    Discriminator(_family),
]

# ------------------------------------------------------------------------------------------ data


class DataSpec(Spec):
    """What every source shares. Images are square, ``resolution`` pixels a side, grey or RGB.

    ``random_crop_from``: decode at this side and train on random crops of ``resolution``
    (validation takes the centre). ``flip``: mirror training images left-right at random.
    """

    resolution: Annotated[int, Field(ge=8, le=4096)]
    color: Literal["rgb", "grey"] = "rgb"
    # A share first: YAML reads 1e-1 as text, which must not become the name of a folder.
    val: Annotated[Annotated[float, Field(gt=0.0, lt=1.0)] | str, Field(union_mode="left_to_right")] = 0.1
    random_crop_from: Positive | None = None
    flip: bool = False

    @field_validator("random_crop_from")
    @classmethod
    def _crop_has_room(cls, side: int | None, info: ValidationInfo) -> int | None:
        resolution = info.data.get("resolution")
        if side is not None and resolution is not None and side <= resolution:
            raise ValueError(f"must be larger than resolution ({resolution}) to have an effect, got {side}")
        return side

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

    @field_validator("betas", "momentum")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name")
        if value is not None and name is not None and (info.field_name == "momentum") != (name == "sgd"):
            raise ValueError(f"has no effect on {name}, it takes {'betas' if name != 'sgd' else 'momentum'}")
        return value


class Schedule(Spec):
    """Learning rate over the budget: linear warm-up, then the named curve down to ``final_fraction``.

    ``cyclical`` is the triangular policy of Smith (2017) with ``num_cycles`` over the budget.
    """

    name: Literal["constant", "linear", "cosine", "cyclical"] = "constant"
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    final_fraction: Fraction = 0.0
    num_cycles: Positive = 3

    @field_validator("final_fraction", "num_cycles")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        name, field = info.data.get("name"), str(info.field_name)
        takes = ("cyclical",) if field == "num_cycles" else ("linear", "cosine", "cyclical")
        if name is not None and name not in takes and value != cls.model_fields[field].default:
            raise ValueError(f"has no effect on a {name} schedule, it needs {' or '.join(takes)}")
        return value


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

    # Each field is checked against the ones before it as far as those are valid, so that all faults show at once.

    @field_validator("losses")
    @classmethod
    def _losses_fit(cls, losses: Losses, info: ValidationInfo) -> Losses:
        model, data, weights = info.data.get("model"), info.data.get("data"), losses.weights()
        found: list[Problem] = []
        if not weights:
            found.append(((), f"at least one of {', '.join(Losses.TERMS)} needs a weight above 0"))
        if "bce" in weights and model is not None and not model.bounded_output:
            reason = f"{model.family} does not bound them (use mse or l1)"
            found.append((("bce",), f"needs outputs inside the image range, {reason}"))
        if "kl" in weights and model is not None and model.has_posterior is False:
            found.append((("kl",), f"needs a posterior, {model.family} has none"))
        if "ssim" in weights and data is not None and data.resolution < 16:
            found.append((("ssim",), f"needs a resolution of at least 16, got {data.resolution}"))
        if "ce" in weights and data is not None and data.source == "photos":
            found.append((("ce",), "needs labels, photos has none"))
        if found:
            raise refusal(found)
        return losses

    @field_validator("num_evals")
    @classmethod
    def _evals_fit(cls, num_evals: int, info: ValidationInfo) -> int:
        max_steps = info.data.get("max_steps", num_evals)
        if num_evals > max_steps:
            raise ValueError(f"must not exceed max_steps ({max_steps}), got {num_evals}")
        return num_evals

    @field_validator("metrics")
    @classmethod
    def _metrics_fit(cls, metrics: tuple[MetricName, ...], info: ValidationInfo) -> tuple[MetricName, ...]:
        model, data, losses = (info.data.get(key) for key in ("model", "data", "losses"))
        found: list[Problem] = []
        for i, metric in enumerate(metrics):
            if metric in metrics[:i]:
                found.append(((i,), f"{metric} is given twice"))
            if metric in NEEDS_POSTERIOR and model is not None and model.has_posterior is False:
                found.append(((i,), f"{metric} needs a posterior, {model.family} has none"))
            if metric == "accuracy" and losses is not None and losses.ce == 0.0:
                found.append(((i,), "accuracy needs the classification head that losses.ce > 0 brings"))
            if metric == "ssim" and data is not None and data.resolution < 16:
                found.append(((i,), f"ssim needs a resolution of at least 16, got {data.resolution}"))
        if found:
            raise refusal(found)
        return metrics

    @field_validator("sample_posterior")
    @classmethod
    def _posterior_is_there(cls, sample_posterior: bool, info: ValidationInfo) -> bool:
        model = info.data.get("model")
        if not sample_posterior and model is not None and model.has_posterior is False:
            raise ValueError(f"false has no effect, {model.family} has no posterior")
        return sample_posterior

    def eval_steps(self) -> list[int]:
        """The steps after which the model is evaluated; the last is ``max_steps``."""
        return [round(i * self.max_steps / self.num_evals) for i in range(1, self.num_evals + 1)]

    def located(self) -> "FinetuneSpec":
        """The same run with absolute paths, so that it can be run from any folder."""
        model, data = self.model, self.data
        if model.pretrained is not None and Path(model.pretrained).expanduser().exists():
            model = model.model_copy(update={"pretrained": _absolute(model.pretrained)})
        if isinstance(data, ImageFolder):
            val = _absolute(data.val) if isinstance(data.val, str) else data.val
            data = data.model_copy(update={"train": _absolute(data.train), "val": val})
        return self.model_copy(update={"model": model, "data": data})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
