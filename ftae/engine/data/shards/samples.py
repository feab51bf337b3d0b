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
    """An image in a shard: its name, its place, and its label and its group as text, if it has them.

    ``offset`` and ``length`` mean what the format of the shard says.
    """

    name: str
    offset: int
    length: int
    label: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which image and which label of a sample is meant; None for the only one. ``group``: what names groups, if any."""

    image: str | None
    label: str | None
    group: str | None = None


@dataclass
class _Sample:
    images: dict[str, Entry] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None


def images_of(entries: Iterable[Entry], choice: Choice, shard: str) -> list[Found]:
    """One image for each sample: entries are one sample if their names agree up to the first dot after the last slash.

    The suffix ``cls`` is a label; with ``choice.label``, the value of that key in the suffix ``json`` is. The value of
    the key ``choice.group`` there is the group.

    Raises:
        FtaeError: a sample has several images and ``choice.image`` does not say which, or a label or a group cannot be
            read.
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
        elif suffix == "cls" and choice.label is None:
            sample.label = label_text(_text(entry, shard).strip(), f"{shard}: {legible(entry.name)}")
        elif suffix == "json" and (choice.label is not None or choice.group is not None):
            sample.label, sample.group = _known(entry, sample.label, choice, shard)
    chosen = [(key, sample, _chosen(key, sample, choice.image, shard)) for key, sample in samples.items()]
    return [
        Found(f"{key}.{suffix}", image.offset, image.length, sample.label, sample.group)
        for key, sample, suffix in chosen
        if suffix is not None and (image := sample.images[suffix])
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


def _known(entry: Entry, label: str | None, choice: Choice, shard: str) -> tuple[str | None, str | None]:
    """The label and the group that a JSON object names; ``label`` is that of another file."""
    where = f"{shard}: {legible(entry.name)}"
    try:
        about: Any = json.loads(_text(entry, shard))
    except (ValueError, RecursionError):
        about = None
    for leaf, key in (("data.label", choice.label), ("data.groups.column", choice.group)):
        if key is not None and not (isinstance(about, dict) and key in about):
            raise FtaeError(f"{where} must be a JSON object with {leaf}, {key}")
    return (
        label if choice.label is None else label_text(about[choice.label], where),
        None if choice.group is None else group_text(about[choice.group], where),
    )


def _text(entry: Entry, shard: str) -> str:
    where = f"{shard}: {legible(entry.name)}"
    if entry.length > MOST_BYTES:
        raise FtaeError(f"{where} has {entry.length:,} bytes, too many for a label")
    try:
        return entry.read().decode()
    except UnicodeDecodeError as error:
        raise FtaeError(f"{where} must be text") from error


def label_text(value: Any, where: str) -> str:
    """A label as the name of a class.

    Raises:
        FtaeError: it is neither a whole number nor text; ``where`` names it.
    """
    if not _is_name(value):
        raise FtaeError(f"{where}: a label must be a whole number or text, got {value!r:.40}")
    return str(value)


def group_text(value: Any, where: str) -> str:
    """The name of a group. The message does not tell it, since it may be a person's. Raises as ``label_text``."""
    if not _is_name(value):
        raise FtaeError(f"{where}: data.groups.column must have a whole number or text, got {_kind(value)}")
    return str(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""


def _kind(value: Any) -> str:
    return "nothing" if value is None or value == "" else f"a value of the type {type(value).__name__}"
