"""The names of stored images, which score tables and output files use."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ftae.engine.data.cache import StoredImages
from ftae.engine.data.checks import skipped_message
from ftae.engine.data.dataset import load_dataset, separate_anomalies, store_part
from ftae.engine.data.image_folder import folder_part
from ftae.engine.data.image_set import ImageSet
from ftae.engine.data.source import ListedImages, num_held_out
from ftae.engine.data.sources import source_of
from ftae.errors import FtaeError
from ftae.specs.finetune.data import DataSpec


@dataclass(frozen=True)
class Names:
    """The names of images, in order. ``classes``: the class of each; None where images have no labels."""

    images: tuple[str, ...]
    classes: tuple[str, ...] | None

    def from_index(self, first: int) -> "Names":
        return Names(self.images[first:], self.classes and self.classes[first:])


@dataclass(frozen=True)
class NamedImages:
    """Images and their names; those of ``anomalies`` come last.

    ``images``: the normal ones; their labels index ``class_names``. ``anomalies``: the images of
    ``data.anomaly_classes``; None where there are none. ``notes``: what the user should know of the files.
    """

    images: ImageSet
    anomalies: ImageSet | None
    names: Names
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def named_folder(folder: str, spec: DataSpec) -> NamedImages:
    """All images of a folder in the size and colour of ``spec``, named by their paths below the folder.

    Raises:
        FtaeError: the folder holds no readable images, ``spec`` does not say what values mean, or the cache cannot
            be written.
    """
    part = folder_part(folder, spec)
    stored = store_part(part, spec)
    named = _named(part.listed(), stored, spec)
    skipped = sorted([*stored.skipped, *part.unusable])
    notes = (skipped_message(skipped), *part.notes) if skipped else tuple(part.notes)
    return replace(named, notes=notes)


def validation_names(spec: DataSpec) -> Names | None:
    """The names of the validation images of ``load_dataset(spec)``, in order; the anomalies come last.

    None where the cache holds images whose files have gone or changed. In a built-in source a name is the number of
    the image there.
    """
    now = spec.model_copy(update={"fingerprint": None})
    try:
        if spec.fingerprint not in (None, load_dataset(now).fingerprint):
            return None
    except FtaeError:
        return None
    parts = source_of(now).parts()
    named = _named(parts[-1].listed(), store_part(parts[-1], now), now)
    if len(parts) > 1:
        return named.names
    assert isinstance(spec.val, float)
    return named.names.from_index(len(named.images) - num_held_out(len(named.images), spec.val))


def _named(listed: ListedImages, stored: StoredImages, spec: DataSpec) -> NamedImages:
    normal, anomalies, class_names = separate_anomalies(stored, spec.anomaly_classes)
    readable = _without(listed.names, stored.skipped)
    assert len(readable) == len(stored.images)
    rows = np.arange(len(readable))
    order = rows if normal.rows is None or anomalies.rows is None else np.concatenate([normal.rows, anomalies.rows])
    classes = None
    if stored.labels is not None and stored.class_names is not None:
        classes = tuple(stored.class_names[label] for label in stored.labels[order])
    names = Names(tuple(readable[row] for row in order), classes)
    return NamedImages(replace(normal, factors=None), anomalies if len(anomalies) else None, names, class_names)


def _without(names: Sequence[str], skipped: Sequence[str]) -> tuple[str, ...]:
    """The names that have no entry "name: reason" in ``skipped``; a name may itself contain a colon."""
    known = set(names)
    for entry in skipped:
        ends = [i for i in range(len(entry)) if entry.startswith(": ", i)]
        known.discard(next(entry[:end] for end in reversed(ends) if entry[:end] in known))
    return tuple(name for name in names if name in known)
