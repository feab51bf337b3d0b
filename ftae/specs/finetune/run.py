"""One fine-tuning run: model, data, losses, optimisation and metrics.

Every length is a fraction of ``max_steps``, so that a trial, a rung and a longer production run mean the same by it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.finetune import needs
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.data_spec import Size, shown
from ftae.specs.finetune.discriminator import OTHER_DEFAULTS, WHOLE_IMAGE, DiscriminatorSpec
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS, MetricName
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.needs import Enables, Parts
from ftae.specs.finetune.networks import FeatureNet, PerceptualNet
from ftae.specs.finetune.optimization import Optimizer, Schedule
from ftae.specs.reading.base import Positive, Spec, absolute
from ftae.specs.reading.problems import Problem, refusal
from ftae.specs.reading.schema import (
    AfterTraining,
    Governed,
    Joint,
    MayDiffer,
    Means,
    NotSearched,
    TrainingOnly,
)

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
    """The network that gives the features for metrics that compare sets of images, such as ``kid``."""
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
    num_samples: Annotated[Positive | None, _FITS, _SAME_BUDGET] = None
    """Images that an evaluation lets a generator make for metrics of sets of images, one for each validation image at
    the least; null makes 1,000."""
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
    checkpoint_stages: Annotated[Literal["auto"] | bool, Means()] = "auto"
    """Keep only what goes into each stage until the backward pass, which computes the rest again: the same numbers in
    less memory and a longer step. ``auto`` does so once memory does not suffice, before the batch is halved."""
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
        """A translator has nothing to learn from images that it may copy; a generator is given no image."""
        model = info.data.get("model")
        if model is None or model.has_latents:
            return data
        reason = needs.other_inputs(Parts(model, data, None))
        if model.takes_noise and reason is None:
            raise ValueError(f"{model.family} makes images of noise: pairs and data.degrade are for other models")
        if reason and not model.takes_noise:
            raise ValueError(f"{model.family} {reason}")
        return data

    @field_validator("losses")
    @classmethod
    def _losses_fit(cls, losses: Losses, info: ValidationInfo) -> Losses:
        weights = losses.weights()
        parts = _parts(info, weights)
        found: list[Problem] = []
        model = info.data.get("model")
        if model is not None and model.takes_noise and "adversarial" not in weights:
            found.append((("adversarial",), f"must be above 0: {model.family} learns from its discriminator"))
        elif model is not None and model.both_ways and "adversarial" not in weights:
            found.append((("adversarial",), f"must be above 0: without it, {model.family} may give back its input"))
        elif not weights:
            found.append(((), f"at least one of {', '.join(Losses.TERMS)} needs a weight above 0"))
        if model is not None and losses.path_length > 0.0 and not model.has_styles:
            found.append((("path_length",), f"needs the styles of stylegan2, {model.family} has none"))
        for term in weights:
            found += [((term,), reason) for need in Losses.TERMS[term] if (reason := need(parts))]
        if found:
            raise refusal(found)
        return losses

    @field_validator("discriminator")
    @classmethod
    def _judges_the_images(cls, discriminator: DiscriminatorSpec, info: ValidationInfo) -> DiscriminatorSpec:
        data, losses = info.data.get("data"), info.data.get("losses")
        if data is None or losses is None or losses.adversarial == 0.0:
            return discriminator
        if discriminator.architecture == "patch":
            if min(data.size) < discriminator.least_resolution:
                least = f"{discriminator.least_resolution} (3 * 2**depth)"
                rule = f"{discriminator.depth} needs a resolution of at least {least}, got {shown(data.resolution)}"
                raise refusal([(("depth",), rule)])
        elif not _is_square_power(data.size):
            rule = f"needs a data.resolution that is a power of two from {WHOLE_IMAGE} on, got {shown(data.resolution)}"
            raise refusal([(("architecture",), f"{discriminator.architecture} {rule}")])
        if discriminator.augment.name != "none" and cls._sees_pairs(discriminator, data):
            raise refusal(
                [(("augment", "name"), "needs a discriminator that is not conditional: it sees single images")]
            )
        if discriminator.conditional and (reason := needs.other_inputs(_parts(info, None))):
            raise refusal([(("conditional",), reason)])
        return discriminator

    @field_validator("discriminator")
    @classmethod
    def _suits_the_model(cls, discriminator: DiscriminatorSpec, info: ValidationInfo) -> DiscriminatorSpec:
        model, losses = info.data.get("model"), info.data.get("losses")
        if model is None or losses is None or losses.adversarial == 0.0:
            return discriminator
        if model.takes_noise and discriminator.adaptive:
            rule = f"must be false: the loss of {model.family} has no other terms to scale the adversarial one by"
            raise refusal([(("adaptive",), rule)])
        wrong = [name for name in ("conditional", "adaptive") if model.both_ways and getattr(discriminator, name)]
        if wrong:
            raise refusal(((name,), f"has no effect on {model.family}, leave it out") for name in wrong)
        return discriminator

    @model_validator(mode="before")
    @classmethod
    def _some_models_have_other_defaults(cls, given: Any) -> Any:
        """Those of the discriminator; what the file says goes first."""
        model = given.get("model") if isinstance(given, dict) else None
        family = model.get("family") if isinstance(model, dict) else getattr(model, "family", None)
        chosen = given.get("discriminator", {}) if isinstance(given, dict) else None
        if not isinstance(family, str) or family not in OTHER_DEFAULTS or not isinstance(chosen, dict):
            return given
        return {**given, "discriminator": {**OTHER_DEFAULTS[family], **chosen}}

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

    @field_validator("num_samples")
    @classmethod
    def _samples_are_compared(cls, num_samples: int | None, info: ValidationInfo) -> int | None:
        model, metrics = info.data.get("model"), info.data.get("metrics")
        if num_samples is not None and model is not None and not model.takes_noise:
            raise ValueError(f"has no effect, {model.family} gives one output for each image")
        if num_samples is not None and metrics and not any(needs.features in METRICS[name].needs for name in metrics):
            raise ValueError("has no effect, no metric compares sets of images")
        return num_samples

    @field_validator("sample_posterior")
    @classmethod
    def _posterior_is_there(cls, sample_posterior: bool, info: ValidationInfo) -> bool:
        model = info.data.get("model")
        if not sample_posterior and model is not None and model.has_posterior is False:
            raise ValueError(f"false has no effect, {model.family} has no posterior")
        return sample_posterior

    @property
    def use(self) -> Literal["reconstruct", "translate", "sample"]:
        """What the model is for: to give back the images that it gets, to give others, or to make new ones."""
        if self.model.takes_noise:
            return "sample"
        return "translate" if self.data.paired or not self.model.has_latents else "reconstruct"

    @property
    def is_conditional(self) -> bool:
        """Whether the discriminator sees the input of the model beside each image."""
        return self._sees_pairs(self.discriminator, self.data)

    @staticmethod
    def _sees_pairs(discriminator: DiscriminatorSpec, data: AnyData) -> bool:
        return data.paired if discriminator.conditional is None else discriminator.conditional

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

    def with_levels(self, levels: tuple[float, float] | None) -> "FinetuneSpec":
        """The same run, whose images keep these values of black and white whatever images are added."""
        return self.model_copy(update={"data": self.data.with_levels(levels)})

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


def _is_square_power(size: Size) -> bool:
    return size[0] == size[1] and size[0] >= WHOLE_IMAGE and size[0].bit_count() == 1


def _parts(info: ValidationInfo, weights: dict[str, float] | None) -> Parts:
    model, data, perceptual, features = (info.data.get(name) for name in ("model", "data", "perceptual", "features"))
    return Parts(model, data, weights, perceptual, features)
