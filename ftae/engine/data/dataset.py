"""The images of a run: training, validation and anomalies, from any source, decoded once per machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ftae.engine.data.cache import (
    StoredImages,
    remember_keys,
)
from ftae.engine.data.checks import (
    check_anomalies_found,
    check_anomaly_classes,
    check_enough_to_split,
    check_folders_apart,
    check_labelled_fraction,
    check_labels,
    check_not_empty,
    check_val_classes,
    missing_images,
    skipped_message,
)
from ftae.engine.data.files.groups import group_notes, split_groups, twin_notes
from ftae.engine.data.files.listing import legible
from ftae.engine.data.source_base import (
    ImageSet,
    Indices,
    Labels,
    Listing,
    SetId,
    Source,
    num_held_out,
)
from ftae.engine.data.sources import normal_class_names, source_of
from ftae.engine.data.stored_parts import ImagesChanged, StoredPart, names_by_digest, recalled_parts, stored_parts
from ftae.engine.data.stores.folder import digest
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.run import FinetuneSpec


@dataclass(frozen=True)
class Dataset:
    """Training and validation images.

    ``anomalies``: validation images of ``data.anomaly_classes``, without labels; None where no class is named.
    ``replay``: the images of ``data.replay``; its training images are mixed into the batches.
    ``fingerprint`` changes with any pixel, label, or the split, and with nothing else; the fingerprint of replayed
    images follows after a ``+``.
    ``skipped``: the files that cannot be decoded, each as "path: reason". ``notes``: what the user should know about
    the files, a line each; the skipped ones are in the first.
    """

    train: ImageSet
    val: ImageSet
    anomalies: ImageSet | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    replay: "Dataset | None" = None

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)


@lru_cache(maxsize=8)
def load_dataset(spec: DataSpec) -> Dataset:
    """The images that ``spec`` describes; loaded once per process, decoded once per machine.

    Raises:
        FtaeError: the images are missing, all damaged, too few or too small for the split, ``val`` has
            classes that ``train`` lacks, there are no anomalies of a name, or the cache cannot be written.
        ImagesChanged: they are not those of ``spec.fingerprint``.
    """
    own, _, of_replay = (spec.fingerprint or "").partition("+")
    check_folders_apart(spec)
    dataset = _load_own(spec.model_copy(update={"fingerprint": own or None}))
    if spec.replay is None:
        return dataset
    pinned = {"fingerprint": of_replay} if of_replay else {}
    replay = load_dataset(spec.replay.model_copy(update=pinned))
    return replace(
        dataset,
        fingerprint=f"{dataset.fingerprint}+{replay.fingerprint}",
        skipped=dataset.skipped + replay.skipped,
        notes=dataset.notes + replay.notes,
        replay=replay,
    )


def load_run_dataset(run: FinetuneSpec) -> Dataset:
    """The images of a run, which have the labels that its losses and metrics need.

    Raises:
        FtaeError: as ``load_dataset``, or labels are missing.
    """
    data = load_dataset(run.data)
    labels = data.train.labels
    num_classes = 0 if labels is None else len(np.unique(labels[labels >= 0]))
    check_labels(run, num_classes=num_classes, val_labelled=data.val.labels is not None)
    return data


def check_listed(run: FinetuneSpec) -> list[str]:
    """Refuse, before any image is decoded, what ``load_run_dataset`` and the metrics would refuse.

    Returns what the user should know about the files. Of a large folder only some files are opened.

    Raises:
        FtaeError: the images are missing or unfit.
    """
    check_folders_apart(run.data)
    listing = source_of(run.data).check_listed()
    notes = [] if listing is None else _check_metrics(run, listing)
    if run.data.replay is not None:
        replayed = source_of(run.data.replay).check_listed()
        notes += [] if replayed is None else replayed.notes
    return notes


def _check_metrics(run: FinetuneSpec, listing: Listing) -> list[str]:
    for metric in run.metrics:
        if reason := missing_images(metric, listing.num_val):
            raise FtaeError(f"metrics: {metric} needs {reason}")
    check_labels(run, num_classes=len(listing.train_classes), val_labelled=listing.val_labelled)
    notes = list(listing.notes)
    names = normal_class_names(run.data)
    if run.losses.ce > 0.0 and names is not None and len(names) == 1:
        only = legible(names[0])
        notes.insert(0, f"losses.ce and accuracy distinguish nothing: all images are of the class {only}")
    return notes


def _load_own(spec: DataSpec) -> Dataset:
    """Without replayed images."""
    source = source_of(spec)
    parts = recalled_parts(source) or stored_parts(source)
    dataset = _split(parts[0], spec) if len(parts) == 1 else _joined(parts[0], parts[1], source)
    remember_keys(dataset.fingerprint, [part.keys for part in parts])
    if spec.fingerprint not in (None, dataset.fingerprint):
        raise ImagesChanged(
            f"the images of {source.location} are not those of data.fingerprint {spec.fingerprint}: files were added, "
            "removed or changed, and this machine has no copy of the old ones. Restore them, or start a new search "
            "with the images as they are now"
        )
    if spec.labelled_fraction < 1.0:
        check_labelled_fraction(spec, dataset.train.labels is not None)
        train = replace(dataset.train, labels=_partly_labelled(dataset, spec.labelled_fraction))
        dataset = replace(dataset, train=train)
    notes = (*(note for part in parts for note in part.notes), *group_notes(dataset.train.groups, dataset.val.groups))
    if all(source.folders):
        held_out = [images for images in (dataset.val, dataset.anomalies) if images is not None]
        notes += twin_notes(dataset.train, held_out, lambda: names_by_digest(parts))
    if dataset.skipped:
        notes = (skipped_message(dataset.skipped), *notes)
    return _identified(replace(dataset, notes=notes))


# ---------------------------------------------------------------------------------------------- the sets


def separate_anomalies(
    stored: StoredImages, anomaly_classes: Sequence[str]
) -> tuple[ImageSet, ImageSet, tuple[str, ...] | None]:
    """The normal images, the anomalies, and the classes of the normal images, which are numbered from 0."""
    everything = _everything(stored)
    if everything.labels is None or stored.class_names is None or not anomaly_classes:
        return everything, replace(everything, labels=None, factors=None).subset(slice(0)), stored.class_names
    is_normal = np.array([name not in anomaly_classes for name in stored.class_names])
    new_labels = np.cumsum(is_normal) - 1
    normal, others = (everything.subset(np.flatnonzero(of[everything.labels])) for of in (is_normal, ~is_normal))
    assert normal.labels is not None
    normal = replace(normal, labels=new_labels[normal.labels], positions=None)
    anomalies = replace(others, labels=None, factors=None, positions=None)
    return normal, anomalies, tuple(name for name in stored.class_names if name not in anomaly_classes)


def _everything(stored: StoredImages) -> ImageSet:
    """All images, in the order of hashes of their names: where there are groups, they are stored in another order."""
    everything = ImageSet(
        stored.images,
        stored.labels,
        stored.factors,
        levels=stored.levels,
        digests=stored.digests,
        scale=stored.scale,
    )
    if stored.groups is None:
        return everything
    grouped = replace(everything, groups=stored.groups[:, 0]).subset(np.argsort(stored.groups[:, 1]))
    return replace(grouped, positions=None)


def _split(part: StoredPart, spec: DataSpec) -> Dataset:
    """The last of the normal images, or of their groups, are for validation, the rest for training."""
    assert not isinstance(spec.val, str)
    check_anomaly_classes(spec, part.stored.class_names or ())
    normal, anomalies, class_names = separate_anomalies(part.stored, spec.anomaly_classes)
    check_enough_to_split(len(normal), spec.val)
    halves: tuple[slice | Indices, slice | Indices]
    if normal.groups is None:
        num_train = len(normal) - num_held_out(len(normal), spec.val)
        halves = slice(num_train), slice(num_train, None)
    else:
        halves = split_groups(normal.groups, () if anomalies.groups is None else set(anomalies.groups), spec.val)
    train, val = (replace(normal.subset(half), positions=None) for half in halves)
    fingerprint = digest([part.keys.fingerprint, len(train)])
    return Dataset(train, val, _checked(anomalies, spec), class_names, fingerprint, part.stored.skipped)


def _joined(train: StoredPart, val: StoredPart, source: Source[Any]) -> Dataset:
    """Training and validation images that are apart; anomalies are taken from the validation images alone."""
    spec = source.spec
    found = {*(train.stored.class_names or ()), *(val.stored.class_names or ())}
    check_anomaly_classes(spec, sorted(found))
    train_set, _, known = separate_anomalies(train.stored, spec.anomaly_classes)
    val_set, anomalies, val_names = separate_anomalies(val.stored, spec.anomaly_classes)
    for leaf, folder, images in zip(("data.train", "data.val"), source.folders, (train_set, val_set), strict=True):
        check_not_empty(leaf, folder, len(images))
    if val_names is not None and val_set.labels is not None:
        check_val_classes(source.folders[1], known or (), val_names)
        numbers: Labels = np.array([(known or ()).index(name) for name in val_names], dtype=np.int64)
        val_set = replace(val_set, labels=numbers[val_set.labels])
    fingerprint = digest([train.keys.fingerprint, val.keys.fingerprint])
    skipped = train.stored.skipped + val.stored.skipped
    return Dataset(train_set, val_set, _checked(anomalies, spec), known, fingerprint, skipped)


def _checked(anomalies: ImageSet, spec: DataSpec) -> ImageSet | None:
    check_anomalies_found(spec, len(anomalies))
    return anomalies if spec.anomaly_classes else None


def _partly_labelled(dataset: Dataset, share: float) -> Labels:
    """The training labels; of each class only the first ``share`` is left, in the order of hashes of names."""
    labels = dataset.train.labels
    assert labels is not None
    kept = np.full_like(labels, -1)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        kept[indices[: max(1, round(share * len(indices)))]] = label
    kept.setflags(write=False)
    return kept


def _identified(dataset: Dataset) -> Dataset:
    """With the identity of each complete set."""
    sets = {name: getattr(dataset, name) for name in ("train", "val", "anomalies")}
    identified = {
        name: images and replace(images, complete=SetId(f"{dataset.fingerprint}-{name}", len(images)))
        for name, images in sets.items()
    }
    return replace(dataset, **identified)
