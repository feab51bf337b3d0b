"""What one fine-tuning run is: model, data, losses, optimisation and metrics.

Everything tied to length is a fraction of ``max_steps``, so that a trial, a rung and a longer
production run mean the same thing by it.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.base import Positive, Spec
from ftae.specs.data import AnyData, ImageFolder
from ftae.specs.models import AnyModel
from ftae.specs.problems import Problem, refusal

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


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


class FinetuneSpec(Spec):
    """A complete fine-tuning run.

    ``batch_size`` images go through the model at a time; an optimizer step sees ``batch_size *
    grad_accumulation`` of them. ``num_evals`` evaluations are spread evenly over ``max_steps``.
    ``sample_posterior``: train on a sample of the posterior (as the model is used) or on its mode.
    ``num_threads`` (on the CPU) and ``device`` (``auto``: a GPU if there is one): the last digits of a
    result depend on them, so a search sets both by ``search.resources``.
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
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
