"""What one fine-tuning run is: model, data, losses, optimisation and metrics.

Everything tied to length is a fraction of ``max_steps``, so that a trial, a rung and a longer
production run mean the same thing by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune import needs
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS, MetricName
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.needs import Parts
from ftae.specs.finetune.networks import DiscriminatorSpec, FeatureNet, PerceptualNet
from ftae.specs.reading.base import Fraction, Positive, Spec, Weight, absolute
from ftae.specs.reading.problems import Problem, refusal

# What only some optimizers and schedules take, and which.
OPTIMIZERS_WITH = {"betas": ("adamw", "adam", "radam"), "momentum": ("sgd",)}

SCHEDULES_WITH = {"num_cycles": ("cyclical",), "final_fraction": ("linear", "cosine", "cyclical")}


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
        if value is not None and name is not None and name not in OPTIMIZERS_WITH[str(info.field_name)]:
            takes = [setting for setting, names in OPTIMIZERS_WITH.items() if name in names]
            raise ValueError(f"has no effect on {name}, it takes {' and '.join(takes)}")
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
        takes = SCHEDULES_WITH[field]
        if name is not None and name not in takes and value != cls.model_fields[field].default:
            raise ValueError(f"has no effect on a {name} schedule, it needs {' or '.join(takes)}")
        return value


class FinetuneSpec(Spec):
    """A complete fine-tuning run.

    ``batch_size`` images go through the model at a time; an optimizer step sees ``batch_size *
    grad_accumulation`` of them. ``num_evals`` evaluations are spread evenly over ``max_steps``.
    ``sample_posterior``: train on a sample of the posterior (as the model is used) or on its mode.
    ``perceptual``: the network that ``lpips`` and ``vgg`` look through; ``features``: that of ``rfid`` and ``kid``.
    ``num_threads`` (on the CPU) and ``device`` (``auto``: a GPU if there is one): the last digits of a
    result depend on them, so a search sets both by ``search.resources``.
    ``frozen_cache_gb``: what the outputs of frozen stages, kept for all runs of a machine, may take on its disk
    (1e9 bytes); 0 keeps none. No result depends on it.
    """

    model: AnyModel
    data: AnyData
    freeze_depth: Annotated[int, Field(ge=0)] = 0
    freeze: tuple[str, ...] = ()
    perceptual: PerceptualNet | None = None
    features: FeatureNet | None = None
    losses: Losses
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
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
    frozen_cache_gb: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 4.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    # Each field is checked against the ones before it as far as those are valid, so that all faults show at once.

    @field_validator("data")
    @classmethod
    def _labels_are_there(cls, data: AnyData, info: ValidationInfo) -> AnyData:
        model = info.data.get("model")
        reason = needs.every_label(Parts(model, data, None))
        if model is not None and model.needs_labels and reason:
            raise ValueError(f"{model.family} {reason}")
        return data

    @field_validator("losses")
    @classmethod
    def _losses_fit(cls, losses: Losses, info: ValidationInfo) -> Losses:
        parts, weights = _parts(info, losses), losses.weights()
        found: list[Problem] = []
        if not weights:
            found.append(((), f"at least one of {', '.join(Losses.TERMS)} needs a weight above 0"))
        for term in weights:
            found += [((term,), reason) for need in Losses.TERMS[term] if (reason := need(parts))]
        if found:
            raise refusal(found)
        return losses

    @field_validator("discriminator")
    @classmethod
    def _sees_patches(cls, discriminator: DiscriminatorSpec, info: ValidationInfo) -> DiscriminatorSpec:
        data, losses = info.data.get("data"), info.data.get("losses")
        if data is None or losses is None or losses.adversarial == 0.0:
            return discriminator
        if data.resolution < discriminator.least_resolution:
            least = f"{discriminator.least_resolution} (3 * 2**depth)"
            rule = f"{discriminator.depth} needs a resolution of at least {least}, got {data.resolution}"
            raise refusal([(("depth",), rule)])
        return discriminator

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
        parts = _parts(info, info.data.get("losses"))
        found: list[Problem] = []
        for i, metric in enumerate(metrics):
            if metric in metrics[:i]:
                found.append(((i,), f"{metric} is given twice"))
            found += [((i,), f"{metric} {reason}") for need in METRICS[metric].needs if (reason := need(parts))]
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

    def source_metrics(self) -> tuple[MetricName, ...]:
        """Those of ``metrics`` that are also measured on the images of ``data.replay``.

        Left out are those that these images cannot have, and those of the head, whose classes are the data's own.
        """
        if self.data.replay is None:
            return ()
        parts = Parts(self.model, self.data.replay, self.losses, self.perceptual, self.features)
        return tuple(
            name
            for name in self.metrics
            if needs.head not in METRICS[name].needs and not any(need(parts) for need in METRICS[name].needs)
        )

    def measured(self) -> tuple[str, ...]:
        """The metrics as reports name them: ``val/psnr``, ``val_source/psnr``."""
        return (*(f"val/{name}" for name in self.metrics), *(f"val_source/{name}" for name in self.source_metrics()))

    def with_absolute_paths(self) -> "FinetuneSpec":
        """The same run with absolute paths, so that it can be run from any folder."""
        model, discriminator = self.model, self.discriminator.with_absolute_paths()
        if model.pretrained is not None and Path(model.pretrained).expanduser().exists():
            model = model.model_copy(update={"pretrained": absolute(model.pretrained)})
        networks = {
            name: net and net.with_absolute_paths()
            for name, net in (("perceptual", self.perceptual), ("features", self.features))
        }
        return self.model_copy(
            update={**networks, "model": model, "data": self.data.with_absolute_paths(), "discriminator": discriminator}
        )


def _parts(info: ValidationInfo, losses: Losses | None) -> Parts:
    model, data, perceptual, features = (info.data.get(name) for name in ("model", "data", "perceptual", "features"))
    return Parts(model, data, losses, perceptual, features)
