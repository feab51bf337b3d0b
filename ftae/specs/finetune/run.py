"""One fine-tuning run: model, data, losses, optimisation and metrics.

Every length is a fraction of ``max_steps``, so that a trial, a rung and a longer production run mean the same by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.finetune import needs
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS, MetricName
from ftae.specs.finetune.models import TWO_WAY_FAMILIES, AnyModel
from ftae.specs.finetune.needs import Enables, Parts
from ftae.specs.finetune.networks import TWO_WAY, Beta, DiscriminatorSpec, FeatureNet, PerceptualNet
from ftae.specs.reading.base import Fraction, Positive, Spec, Weight, absolute
from ftae.specs.reading.problems import Problem, refusal
from ftae.specs.reading.schema import (
    AfterTraining,
    Governed,
    Joint,
    MayDiffer,
    Means,
    NotSearched,
    TrainingOnly,
    roles_in,
)


class Optimizer(Spec):
    """Optimizer and learning rates."""

    name: Literal["adamw", "adam", "radam", "sgd"] = "adamw"
    """The optimizer of PyTorch."""
    lr: Annotated[float, Field(gt=0.0)]
    """Peak learning rate."""
    lr_multipliers: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    """Factors on the learning rate by group (``encoder``, ``bottleneck``, ``decoder``, ``head``) or by glob over stage
    and parameter names; where several match, their product counts."""
    weight_decay: Weight = 0.0
    """Weight decay, which never touches norms and biases."""
    betas: Annotated[tuple[Beta, Beta] | None, Governed("optimizer.name", ("adamw", "adam", "radam"))] = None
    """Decay rates of Adam; null takes those of PyTorch."""
    momentum: Annotated[Beta | None, Governed("optimizer.name", ("sgd",))] = None
    """Momentum of SGD; null is none."""

    @field_validator("betas", "momentum")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        name, governed = info.data.get("name"), roles_in(cls, Governed)
        if value is not None and name is not None and not governed[str(info.field_name)].holds(name):
            takes = [setting for setting, role in governed.items() if role.holds(name)]
            raise ValueError(f"has no effect on {name}, it takes {' and '.join(takes)}")
        return value


class Schedule(Spec):
    """The learning rate over the budget: linear warm-up, then the named curve."""

    name: Literal["constant", "linear", "cosine", "cyclical"] = "constant"
    """The curve; ``cyclical`` is the triangular policy of Smith (2017)."""
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """The share of the budget over which the learning rate first rises."""
    final_fraction: Annotated[Fraction, Governed("schedule.name", ("linear", "cosine", "cyclical"))] = 0.0
    """The share of the peak learning rate that the curve goes down to."""
    num_cycles: Annotated[Positive, Governed("schedule.name", ("cyclical",))] = 3
    """Number of cycles over the budget."""

    @field_validator("final_fraction", "num_cycles")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        name, field = info.data.get("name"), str(info.field_name)
        governed = roles_in(cls, Governed)[field]
        if name is not None and not governed.holds(name) and value != cls.model_fields[field].default:
            raise ValueError(f"has no effect on a {name} schedule, it needs {' or '.join(governed.values)}")
        return value


_FITS = Joint("parts that must fit each other")
_SAME_BUDGET = NotSearched("every trial has the same budget and is measured alike")
_BY_RESOURCES = NotSearched("search.resources sets it for every trial")


class FinetuneSpec(Spec):
    """A complete fine-tuning run."""

    model: Annotated[AnyModel, _FITS]
    """The model to fine-tune."""
    data: Annotated[AnyData, _FITS, AfterTraining()]
    """The images to train on and to validate on."""
    freeze_depth: Annotated[int, Field(ge=0), TrainingOnly()] = 0
    """How many stages to freeze, from the first on."""
    freeze: Annotated[tuple[str, ...], TrainingOnly()] = ()
    """Globs over stage names and groups (``encoder``, ``bottleneck``, ``decoder``, ``head``): the stages to freeze."""
    perceptual: Annotated[PerceptualNet | None, _FITS, Enables(needs.perceptual)] = None
    """The network with which ``lpips`` and ``vgg`` compare images."""
    features: Annotated[FeatureNet | None, _FITS, Enables(needs.features)] = None
    """The network that gives the features for ``rfid`` and ``kid``."""
    losses: Annotated[Losses, _FITS, TrainingOnly()]
    """Weights of the loss terms."""
    discriminator: Annotated[DiscriminatorSpec, _FITS, TrainingOnly(), Governed("losses.adversarial")] = (
        DiscriminatorSpec()
    )
    """The discriminator of ``losses.adversarial``."""
    optimizer: Annotated[Optimizer, TrainingOnly()]
    """Optimizer and learning rates."""
    max_grad_norm: Annotated[Annotated[float, Field(gt=0.0)] | None, TrainingOnly()] = 1.0
    """Clips the norm of the gradient; null does not clip."""
    schedule: Annotated[Schedule, TrainingOnly()] = Schedule()
    """The learning rate over the budget."""
    ema_half_life_fraction: Annotated[Annotated[float, Field(gt=0.0, le=1.0)] | None, TrainingOnly()] = None
    """Half-life of an exponential moving average of the weights, as a share of the budget. Evaluations and the result
    then take the averaged weights; null takes no average."""
    batch_size: Annotated[Positive, AfterTraining()] = 8
    """Images that go through the model at a time."""
    grad_accumulation: Annotated[Positive, TrainingOnly()] = 1
    """Batches per optimizer step."""
    max_steps: Annotated[Positive, TrainingOnly(), MayDiffer(), _SAME_BUDGET]
    """The budget in optimizer steps."""
    num_evals: Annotated[Positive, TrainingOnly(), MayDiffer(), _SAME_BUDGET] = 9
    """Number of evaluations, spread evenly over the budget."""
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1), _FITS, _SAME_BUDGET] = ("psnr", "ssim")
    """What evaluations measure."""
    sample_posterior: Annotated[bool, _FITS] = True
    """Train on a sample of the posterior, as the model is used, or else on its mode."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass; weights and losses are always fp32."""
    num_threads: Annotated[Positive | None, MayDiffer(), AfterTraining(), _BY_RESOURCES] = None
    """CPU threads. The last digits of a result depend on them, so a search sets them by ``search.resources``."""
    device: Annotated[Literal["auto", "cpu", "cuda"], AfterTraining(), _BY_RESOURCES] = "auto"
    """``auto`` takes a GPU if there is one. The last digits of a result depend on the device, so a search sets it by
    ``search.resources``."""
    frozen_cache_gb: Annotated[float, Field(ge=0.0, allow_inf_nan=False), Means()] = 4.0
    """Disk space, in 1e9 bytes, for the outputs of frozen stages, which are kept for all runs of a machine; 0 keeps
    none."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random in the run."""

    # Every validator reads the fields before its own as far as they are valid, so that all faults show at once.

    @field_validator("data")
    @classmethod
    def _labels_are_there(cls, data: AnyData, info: ValidationInfo) -> AnyData:
        model = info.data.get("model")
        reason = needs.every_label(Parts(model, data, None))
        if model is not None and model.needs_labels and reason:
            raise ValueError(f"{model.family} {reason}")
        return data

    @field_validator("data")
    @classmethod
    def _two_domains_fit(cls, data: AnyData, info: ValidationInfo) -> AnyData:
        model = info.data.get("model")
        if model is None or model.both_ways == data.unpaired:
            return data
        if data.unpaired:
            raise ValueError(f"{data.source} needs a model that translates both ways (cyclegan), got {model.family}")
        raise ValueError(f"{model.family} learns from two domains (unpaired, digit_domains), got {data.source}")

    @field_validator("data")
    @classmethod
    def _there_is_a_task(cls, data: AnyData, info: ValidationInfo) -> AnyData:
        """A translator has nothing to learn from images that it may copy."""
        model = info.data.get("model")
        reason = needs.other_inputs(Parts(model, data, None))
        if model is not None and not model.has_latents and reason:
            raise ValueError(f"{model.family} {reason}")
        return data

    @field_validator("losses")
    @classmethod
    def _losses_fit(cls, losses: Losses, info: ValidationInfo) -> Losses:
        weights = losses.weights()
        parts = _parts(info, weights)
        found: list[Problem] = []
        model = info.data.get("model")
        if model is not None and model.both_ways and "adversarial" not in weights:
            found.append((("adversarial",), f"must be above 0: without it, {model.family} may give back its input"))
        elif not weights:
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
        if discriminator.conditional and (reason := needs.other_inputs(_parts(info, None))):
            raise refusal([(("conditional",), reason)])
        model = info.data.get("model")
        if model is not None and model.both_ways:
            wrong = [name for name in ("conditional", "adaptive") if getattr(discriminator, name)]
            if wrong:
                raise refusal(((name,), f"has no effect on {model.family}, leave it out") for name in wrong)
        return discriminator

    @model_validator(mode="before")
    @classmethod
    def _both_ways_have_other_defaults(cls, given: Any) -> Any:
        """Those of the discriminators; what the file says goes first."""
        model = given.get("model") if isinstance(given, dict) else None
        family = model.get("family") if isinstance(model, dict) else getattr(model, "family", None)
        chosen = given.get("discriminator", {}) if isinstance(given, dict) else None
        if family not in TWO_WAY_FAMILIES or not isinstance(chosen, dict):
            return given
        return {**given, "discriminator": {**TWO_WAY, **chosen}}

    @model_validator(mode="before")
    @classmethod
    def _evaluate_short_runs_each_step(cls, given: Any) -> Any:
        """A run of fewer steps than evaluations by default; a number in the file is checked instead."""
        steps, default = (
            given.get("max_steps") if isinstance(given, dict) else None,
            cls.model_fields["num_evals"].default,
        )
        if type(steps) is not int or not 0 < steps < default or "num_evals" in given:
            return given
        return {**given, "num_evals": steps}

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
        losses = info.data.get("losses")
        parts = _parts(info, None if losses is None else losses.weights())
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

    @property
    def translates(self) -> bool:
        """Whether the model gives other images than it gets, not reconstructions of them."""
        return self.data.paired or not self.model.has_latents

    @property
    def is_conditional(self) -> bool:
        """Whether the discriminator sees the input of the model beside each image."""
        chosen = self.discriminator.conditional
        return self.data.paired if chosen is None else chosen

    @property
    def discriminator_channels(self) -> int:
        """Channels of what the discriminator sees."""
        return 2 * self.data.channels if self.is_conditional else self.data.channels

    def eval_steps(self) -> list[int]:
        """The steps after which the model is evaluated; the last is ``max_steps``."""
        return [round(i * self.max_steps / self.num_evals) for i in range(1, self.num_evals + 1)]

    def source_metrics(self) -> tuple[MetricName, ...]:
        """The metrics that are also measured on the images of ``data.replay``.

        Metrics that these images cannot have are left out, and those of the head, which knows the classes of the data.
        """
        if self.data.replay is None:
            return ()
        parts = Parts(self.model, self.data.replay, self.losses.weights(), self.perceptual, self.features)
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


def _parts(info: ValidationInfo, weights: dict[str, float] | None) -> Parts:
    model, data, perceptual, features = (info.data.get(name) for name in ("model", "data", "perceptual", "features"))
    return Parts(model, data, weights, perceptual, features)
