"""What a loss term or a metric needs of the rest of a run, as far as the file alone can tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftae.specs.finetune.data import DataSpec
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.networks import FeatureNet, PerceptualNet

if TYPE_CHECKING:
    from ftae.specs.finetune.losses import Losses


@dataclass(frozen=True)
class Parts:
    """The parts of a run that are valid so far; None where one is not."""

    model: AnyModel | None
    data: DataSpec | None
    losses: "Losses | None"
    perceptual: PerceptualNet | None = None
    features: FeatureNet | None = None


Need = Callable[[Parts], str | None]  # why the run cannot have it, or None


def posterior(parts: Parts) -> str | None:
    """The encoder gives a distribution."""
    if parts.model is None or parts.model.has_posterior is not False:
        return None
    return f"needs a posterior, {parts.model.family} has none"


def codes(parts: Parts) -> str | None:
    """The encoder chooses from a codebook."""
    if parts.model is None or parts.model.has_codes:
        return None
    return f"needs a codebook, {parts.model.family} has none"


def gradient_codebook(parts: Parts) -> str | None:
    """The codes are trained by gradient."""
    if parts.model is None or parts.model.gradient_codebook is not False or not parts.model.has_codes:
        return None
    return "needs a codebook that is trained by gradient, this one is a moving average (codebook: ema)"


def bounded_output(parts: Parts) -> str | None:
    """Reconstructions always lie inside the image range."""
    if parts.model is None or parts.model.bounded_output:
        return None
    return f"needs outputs inside the image range, {parts.model.family} does not bound them (use mse or l1)"


def labels(parts: Parts) -> str | None:
    """The images are labelled; whether those of a folder are, only the folder tells."""
    if parts.data is None or parts.data.has_labels is not False:
        return None
    return f"needs labels, {parts.data.source} has none"


def every_label(parts: Parts) -> str | None:
    """Every image has a label, one of the same classes."""
    if reason := labels(parts):
        return f"{reason}; use digits, or an image_folder with a sub-folder for each class"
    if parts.data is None:
        return None
    without = {
        "data.labelled_fraction": parts.data.labelled_fraction < 1.0,
        "data.anomaly_classes": bool(parts.data.anomaly_classes),
        "data.replay": parts.data.replay is not None,
    }
    missing = [leaf for leaf, is_without in without.items() if is_without]
    return f"needs the label of every image, {missing[0]} brings images without one" if missing else None


def head(parts: Parts) -> str | None:
    """The model has a classification head."""
    if parts.losses is None or parts.losses.ce > 0.0:
        return None
    return "needs the classification head that losses.ce > 0 brings"


def reference(parts: Parts) -> str | None:
    """There is a pretrained model to compare with."""
    if parts.model is None or parts.model.pretrained is not None:
        return None
    return "compares with the pretrained model, model.pretrained is null"


def degradation(parts: Parts) -> str | None:
    """The model is given degraded images."""
    if parts.data is None or parts.data.degrade is not None:
        return None
    return "is of the degraded images that data.degrade makes"


def anomalies(parts: Parts) -> str | None:
    """Some classes are kept out of training as anomalies."""
    if parts.data is None or parts.data.anomaly_classes:
        return None
    return "needs anomalies to tell from the rest: name classes in data.anomaly_classes"


def another_term(parts: Parts) -> str | None:
    """There is a term beside it that says which image to give."""
    if parts.losses is None or len(parts.losses.weights()) > 1:
        return None
    return "needs another term beside it: alone it asks for any image that looks real"


def factors(parts: Parts) -> str | None:
    """The factors of variation behind the images are known."""
    if parts.data is None or parts.data.has_factors:
        return None
    return f"needs images whose factors are known, {parts.data.source} does not tell them (use shapes)"


def perceptual(parts: Parts) -> str | None:
    """There is a network that images are compared through, and they are large enough for it."""
    if parts.perceptual is None:
        return "needs a network to look through: name it and its weights in perceptual, {net: vgg16, weights: FILE}"
    reason = None if parts.data is None else resolution(parts.perceptual.least_resolution)(parts)
    return None if reason is None else f"through {parts.perceptual.net} {reason}"


def vgg16(parts: Parts) -> str | None:
    """That network is VGG16."""
    if parts.perceptual is None or parts.perceptual.net == "vgg16":
        return None
    return f"needs perceptual.net vgg16, got {parts.perceptual.net}"


def features(parts: Parts) -> str | None:
    """There is a network that gives features."""
    if parts.features is not None:
        return None
    return "needs a network of features: name it and its weights in features, {net: inception_v3, weights: FILE}"


def resolution(least: int) -> Need:
    """Images of at least ``least`` pixels a side."""

    def need(parts: Parts) -> str | None:
        if parts.data is None or parts.data.resolution >= least:
            return None
        return f"needs a resolution of at least {least}, got {parts.data.resolution}"

    return need
