"""The metrics a run can be judged by: their bounds, their better side, and what each needs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ftae.specs.finetune import needs
from ftae.specs.finetune.needs import Need


@dataclass(frozen=True)
class MetricFacts:
    """``low``, ``high``: the ends of its values, one of which is what a diverged trial scores.

    ``better``: the direction in which it improves; None where either may be wanted. ``least_images``: with fewer
    validation images it has no value.
    """

    low: float
    high: float
    better: Literal["minimize", "maximize"] | None
    needs: tuple[Need, ...] = ()
    least_images: int = 1


METRICS: dict[str, MetricFacts] = {
    "mse": MetricFacts(0.0, 1.0, "minimize"),
    "l1": MetricFacts(0.0, 1.0, "minimize"),
    "psnr": MetricFacts(0.0, 100.0, "maximize"),
    "ssim": MetricFacts(-1.0, 1.0, "maximize", (needs.resolution(16),)),
    "kl": MetricFacts(0.0, 1.0e9, None, (needs.posterior,)),
    "active_units": MetricFacts(0.0, 1.0e9, None, (needs.posterior,), least_images=2),
    "accuracy": MetricFacts(0.0, 1.0, "maximize", (needs.head,)),
    "latent_drift": MetricFacts(0.0, 1.0e9, "minimize", (needs.reference,)),
    "input_psnr": MetricFacts(0.0, 100.0, None, (needs.degradation,)),
    "auroc": MetricFacts(0.0, 1.0, "maximize", (needs.anomalies,)),
    "codebook_usage": MetricFacts(0.0, 1.0, "maximize", (needs.codes,)),
    "perplexity": MetricFacts(1.0, 1.0e9, "maximize", (needs.codes,)),
    "sharpness": MetricFacts(0.0, 1.0e9, None),
    "edge_distance": MetricFacts(0.0, 1.0e9, "minimize"),
    "ms_ssim": MetricFacts(0.0, 1.0, "maximize", (needs.resolution(176),)),
    "linear_probe": MetricFacts(0.0, 1.0, "maximize", (needs.labels,)),
    "mig": MetricFacts(0.0, 1.0, "maximize", (needs.factors,)),
    "dci": MetricFacts(0.0, 1.0, "maximize", (needs.factors,)),
    "lpips": MetricFacts(0.0, 1.0e3, "minimize", (needs.perceptual,)),
    "rfid": MetricFacts(0.0, 1.0e9, "minimize", (needs.features,), least_images=10),
    "kid": MetricFacts(-1.0e9, 1.0e9, "minimize", (needs.features,), least_images=10),
}

if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]


def is_held_out(name: str) -> bool:
    """Whether a metric, as reports name it, is of validation images: those of the data, or of what is replayed."""
    return name.startswith(("val/", "val_source/"))


def metric_facts(metric: str) -> MetricFacts:
    """Of a metric as reports name it: ``val/psnr``, ``val_source/psnr``."""
    return METRICS[metric.partition("/")[2]]
