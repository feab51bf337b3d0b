"""The index of shards: where each image lies, with its label and group; made once and kept in the cache."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ftae.engine.data.files.groups import group_digest
from ftae.engine.data.files.listing import legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.shards.packed import index_tar, index_zip
from ftae.engine.data.shards.parquet import index_parquet
from ftae.engine.data.shards.places import Shard, ShardFiles, cannot_read
from ftae.engine.data.shards.samples import Choice, Found
from ftae.engine.data.source_base import Indices
from ftae.engine.data.stores.folder import digest, digest_of_all
from ftae.errors import FtaeError
from ftae.wording import count

INDEX_VERSION = 1  # raise it when the same shards would have another index
BLOCK = 2**24  # bytes of a local shard read at a time for its digest

# A new format is a suffix, and a function that finds the images of one shard.
INDEXERS: dict[str, Callable[[ShardFiles, Shard, Choice], list[Found]]] = {
    ".tar": index_tar,
    ".parquet": index_parquet,
    ".zip": index_zip,
}


@dataclass(frozen=True)
class Index:
    """Where each image lies, in the order of their names.

    ``places``: int64 (N, 3): the number of the shard, and what the format calls offset and length. ``labels``: int64
    (N,), indices into ``class_names``; None where the shards have no labels. ``groups``: the digest of the group of
    each image; None where none was asked for. ``content``: depends on the content of all shards.
    """

    names: tuple[str, ...]
    places: Indices
    labels: Indices | None
    class_names: tuple[str, ...] | None
    groups: tuple[str, ...] | None
    content: str


def suffix_of(shard: Shard) -> str:
    """The format of a shard, of ``INDEXERS``."""
    return next(suffix for suffix in INDEXERS if shard.path.lower().endswith(suffix))


def make_index(shards: ShardFiles, choice: Choice) -> Index:
    """The index of all images that ``choice`` means.

    Raises:
        FtaeError: there are none, a shard cannot be read, or names, images, labels or groups are not clear.
    """
    index = INDEXERS[suffix_of(shards.shards[0])]
    places: list[tuple[int, int, int]] = []
    names: list[str] = []
    labels: list[str | None] = []
    groups: list[str] = []
    for number, found in enumerate(in_order(lambda shard: index(shards, shard, choice), shards.shards)):
        places += [(number, image.offset, image.length) for image in found]
        names += [image.name for image in found]
        labels += [image.label for image in found]
        groups += [_group_of(image, shards.shards[number], choice) for image in found]
    if not names:
        wanted = f" with data.image {choice.image}" if choice.image else ""
        raise FtaeError(f"{shards.where}: no images{wanted} in {count(len(shards.shards), 'shard')}")
    if max(Counter(names).values()) > 1:  # then each belongs to its shard
        folder = _common_folder(shards.shards)
        stems = [shard.path[len(folder) :].rpartition(".")[0] for shard in shards.shards]
        names = [f"{stems[place[0]]}/{name}" for place, name in zip(places, names, strict=True)]
    if unfit := [name for name in names if "\0" in name]:
        raise FtaeError(f"{shards.where}: the name of an image must have no character 0: {legible(unfit[0])}")
    order = sorted(range(len(names)), key=names.__getitem__)
    class_names, numbers = _numbered([labels[i] for i in order], [names[i] for i in order], shards.where)
    sorted_names = tuple(names[i] for i in order)
    contents = list(in_order(lambda shard: _content(shards, shard), shards.shards))
    content = digest([INDEX_VERSION, digest_of_all(sorted_names), choice.image, contents])
    digests = None if choice.group is None else tuple(groups[i] for i in order)
    return Index(sorted_names, np.array(places, dtype=np.int64)[order], numbers, class_names, digests, content)


def _group_of(image: Found, shard: Shard, choice: Choice) -> str:
    """The digest of the group; empty where none was asked for."""
    if choice.group is not None and image.group is None:
        raise FtaeError(f"{shard.path}: {legible(image.name)} has no file json with data.groups.column, {choice.group}")
    return "" if image.group is None else group_digest(image.group)


def _common_folder(shards: Sequence[Shard]) -> str:
    folders = [shard.path.rpartition("/")[0].split("/") for shard in shards]
    common = [parts[0] for parts in zip(*folders, strict=False) if len(set(parts)) == 1]
    return "/".join(common) + "/"


def _numbered(
    labels: Sequence[str | None], names: Sequence[str], where: str
) -> tuple[tuple[str, ...] | None, Indices | None]:
    """The classes, numbers in their order and names sorted, and the number of the class of each image."""
    without = [name for name, label in zip(names, labels, strict=True) if label is None]
    if len(without) == len(labels):
        return None, None
    if without:
        raise FtaeError(
            f"{where}: {count(len(without), 'image')} of {len(names)} have no label ({legible(without[0])}, ...)"
        )
    found = {str(label) for label in labels}
    are_numbers = all(label.isdecimal() for label in found)
    classes = sorted(found, key=(lambda label: (int(label), label)) if are_numbers else None)
    number = {label: i for i, label in enumerate(classes)}
    return tuple(classes), np.array([number[str(label)] for label in labels], dtype=np.int64)


def _content(files: ShardFiles, shard: Shard) -> list[Any]:
    """A JSON value that depends on the bytes of a shard: in an object store its etag, or else a digest."""
    if not files.is_local:
        return [shard.size, *shard.state]
    state = blake2b(digest_size=16)
    try:
        with files.open(shard) as file:
            while block := file.read(BLOCK):
                state.update(block)
    except OSError as error:
        raise cannot_read(shard, error) from error
    return [state.hexdigest()]


def write_index(folder: Path, index: Index) -> None:
    """Write it to a folder of the cache, for ``read_index``."""
    names = np.frombuffer("\0".join(index.names).encode("utf-8", "surrogateescape"), dtype=np.uint8)
    labels = np.empty(0, dtype=np.int64) if index.labels is None else index.labels
    groups = np.array(index.groups or (), dtype="U16")
    np.savez(folder / "index.npz", names=names, places=index.places, labels=labels, groups=groups)
    (folder / "about.json").write_text(json.dumps({"class_names": index.class_names, "content": index.content}))


def read_index(folder: Path) -> Index | None:
    """The index in a folder of the cache; None where it is missing or damaged."""
    try:
        about = json.loads((folder / "about.json").read_text())
        with (folder / "index.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = tuple(arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0"))
            places = arrays["places"]
            labels = arrays["labels"] if about["class_names"] else None
            groups = tuple(arrays["groups"].tolist()) or None
        class_names = about["class_names"] and tuple(about["class_names"])
        index = Index(names, places, labels, class_names, groups, about["content"])
        lengths = {len(column) for column in (names, places, labels, groups) if column is not None}
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
    return index if len(lengths) == 1 and places.shape[1:] == (3,) else None
