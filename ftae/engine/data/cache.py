"""Images decoded once per machine, kept as memory-mapped arrays that all processes share.

Layout below ``$FTAE_CACHE`` (default ``~/.cache/ftae``). One process, which holds the lock of a folder, writes it under
another name and renames it when it is complete:

    contents/<stat fingerprint>/survey.json    what a folder of images holds, and the fingerprint of its content
    images_on_demand/<key>/                    what does not fit whole: see stores/on_demand.py
    images/<key>/images.npy                    uint8, uint16 or float32 (N, H, W, channels)
    images/<key>/labels.npy                    int64 (N,), if there are labels
    images/<key>/factors.npy                   int64 (N, F), if the factors of variation are known
    images/<key>/groups.npy                    int64 (N, 2), the group and the place of each image, if there are groups
    images/<key>/digests.npy                   uint64 (N,), equal where the pixels of images are; not before ftae 0.2
    images/<key>/scale.npy                     float64 (2, ...), of arrays: the values that are 0 and 1
    images/<key>/about.json                    class names, skipped files, the values of black and white
    datasets/<fingerprint>/keys.json           the keys of a dataset's parts: all images, or training and validation
    shards/<key>/                              where in shards each image lies
    samples/<key>/samples.json                 the pages, frames, slices or tiles in files that hold several samples
    groups/<key>/groups.json                   the group of each file, as a tag of DICOM names it
    levels/<key>/                              measured values of black and white, or of 0 and 1 of arrays
    models/<key>/model.safetensors             a pretrained model in the state in which trials begin with it

Where the disk is full, images that no process uses are removed, the least recently used first. Any folder in it may be
deleted while no search runs.
"""

import json
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftae.engine.data.files.decoding import Array
from ftae.engine.data.source_base import EIGHT_BITS, Digests, Labels, Levels, ListedImages, Values
from ftae.engine.data.stores.entries import ABOUT, IMAGES, ON_DEMAND, can_make_room, hold, make_room, room
from ftae.engine.data.stores.folder import cache_folder, make_once
from ftae.engine.data.stores.on_demand import ImagesOnDemand
from ftae.engine.data.stores.rows import write_empty
from ftae.engine.data.stores.whole import write_array

logger = logging.getLogger(__name__)

SHARE_OF_DISK = 0.9  # of what is free, or can be: for images that do not fit all
FORMAT = 1  # part of every key: raise it when the same files would decode to different pixels


@dataclass(frozen=True)
class StoredImages:
    """One cached array, read-only, with labels and factors. ``skipped``: undecodable files, each as "name: reason".

    ``levels``, ``digests`` and ``scale``: as for ``ImageSet``. ``groups``: as for ``ListedImages``.
    """

    images: Array | ImagesOnDemand
    labels: Labels | None
    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...]
    factors: Labels | None = None
    levels: Levels | None = EIGHT_BITS
    groups: Labels | None = None
    digests: Digests | None = None
    scale: Values | None = None


Stored = tuple[tuple[int, int, int], np.dtype[Any]]
"""The shape (H, W, channels) and the type of the images of an array."""


@dataclass(frozen=True)
class PartKeys:
    """The keys of one part of a dataset.

    ``images``: where its array is cached; depends on the pixels alone. ``fingerprint``: its contribution to the
    fingerprint of the dataset; depends on ``data.anomaly_classes``, too.
    """

    images: str
    fingerprint: str


def stored_images(
    key: str, form: Stored, list_images: Callable[[], ListedImages], *, cache_gb: float | None = None, what: str = ""
) -> StoredImages:
    """The images cached under ``key``; those of ``list_images()`` are decoded if it is missing or damaged.

    Where they do not fit (``fits``), each is decoded when it is first needed, and as many are kept as fit.
    ``what``: what they are, for ``ftae cache``.

    Raises:
        FtaeError: no image could be decoded, or the cache cannot be written or read.
    """
    if (stored := _cached_whole(key, form)) is None:
        listed = list_images()
        assert (listed.shape, listed.kind) == form
        if fits(listed.num_bytes, cache_gb) and make_room(cache_folder(), listed.num_bytes):
            make_once(
                cache_folder() / IMAGES / key,
                listed.num_bytes,
                lambda partial: _write_whole(partial, listed, what),
                is_sound=lambda folder: _cached_whole(key, form) is not None,
            )
        else:
            make_once(
                _on_demand_folder(key, cache_gb),
                len(listed.names),
                lambda partial: _write_empty(partial, listed, cache_gb, what),
                is_sound=lambda folder: _cached_on_demand(folder, form, list_images) is not None,
            )
        stored = cached_images(key, form, lambda: listed, cache_gb)
    assert stored is not None
    return stored


def fits(num_bytes: int, cache_gb: float | None) -> bool:
    """Whether images may take so many bytes, of ``data.cache_gb`` and of the disk, unused images of which may go."""
    return num_bytes <= _limit(cache_gb) and can_make_room(cache_folder(), num_bytes)


def _limit(cache_gb: float | None) -> float:
    return math.inf if cache_gb is None else cache_gb * 1e9


def _on_demand_folder(key: str, cache_gb: float | None) -> Path:
    """Its store has a size of its own, for each limit."""
    return cache_folder() / ON_DEMAND / (key if cache_gb is None else f"{key}-{cache_gb:g}")


