"""What a loss term or a metric needs from the rest of a run, as far as the file alone can tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftae.specs.finetune.data_spec import DataSpec, shown
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.networks import FeatureNet, PerceptualNet
from ftae.specs.reading.schema import Role


@dataclass(frozen=True)
class Parts:
    """The parts of a run that a need looks at; None for a part that is not valid.

    ``weights`` are the enabled loss terms with their weights.
    """

    model: AnyModel | None
    data: DataSpec | None
    weights: Mapping[str, float] | None
    perceptual: PerceptualNet | None = None
    features: FeatureNet | None = None


@dataclass(frozen=True, eq=False)
class Need:
    """A requirement, named by its ``description``. A call returns the reason why a run does not meet it, or None."""

    description: str
    check: Callable[[Parts], str | None]

    def __call__(self, parts: Parts) -> str | None:
        return self.check(parts)


@dataclass(frozen=True)
class Enables(Role):
    """The field is what ``need`` asks for; it has no effect where no loss term or metric of the run has that need."""

    need: Need


def need(description: str) -> Callable[[Callable[[Parts], str | None]], Need]:
    """Makes a need of a function that returns why a run lacks it, or None."""
    return lambda check: Need(description, check)


@need("a posterior")
def posterior(parts: Parts) -> str | None:
    if parts.model is None or parts.model.has_posterior is not False:
        return None
    return f"needs a posterior, {parts.model.family} has none"


@need("latents")
def latents(parts: Parts) -> str | None:
    if parts.model is None or parts.model.has_latents:
        return None
    return f"needs latents, {parts.model.family} has none"


@need("a codebook")
def codes(parts: Parts) -> str | None:
    if parts.model is None or parts.model.has_codes:
        return None
    return f"needs a codebook, {parts.model.family} has none"


@need("a codebook that is trained by gradient")
def gradient_codebook(parts: Parts) -> str | None:
    if parts.model is None or parts.model.gradient_codebook is not False or not parts.model.has_codes:
        return None
    return "needs a codebook that is trained by gradient, this one is a moving average (codebook: ema)"


@need("outputs inside the image range")
def bounded_output(parts: Parts) -> str | None:
    if parts.model is None or parts.model.bounded_output:
        return None
    return f"needs outputs inside the image range, {parts.model.family} does not bound them (use mse or l1)"


@need("values in [0, 1]")
def unit_values(parts: Parts) -> str | None:
    if parts.data is None or not parts.data.of_floats or getattr(parts.data, "normalise", None) == "minmax":
        return None
    return "needs values that lie in [0, 1], those of arrays may lie outside (use mse or l1, or normalise: minmax)"


@need("labels")
def labels(parts: Parts) -> str | None:
    """Whether the images of a folder have labels, only the folder can tell."""
    if parts.data is None or parts.data.has_labels is not False:
        return None
    return f"needs labels, {parts.data.source} has none"


@need("the label of every image")
def every_label(parts: Parts) -> str | None:
    """Why some images of the run have no label; None if all have one."""
    if reason := labels(parts):
        return f"{reason}; use digits, or an image_folder or archive with a sub-folder for each class"
    if parts.data is None:
        return None
    without = {
        "data.labelled_fraction": parts.data.labelled_fraction < 1.0,
        "data.anomaly_classes": bool(parts.data.anomaly_classes),
        "data.replay": parts.data.replay is not None,
    }
    missing = [leaf for leaf, is_without in without.items() if is_without]
    return f"needs the label of every image, {missing[0]} brings images without one" if missing else None


@need("losses.ce above 0")
def head(parts: Parts) -> str | None:
    if parts.weights is None or "ce" in parts.weights:
        return None
    return "needs the classification head that losses.ce > 0 brings"


@need("model.pretrained")
def reference(parts: Parts) -> str | None:
    if parts.model is None or parts.model.pretrained is not None:
        return None
    return "compares with the pretrained model, model.pretrained is null"


@need("an image to compare each output with")
def targets(parts: Parts) -> str | None:
    """Whether training images have partners, and the model makes one of the other."""
    if parts.model is not None and parts.model.takes_noise:
        return f"compares each output with an image of its own, {parts.model.family} makes images of noise"
    if parts.data is None or not parts.data.unpaired:
        return None
    return (
        f"compares each output with an image of its own, those of {parts.data.source} have no partners to learn from "
        "(use cycle, identity and adversarial)"
    )


@need("true pairs in validation")
def true_pairs(parts: Parts) -> str | None:
    """Whether a validation image is the one to be made of its input."""
    if parts.model is not None and parts.model.takes_noise:
        return targets(parts)
    if parts.data is None or parts.data.truly_paired:
        return None
    return (
        "compares each output with the true image, and validation images have no partners; set data.val_paired where "
        "those of the same name have, or use kid"
    )


@need("values with a unit that images share")
def unit(parts: Parts) -> str | None:
    if parts.data is not None and parts.data.of_floats:
        return "needs values that all images share, data.normalise scales those of arrays (use l1)"
    meaning = None if parts.data is None else parts.data.meaning
    if meaning is None or meaning.per_image is None:
        return None
    return "needs values that all images share, data.intensity.per_image scales each by itself (use l1)"


@need("1 or 3 channels")
def colours(parts: Parts) -> str | None:
    """What networks that were trained on photographs can look at."""
    if parts.data is None or parts.data.channels in (1, 3):
        return None
    return f"looks at images of 1 or 3 channels, got {parts.data.channels}"


@need("a model that translates both ways")
def both_ways(parts: Parts) -> str | None:
    if parts.model is None or parts.model.both_ways:
        return None
    return f"needs a model that translates both ways (cyclegan), {parts.model.family} does not"


@need("data.degrade, pairs or two domains")
def other_inputs(parts: Parts) -> str | None:
    """Whether the model gets other images than those that it is compared with."""
    if parts.data is None or parts.data.paired or parts.data.unpaired or parts.data.degrade is not None:
        return None
    return "needs inputs that differ from the images to give: data of pairs, or data.degrade"


@need("data.anomaly_classes")
def anomalies(parts: Parts) -> str | None:
    if parts.data is None or parts.data.anomaly_classes:
        return None
    return "needs anomalies to tell from other images: name classes in data.anomaly_classes"


@need("another loss term")
def another_term(parts: Parts) -> str | None:
    if parts.weights is None or len(parts.weights) > 1 or (parts.model is not None and parts.model.takes_noise):
        return None
    return "needs another term beside it: alone it asks for any image that looks real"


@need("losses.adversarial above 0")
def discriminator(parts: Parts) -> str | None:
    """A discriminator that judges images without what the model was given."""
    if parts.weights is not None and "adversarial" not in parts.weights:
        return "needs a discriminator, losses.adversarial is 0"
    if parts.data is not None and parts.data.paired:
        return "needs a discriminator of single images, that of pairs is conditional"
    if parts.data is not None and parts.data.unpaired:
        return f"needs a discriminator of one kind of images, {parts.data.source} has two"
    return None


@need("images with known factors (shapes)")
def factors(parts: Parts) -> str | None:
    if parts.data is None or parts.data.has_factors:
        return None
    return f"needs images with known factors of variation, those of {parts.data.source} are not known (use shapes)"


@need("finetune.perceptual")
def perceptual(parts: Parts) -> str | None:
    """A network to compare images with, and images that are large enough for it."""
    if parts.perceptual is None:
        return "needs a network to compare images with: set perceptual: {net: vgg16, weights: FILE}"
    reason = colours(parts) or resolution(parts.perceptual.least_resolution)(parts)
    return None if reason is None else f"with {parts.perceptual.net} {reason}"


@need("perceptual.net vgg16")
def vgg16(parts: Parts) -> str | None:
    if parts.perceptual is None or parts.perceptual.net == "vgg16":
        return None
    return f"needs perceptual.net vgg16, got {parts.perceptual.net}"


@need("finetune.features")
def features(parts: Parts) -> str | None:
    if parts.features is not None:
        return None if parts.features.net == "encoder" else colours(parts)
    return (
        "needs a network that gives features: set features: {net: inception_v3, weights: FILE}, or for images far from "
        "photographs {net: encoder, weights: FOLDER}"
    )


def resolution(least: int) -> Need:
    """The need for images of at least ``least`` pixels a side."""

    @need(f"{least} pixels a side")
    def check(parts: Parts) -> str | None:
        if parts.data is None or min(parts.data.size) >= least:
            return None
        return f"needs a resolution of at least {least}, got {shown(parts.data.resolution)}"

    return check
