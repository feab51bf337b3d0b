"""Whether metrics have a value on the images of a run: known once these are listed, before the first step."""

from collections.abc import Sequence

import numpy as np

from ftae.engine.data import Dataset, ImageSet
from ftae.engine.data_check import too_few
from ftae.engine.latent_metrics import probe_rows, varying
from ftae.errors import FtaeError
from ftae.specs import needs
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.metrics import METRICS

LEAST_FACTORS = {"mig": 1, "dci": 2}  # that vary
OF_EDGES = ("sharpness", "edge_distance")


def check_images(spec: FinetuneSpec, data: Dataset) -> None:
    """Hold the metrics of a run against its images.

    Raises:
        FtaeError: one has no value on them.
    """
    check_enough(spec.metrics, data.train, data.val)
    if data.replay is not None:
        check_enough(spec.source_metrics(), data.replay.train, data.replay.val, "data.replay")


def check_enough(metrics: Sequence[str], train: ImageSet, val: ImageSet, data: str = "data") -> None:
    """Raises as ``check_images``; ``data``: the leaf that names these images."""
    for metric in metrics:
        if reason := lacking(metric, val, data) or lacking_to_train(metric, train, data):
            raise FtaeError(f"metrics: {metric} needs {reason}")


def lacking(metric: str, val: ImageSet, data: str = "data") -> str | None:
    """What a metric needs of the validation images that they have not; None if nothing."""
    factors = LEAST_FACTORS.get(metric, 0)
    if reason := too_few(metric, len(val), data):
        return reason
    if val.labels is None and {needs.labels, needs.head} & set(METRICS[metric].needs):
        return f"the labels of validation images: put those of each class into a sub-folder of {data}.val"
    if factors and (val.factors is None or varying(val.factors).sum() < factors):
        return f"at least {factors} factor{'s' * (factors > 1)} of variation with more than one value in validation"
    if metric in OF_EDGES and all((image == image[:1, :1]).all() for image in val.images):
        return f"edges: each validation image of {data} is of one colour"
    return None


def lacking_to_train(metric: str, train: ImageSet, data: str = "data") -> str | None:
    """What a metric needs of the training images that they have not; None if nothing."""
    if needs.labels not in METRICS[metric].needs:
        return None
    if train.labels is None:
        return f"labels: put the images of each class into a sub-folder of {data}.train"
    found = len(np.unique(train.labels[probe_rows(train.labels)]))
    return None if found > 1 else f"training images of at least 2 classes, {data} has {found}"