def cached_images(
    key: str, form: Stored, list_images: Callable[[], ListedImages], cache_gb: float | None
) -> StoredImages | None:
    """The images cached under ``key``; None where they are missing, damaged, or of another form.

    ``list_images`` lists them again: for those that are decoded when they are needed.
    """
    return _cached_whole(key, form) or _cached_on_demand(_on_demand_folder(key, cache_gb), form, list_images)


def _cached_whole(key: str, form: Stored) -> StoredImages | None:
    try:
        with _held(cache_folder() / IMAGES / key) as keep:
            images = np.load(cache_folder() / IMAGES / key / "images.npy", mmap_mode="r")
            keep(images)
            return _sound(_read(cache_folder() / IMAGES / key, images), form)
    except _UNSOUND:
        return None


def _cached_on_demand(folder: Path, form: Stored, list_images: Callable[[], ListedImages]) -> StoredImages | None:
    try:
        with _held(folder) as keep:
            images = ImagesOnDemand(folder, *form, list_images)
            keep(images.held)
            return _sound(_read(folder, images), form)
    except _UNSOUND:
        return None


_UNSOUND = (OSError, ValueError, LookupError, TypeError, EOFError, AttributeError)


@contextmanager
def _held(folder: Path) -> Iterator[Callable[[object], None]]:
    """Nobody removes a folder of the cache while the object lives that the context is told to keep it for."""
    held = hold(folder)
    kept: list[object] = []

    def keep(user: object) -> None:
        weakref.finalize(user, os.close, held)
        kept.append(user)

    try:
        yield keep
    finally:
        if not kept:
            os.close(held)


def _sound(stored: StoredImages, form: Stored) -> StoredImages | None:
    """None where images have another form, or labels do not fit."""
    number = len(stored.images)
    is_sound = stored.images.shape == (number, *form[0]) and stored.images.dtype == form[1]
    columns = (stored.labels, stored.factors, stored.groups, stored.digests)
    is_sound = is_sound and all(len(column) == number for column in columns if column is not None)
    return stored if is_sound else None


def remember_keys(fingerprint: str, keys: Sequence[PartKeys]) -> None:
    """Note which arrays hold the dataset with this fingerprint."""

    def write(partial: Path) -> None:
        (partial / "keys.json").write_text(json.dumps([[part.images, part.fingerprint] for part in keys]))

    folder = cache_folder() / "datasets" / fingerprint
    make_once(folder, 200, write, is_sound=lambda folder: recalled_keys(fingerprint) == keys)


def recalled_keys(fingerprint: str) -> list[PartKeys] | None:
    """The keys of a dataset that this machine has cached completely; None if it has not."""
    try:
        entries = json.loads((cache_folder() / "datasets" / fingerprint / "keys.json").read_text())
        # Entries of ftae 0.1 are one text, which is both keys: anomalies were part of the key of an array.
        keys = [PartKeys(entry, entry) if isinstance(entry, str) else PartKeys(*entry) for entry in entries]
        return keys if keys and all(map(_is_cached, keys)) else None
    except (OSError, ValueError, TypeError):
        return None


def _is_cached(part: PartKeys) -> bool:
    whole = cache_folder() / IMAGES / part.images
    return whole.exists() or any((cache_folder() / ON_DEMAND).glob(f"{part.images}*"))


def _write_whole(folder: Path, listed: ListedImages, what: str) -> None:
    kept, skipped = write_array(folder, listed)
    _write_beside(folder, listed, kept, skipped, what)


def _write_empty(folder: Path, listed: ListedImages, cache_gb: float | None, what: str) -> None:
    number, row = len(listed.names), listed.num_bytes // len(listed.names)
    kept = min(number, int(min(_limit(cache_gb), SHARE_OF_DISK * room(cache_folder()))) // row)
    logger.info("%d images (%.0f MB) are decoded as they are needed, %d are kept", number, listed.num_bytes / 1e6, kept)
    write_empty(folder, number, row, kept)
    _write_beside(folder, listed, slice(None), [], what)


def _write_beside(
    folder: Path, listed: ListedImages, kept: list[int] | slice, skipped: Sequence[str], what: str
) -> None:
    for name, values in (("labels", listed.labels), ("factors", listed.factors), ("groups", listed.groups)):
        if values is not None:
            np.save(folder / f"{name}.npy", values[kept])
    if listed.scale is not None:
        np.save(folder / "scale.npy", listed.scale)
    about = {"class_names": listed.class_names, "skipped": skipped, "levels": listed.levels, "what": what}
    (folder / ABOUT).write_text(json.dumps(about))


def _read(folder: Path, images: Array | ImagesOnDemand) -> StoredImages:
    about = json.loads((folder / ABOUT).read_text())
    labels = np.load(folder / "labels.npy") if about["class_names"] is not None else None
    others = ("factors", "groups", "digests", "scale")
    factors, groups, digests, scale = (
        np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None for name in others
    )
    for values in (labels, factors, groups, digests, scale):
        if values is not None:
            values.setflags(write=False)
    class_names = None if about["class_names"] is None else tuple(about["class_names"])
    levels = about.get("levels", EIGHT_BITS)  # before ftae 0.2 all images had 8 bits
    levels = levels and tuple(levels)
    return StoredImages(images, labels, class_names, tuple(about["skipped"]), factors, levels, groups, digests, scale)
