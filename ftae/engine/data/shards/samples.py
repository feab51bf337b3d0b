"""Which entries of shards are images, and which their labels: WebDataset's naming."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ftae.engine.data.files.listing import SUFFIXES, hidden_as, legible
from ftae.errors import FtaeError

MOST_BYTES = 2**20  # of a label


@dataclass(frozen=True)
class Entry:
    """A file in a shard: its name, and where its bytes lie. ``read()`` gives them."""

    name: str
    offset: int
    length: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """An image in a shard: its name, its place, and its label as text, if it has one.

    ``offset`` and ``length`` mean what the format of the shard says.
    """

    name: str
    offset: int
    length: int
    label: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which image and which label of a sample is meant; None for the only one."""

    image: str | None
    label: str | None


@dataclass
class _Sample:
    images: dict[str, Entry] = field(default_factory=dict)
    label: str | None = None


def images_of(entries: Iterable[Entry], choice: Choice, shard: str) -> list[Found]:
    """One image for each sample: entries are one sample if their names agree up to the first dot after the last slash.

    The suffix ``cls`` is a label; with ``choice.label``, the value of that key in the suffix ``json`` is.

    Raises:
        FtaeError: a sample has several images and ``choice.image`` does not say which, or a label cannot be read.
    """
    samples: dict[str, _Sample] = {}
    for entry in entries:
        name = entry.name.removeprefix("./")
        if any(part != ".." and hidden_as(part) for part in name.split("/")):
            continue
        folder, slash, file = name.rpartition("/")
        key, _, suffix = file.partition(".")
        sample = samples.setdefault(folder + slash + key, _Sample())
        if f".{suffix}".lower().endswith(SUFFIXES):
            sample.images[suffix] = entry
        elif suffix == ("cls" if choice.label is None else "json"):
            sample.label = _label(entry, choice.label, shard)
    chosen = [(key, sample, _chosen(key, sample, choice.image, shard)) for key, sample in samples.items()]
    return [
        Found(f"{key}.{suffix}", sample.images[suffix].offset, sample.images[suffix].length, sample.label)
        for key, sample, suffix in chosen
        if suffix is not None
    ]


def _chosen(key: str, sample: _Sample, image: str | None, shard: str) -> str | None:
    """The suffix of the image; None where the sample has none."""
    if image is not None:
        return image if image in sample.images else None
    if len(sample.images) > 1:
        raise FtaeError(
            f"{shard}: the sample {legible(key)} has several images, {', '.join(map(legible, sorted(sample.images)))}; "
            "say by data.image which of them"
        )
    return next(iter(sample.images), None)


def _label(entry: Entry, key: str | None, shard: str) -> str:
    if entry.length > MOST_BYTES:
        raise FtaeError(f"{shard}: {legible(entry.name)} has {entry.length:,} bytes, too many for a label")
    try:
        text = entry.read().decode()
        value: Any = text.strip() if key is None else json.loads(text)[key]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        rule = "must be text" if key is None else f"must be a JSON object with data.label, {key}"
        raise FtaeError(f"{shard}: {legible(entry.name)} {rule}") from error
    return label_text(value, f"{shard}: {legible(entry.name)}")


def label_text(value: Any, where: str) -> str:
    """A label as the name of a class.

    Raises:
        FtaeError: it is neither a whole number nor text; ``where`` names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise FtaeError(f"{where}: a label must be a whole number or text, got {value!r:.40}")
    return str(value)
