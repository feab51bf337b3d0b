"""Keeping images of some classes out of training: they are stored behind the others, where a slice leaves them out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ftae.engine.decoding import Pixels
from ftae.engine.image_cache import StoredImages
from ftae.engine.sources import Source


def normal_first(source: Source, anomalies: Sequence[str]) -> Source:
    """``source`` with the images of ``anomalies`` last, and these names last: the others are numbered from 0."""
    if source.labels is None or source.class_names is None or not anomalies:
        return source
    names = source.class_names
    classes = sorted(range(len(names)), key=lambda i: names[i] in anomalies)
    labels = np.argsort(classes)[source.labels]
    num_normal = sum(name not in anomalies for name in names)
    order = np.argsort(labels >= num_normal, kind="stable")

    def decode(i: int) -> Pixels:
        return source.decode(int(order[i]))

    return replace(
        source,
        names=[source.names[i] for i in order],
        decode=decode,
        labels=labels[order],
        factors=None if source.factors is None else source.factors[order],
        class_names=tuple(names[i] for i in classes),
    )


def parted(stored: StoredImages, anomalies: Sequence[str]) -> tuple[StoredImages, Pixels]:
    """What was stored ``normal_first``: the normal images with their classes, and the pixels of the others."""
    if stored.labels is None or stored.class_names is None or not anomalies:
        return stored, stored.images[:0]
    names = tuple(name for name in stored.class_names if name not in anomalies)
    count = int((stored.labels < len(names)).sum())
    factors = None if stored.factors is None else stored.factors[:count]
    normal = replace(
        stored, images=stored.images[:count], labels=stored.labels[:count], class_names=names, factors=factors
    )
    return normal, stored.images[count:]
