"""The metrics that a run can be judged by: range, direction, needs and description of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ftae.specs.finetune import needs
from ftae.specs.finetune.needs import Need


@dataclass(frozen=True)
class Metric:
    """What is known of a metric without computing it.

    A diverged trial scores ``low`` or ``high``, whichever is worse. ``better`` is the direction in which the metric
    improves; None where either may be wanted. With fewer than ``least_images`` validation images it has no value.
    ``unit``: empty where the metric has none. ``doubt``: what a value below ``doubtful_below`` or above
    ``doubtful_above`` says of a model. ``beside``: the ends of the names of metrics by which to read this one
    (``BESIDE``). With fewer than ``least_train_images`` training images it has no value.
    """

    low: float
    high: float
    better: Literal["minimize", "maximize"] | None
    description: str
    needs: tuple[Need, ...] = ()
    least_images: int = 1
    unit: str = ""
    doubtful_below: float = -math.inf
    doubtful_above: float = math.inf
    doubt: str = ""
    beside: tuple[str, ...] = ()
    least_train_images: int = 0

    def why_doubtful(self, value: float) -> str | None:
        """What a value says against a model, with the bound; None if it says nothing."""
        if value < self.doubtful_below:
            return f"{self.doubt}, below {self.doubtful_below:g}"
        return f"{self.doubt}, above {self.doubtful_above:g}" if value > self.doubtful_above else None


# What a metric of two sets of images is read by, and what it is of a metric.
BESIDE = {
    "train": "{0} of outputs against training images: far better than {0}, the model repeats what it was trained on",
    "floor": "{0} of training images in place of outputs: what a perfect model would score",
}


def _with_those_beside(metrics: dict[str, Metric]) -> Iterator[tuple[str, Metric]]:
    for name, metric in metrics.items():
        yield name, metric
        for end in metric.beside:
            text, least = BESIDE[end].format(name), metric.least_images
            yield (
                f"{name}_{end}",
                Metric(metric.low, metric.high, None, text, metric.needs, least, least_train_images=least),
            )


_METRICS: dict[str, Metric] = {
    "mse": Metric(0.0, 1.0, "minimize", "mean squared error of pixels in [0, 1]", (needs.true_pairs,)),
    "l1": Metric(0.0, 1.0, "minimize", "mean absolute error of pixels in [0, 1]", (needs.true_pairs,)),
    "mae": Metric(
        0.0,
        1.0e9,
        "minimize",
        "mean absolute error in the unit of the values in files: grey levels, or HU where ``data.intensity`` says so",
        (needs.true_pairs, needs.unit),
    ),
    "psnr": Metric(
        0.0, 100.0, "maximize", "peak signal-to-noise ratio in dB, the mean over images", (needs.true_pairs,), unit="dB"
    ),
    "ssim": Metric(
        -1.0,
        1.0,
        "maximize",
        "structural similarity (Wang et al. 2004), 11x11 window",
        (needs.true_pairs, needs.resolution(16)),
    ),
    "kl": Metric(
        0.0,
        1.0e9,
        None,
        "divergence of the posterior from the prior, in nats per image",
        (needs.posterior,),
        unit="nats",
    ),
    "active_units": Metric(
        0.0,
        1.0e9,
        None,
        "number of latent units that vary with the image (Burda et al. 2015)",
        (needs.posterior,),
        least_images=2,
    ),
    "accuracy": Metric(0.0, 1.0, "maximize", "accuracy of the classification head", (needs.head,)),
    "latent_drift": Metric(
        0.0,
        1.0e9,
        "minimize",
        "mean squared distance of the latents from those of the pretrained model, over the variance of the latter",
        (needs.reference, needs.latents),
    ),
    "input_psnr": Metric(
        0.0,
        100.0,
        None,
        "psnr of the input of the model, the score of doing nothing",
        (needs.other_inputs, needs.true_pairs),
        unit="dB",
    ),
    "auroc": Metric(
        0.0,
        1.0,
        "maximize",
        "area under the ROC curve of the reconstruction error, anomalies against normal images",
        (needs.targets, needs.anomalies),
    ),
    "codebook_usage": Metric(
        0.0, 1.0, "maximize", "share of the codes that are in use; with several codebooks the least", (needs.codes,)
    ),
    "perplexity": Metric(
        1.0,
        1.0e9,
        "maximize",
        "perplexity of the distribution of codes; with several codebooks the least",
        (needs.codes,),
    ),
    "sharpness": Metric(
        0.0,
        1.0e9,
        None,
        "mean gradient magnitude of reconstructions over that of targets; 1 is equally sharp",
        (needs.resolution(2),),
    ),
    "edge_distance": Metric(
        0.0,
        1.0e9,
        "minimize",
        "distance of the distributions of gradient magnitudes; 0 is equal, 1 is flat",
        (needs.resolution(2),),
    ),
    "d_overfit": Metric(
        -1.0,
        1.0,
        "minimize",
        "r_v: where the discriminator places validation images between training images (0) and those of the model (1); "
        "0 as long as it does not tell these apart (Karras et al. 2020)",
        (needs.discriminator,),
        least_images=10,
        doubtful_above=0.8,
        doubt="its discriminator knows the training images by heart",
    ),
    "ms_ssim": Metric(
        0.0,
        1.0,
        "maximize",
        "structural similarity over five scales (Wang et al. 2003)",
        (needs.true_pairs, needs.resolution(176)),
    ),
    "linear_probe": Metric(
        0.0,
        1.0,
        "maximize",
        "accuracy of a logistic regression on the latents, fitted on up to 2,000 training images",
        (needs.labels, needs.latents),
    ),
    "mig": Metric(0.0, 1.0, "maximize", "mutual information gap (Chen et al. 2018)", (needs.factors, needs.latents)),
    "dci": Metric(
        0.0,
        1.0,
        "maximize",
        "disentanglement score of DCI (Eastwood & Williams 2018)",
        (needs.factors, needs.latents),
    ),
    "lpips": Metric(
        0.0, 1.0e3, "minimize", "perceptual distance (Zhang et al. 2018)", (needs.true_pairs, needs.perceptual)
    ),
    "rfid": Metric(
        0.0,
        1.0e9,
        "minimize",
        "Fréchet distance of features, reconstructions against originals; not comparable with published values",
        (needs.targets, needs.features),
        least_images=10,
    ),
    "fid": Metric(
        0.0,
        1.0e9,
        "minimize",
        "the same by the name that it has for translations and samples; of few images it is far too large",
        (needs.features,),
        least_images=10,
        beside=("train", "floor"),
    ),
    "kid": Metric(
        -1.0e9,
        1.0e9,
        "minimize",
        "kernel distance of features, outputs against validation images; unbiased, so it may be below 0",
        (needs.features,),
        least_images=10,
        beside=("train", "floor"),
    ),
    "precision": Metric(
        0.0,
        1.0,
        "maximize",
        "share of outputs that lie among validation images by features (Kynkäänniemi et al. 2019)",
        (needs.features,),
        least_images=10,
        beside=("train", "floor"),
    ),
    "recall": Metric(
        0.0,
        1.0,
        "maximize",
        "share of validation images that lie among outputs by features (Kynkäänniemi et al. 2019)",
        (needs.features,),
        least_images=10,
        beside=("train", "floor"),
    ),
    "diversity": Metric(
        0.0,
        1.0e9,
        None,
        "mean distance of two outputs over that of two validation images; 1 is as diverse, towards 0 all are alike",
        (needs.features,),
        least_images=10,
        doubtful_below=0.7,
        doubt="its images are much alike",
        beside=("floor",),
    ),
    "memorised": Metric(
        0.0,
        1.0e9,
        None,
        "mean distance of outputs to the nearest training image over that of validation images; below 0.5 it copies",
        (needs.features,),
        least_images=10,
        doubtful_below=0.5,
        doubt="its images repeat those of training",
    ),
    "cycle_l1": Metric(
        0.0,
        1.0,
        "minimize",
        "mean absolute error of pixels after both directions, of A and of B; doing nothing scores 0",
        (needs.both_ways,),
    ),
    "identity_l1": Metric(
        0.0,
        1.0,
        "minimize",
        "mean absolute change of images that are on the side of the outputs already; doing nothing scores 0",
        (needs.both_ways,),
    ),
    "change": Metric(
        0.0,
        1.0,
        None,
        "mean absolute difference of pixels between input and output; 0 is a model that does nothing",
        (needs.other_inputs,),
    ),
}

METRICS = dict(_with_those_beside(_METRICS))

if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]


def is_held_out(name: str) -> bool:
    """Whether a metric, as reports name it, was measured on validation images: of the data, or of ``data.replay``."""
    return name.startswith(("val/", "val_source/"))


def metric_facts(name: str) -> Metric:
    """The entry of a metric by its name in reports: ``val/psnr``, ``val_source/psnr``."""
    return METRICS[name.partition("/")[2]]


def known_facts(name: str) -> Metric | None:
    """The same for any name; None for a metric that this version lacks."""
    return METRICS.get(name.partition("/")[2])


def unit_of(name: str) -> str:
    """The unit of a metric by its name in reports; empty without one, and for a metric that this version lacks."""
    known = known_facts(name)
    return "" if known is None else known.unit


def in_unit(value: float, name: str) -> str:
    """A value of a metric with four digits and its unit: ``24.31 dB``."""
    return f"{value:.4g} {unit_of(name)}".rstrip()
