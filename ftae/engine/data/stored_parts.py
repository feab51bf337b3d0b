"""The parts of a source in the cache: recalled by their fingerprint, or decoded; and how many images a run decodes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ftae.engine.data.cache import FORMAT, PartKeys, StoredImages, cached_images, fits, recalled_keys, stored_images
from ftae.engine.data.checks import skipped_message
from ftae.engine.data.files.decoding import Array, stored_shape, stored_type
from ftae.engine.data.source_base import ListedImages, Part, Source, num_held_out
from ftae.engine.data.sources import source_of
from ftae.engine.data.stores.folder import digest
from ftae.engine.data.stores.on_demand import ImagesOnDemand
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.wording import size


class ImagesChanged(FtaeError):
    """The images are not those of ``data.fingerprint``."""


@dataclass(frozen=True)
class StoredPart:
    """One part of a source as the cache has it. ``names``: those of the stored images, in their order; None where only
    the cache is known."""

    stored: StoredImages
    keys: PartKeys
    notes: tuple[str, ...] = ()
    names: Callable[[], Sequence[str]] | None = None


def recalled_parts(source: Source[Any]) -> list[StoredPart] | None:
    """What the cache has for ``data.fingerprint``, whatever became of the files; None where that is incomplete."""
    spec = source.spec
    keys = (spec.fingerprint and recalled_keys(spec.fingerprint)) or []
    if len(keys) != len(source.folders):
        return None
    parts = []
    for number, (folder, its_keys) in enumerate(zip(source.folders, keys, strict=True)):
        list_again = partial(_listed_again, source, number, its_keys.images)
        form = stored_shape(spec), stored_type(spec)
        if (stored := cached_images(its_keys.images, form, list_again, spec.cache_gb)) is None:
            return None
        parts.append(StoredPart(_named_from(folder, stored), its_keys))
    return parts


def _listed_again(source: Source[Any], number: int, key: str) -> ListedImages:
    """The images of a part that are not decoded yet.

    Raises:
        ImagesChanged: they are no longer those that the others were.
    """
    part = source.parts()[number]
    if part_keys(part, source.spec).images != key:
        raise ImagesChanged(
            f"the images of {source.location} have changed, and some of the old ones were not decoded yet. Restore "
            "them, or start a new search with the images as they are now"
        )
    return part.listed()


def stored_parts(source: Source[Any]) -> list[StoredPart]:
    """All parts of a source, decoded if the cache does not have them. Raises as ``Source.parts`` and ``store_part``."""
    parts = []
    for folder, part in zip(source.folders, source.parts(), strict=True):
        stored = store_part(part, source.spec)
        names = partial(_stored_names, folder, part, stored)
        named = _named_from(folder, stored, part.unusable)
        notes = (*part.notes, *_on_demand_notes(folder, stored.images))
        parts.append(StoredPart(named, part_keys(part, source.spec), notes, names))
    return parts


def _stored_names(folder: str, part: Part, stored: StoredImages) -> list[str]:
    return [str(Path(folder) / name) for name in readable_names(part.listed().names, stored.skipped)]


def readable_names(names: Sequence[str], skipped: Sequence[str]) -> tuple[str, ...]:
    """The names that have no entry "name: reason" in ``skipped``; a name may itself contain a colon."""
    known = set(names)
    for entry in skipped:
        ends = [i for i in range(len(entry)) if entry.startswith(": ", i)]
        known.discard(next(entry[:end] for end in reversed(ends) if entry[:end] in known))
    return tuple(name for name in names if name in known)


def names_by_digest(parts: Sequence[StoredPart]) -> dict[int, list[str]]:
    """The names of the images of each digest of pixels; empty where names are not known."""
    found: dict[int, list[str]] = {}
    for part in parts:
        if part.names is not None and part.stored.digests is not None:
            for value, name in zip(part.stored.digests.tolist(), part.names(), strict=True):
                found.setdefault(value, []).append(name)
    return found


def _on_demand_notes(folder: str, images: Array | ImagesOnDemand) -> list[str]:
    if not isinstance(images, ImagesOnDemand):
        return []
    notes = [f"{folder}: {images.num_decoded():,} of {len(images):,} images are decoded, others when they are needed"]
    if unreadable := images.unreadable():
        notes.append(f"{folder}: others take the place of images: {skipped_message(unreadable)}")
    return notes


def decoded_as_needed(run: FinetuneSpec) -> str | None:
    """How many images a run decodes, and their size, in words; None where all images fit and are decoded at once.

    Raises:
        FtaeError: the images are missing.
    """
    data, source = run.data, source_of(run.data)
    numbers = source.num_images()
    row = math.prod(stored_shape(data)) * stored_type(data).itemsize
    if all(fits(number * row, data.cache_gb) for number in numbers):
        return None
    if len(numbers) == 1:
        assert not isinstance(data.val, str)
        num_val = num_held_out(numbers[0], data.val)
        numbers = (numbers[0] - num_val, num_val)
    num_train, num_val = numbers
    own = run.batch_size - (0 if data.replay is None else data.replay.rows(run.batch_size))
    needed = min(num_train, run.max_steps * run.grad_accumulation * own) + num_val
    text = f"{needed:,} of {num_train + num_val:,} images are decoded, {size(needed * row)}"
    kept = math.inf if data.cache_gb is None else int(len(source.folders) * data.cache_gb * 1e9)
    if needed * row > kept:
        text += f", and again once they have left the cache, which keeps {size(int(kept))}"
    return text


def store_part(part: Part, spec: DataSpec) -> StoredImages:
    """The images of a part in the size and colour of ``spec``, decoded if the cache does not have them."""
    form = (stored_shape(spec), stored_type(spec))
    where = next(iter(spec.image_folders().values()), spec.source)
    what = f"{where}, {'x'.join(map(str, form[0]))}"
    return stored_images(part_keys(part, spec).images, form, part.listed, cache_gb=spec.cache_gb, what=what)


def part_keys(part: Part, spec: DataSpec) -> PartKeys:
    """The keys of a part in the size, colour and type of ``spec``."""
    images = digest([FORMAT, part.content, *stored_shape(spec), *part.pixel_key])
    if not spec.anomaly_classes:
        return PartKeys(images, images)
    anomalies = sorted(spec.anomaly_classes)
    return PartKeys(images, digest([FORMAT, part.content, *stored_shape(spec), anomalies, *part.pixel_key]))


def _named_from(folder: str, stored: StoredImages, unusable: Sequence[str] = ()) -> StoredImages:
    """With all skipped files, ``unusable`` ones included, named by their path from ``folder`` on."""
    return replace(stored, skipped=tuple(str(Path(folder) / entry) for entry in sorted([*stored.skipped, *unusable])))
