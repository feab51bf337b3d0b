"""The source of images in shards: an index, made once and kept in the cache, and reads by place."""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ftae.engine.data.archives.images import check_names
from ftae.engine.data.files.listing import SUFFIXES, ImageFiles, legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.image_folder import ImageFolderSource, files_part
from ftae.engine.data.shards.blocks import Blocks
from ftae.engine.data.shards.packed import index_tar, index_zip, read_tar, read_zip
from ftae.engine.data.shards.parquet import RowGroups, holds_images, index_parquet
from ftae.engine.data.shards.places import REQUESTS, Shard, ShardFiles, cannot_read, find_shards
from ftae.engine.data.shards.samples import Choice, Found
from ftae.engine.data.source_base import Indices, Listing, Part
from ftae.engine.data.stores.folder import cache_folder, digest, digest_of_all, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.folders import Shards
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
    (N,), indices into ``class_names``; None where the shards have no labels. ``content``: depends on the content of all
    shards.
    """

    names: tuple[str, ...]
    places: Indices
    labels: Indices | None
    class_names: tuple[str, ...] | None
    content: str


@dataclass(frozen=True, kw_only=True)
class ShardImages(ImageFiles):
    """The images of ``shards``; names are those in the shards and lead to no file."""

    shards: ShardFiles
    choice: Choice
    index: Index
    index_key: str
    row_groups: RowGroups = field(default_factory=RowGroups)
    blocks: Blocks | None = None

    def _row(self, name: str) -> int:
        return bisect_left(self.names, name)

    def class_of(self, name: str) -> str | None:
        if self.index.labels is None or self.class_names is None:
            return super().class_of(name)
        return self.class_names[int(self.index.labels[self._row(name)])]

    @property
    def key(self) -> list[Any]:
        labels = self.index.labels
        own = [] if labels is None else [[self.class_names, blake2b(labels.tobytes()).hexdigest()]]
        return [*own, *super().key]

    @property
    def content(self) -> str:
        return self.index.content

    @property
    def reads_at_once(self) -> int | None:
        return None if self.shards.is_local else REQUESTS

    def reading_order(self, names: Sequence[str]) -> Indices:
        shards, offsets, rows = self.index.places[[self._row(name) for name in names]].T
        return np.lexsort((rows, offsets, shards))

    def stamp(self) -> Iterable[Any]:
        return [self.index_key]

    def read(self, name: str) -> bytes:
        number, offset, length = map(int, self.index.places[self._row(name)])
        shard = self.shards.shards[number]
        suffix = _suffix(shard)
        if suffix == ".parquet":
            return self.row_groups.read(self.shards, shard, offset, length, self.choice)
        return (read_tar if suffix == ".tar" else read_zip)(self.blocks or self.shards, shard, offset, length)

    def read_in_order(self) -> ImageFiles:
        return self if self.shards.is_local else replace(self, blocks=Blocks(self.shards))


class ShardsSource(ImageFolderSource):
    """``data.train`` and, where ``data.val`` names shards, these."""

    spec: Shards

    def list_images(self, folder: str) -> ShardImages:
        return open_shards(folder, Choice(self.spec.image, self.spec.label))

    def parts(self) -> tuple[Part, ...]:
        self._check_apart()
        return super().parts()

    def check_listed(self) -> Listing:
        self._check_apart()
        return super().check_listed()

    def _check_apart(self) -> None:
        """Patterns may overlap where folders do not."""
        shards = [find_shards(where, tuple(INDEXERS)).shards for where in self.folders]
        held_out = {shard.path for shard in shards[-1]} if len(shards) > 1 else set()
        if both := [shard.path for shard in shards[0] if shard.path in held_out]:
            raise FtaeError(f"data.train and data.val share {count(len(both), 'shard')}, as {both[0]}")


def shards_part(where: str, spec: DataSpec) -> Part:
    """All images of any shards, in the size and colour of ``spec``. Raises as ``open_shards`` and ``files_part``."""
    choice = Choice(spec.image, spec.label) if isinstance(spec, Shards) else Choice(None, None)
    return files_part(where, open_shards(where, choice), spec)


def is_shards(where: str) -> bool:
    """Whether this is the place of shards: a URL, a pattern, a tar, a Parquet file with images, or a folder of such.

    A folder that also has pictures or folders is none: they are what it is for.
    """
    path = Path(where).expanduser()
    if not path.exists():
        return "://" in where or any(mark in where for mark in "*?{")
    if not path.is_dir():
        return _has_suffix(path, (".tar", ".parquet")) and _may_hold_images(path)  # a single zip is an archive
    if any(child.is_dir() or _has_suffix(child, SUFFIXES) for child in path.iterdir()):
        return False
    first = next((child for child in path.iterdir() if _has_suffix(child, tuple(INDEXERS))), None)
    return first is not None and _may_hold_images(first)


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _may_hold_images(shard: Path) -> bool:
    return not _has_suffix(shard, (".parquet",)) or holds_images(shard)


def open_shards(where: str, choice: Choice) -> ShardImages:
    """The images of all shards at ``where``; the index is made if the cache does not have it.

    Raises:
        FtaeError: there are no shards or images, they cannot be read, or names, images or labels are not clear.
    """
    shards = find_shards(where, tuple(INDEXERS))
    suffixes = sorted({_suffix(shard) for shard in shards.shards})
    if len(suffixes) > 1:
        raise FtaeError(f"{where} holds shards of several formats, {', '.join(suffixes)}; name those of one")
    key = digest_of_all([INDEX_VERSION, where, choice.image, choice.label, *map(_as_json, shards.shards)])
    folder = cache_folder() / "shards" / key

    def write(partial: Path) -> None:
        _write(partial, _made(shards, choice))

    make_once(folder, 2**16, write, is_sound=lambda folder: _read(folder) is not None)
    index = _read(folder)
    assert index is not None
    root = Path(where)
    images = ShardImages(root, index.names, index.class_names, shards=shards, choice=choice, index=index, index_key=key)
    check_names(images)
    return images if index.labels is not None else images.labelled_by_folders()


def _as_json(shard: Shard) -> list[Any]:
    return [shard.path, *shard.state]


def _suffix(shard: Shard) -> str:
    return next(suffix for suffix in INDEXERS if shard.path.lower().endswith(suffix))


# ------------------------------------------------------------------------------------------ the index


def _made(shards: ShardFiles, choice: Choice) -> Index:
    index = INDEXERS[_suffix(shards.shards[0])]
    places: list[tuple[int, int, int]] = []
    names: list[str] = []
    labels: list[str | None] = []
    for number, found in enumerate(in_order(lambda shard: index(shards, shard, choice), shards.shards)):
        places += [(number, image.offset, image.length) for image in found]
        names += [image.name for image in found]
        labels += [image.label for image in found]
    if not names:
        wanted = f" with data.image {choice.image}" if choice.image else ""
        raise FtaeError(f"{shards.where}: no images{wanted} in {count(len(shards.shards), 'shard')}")
    if max(Counter(names).values()) > 1:  # then each belongs to its shard
        folder = _common_folder(shards.shards)
        stems = [shard.path[len(folder) :].rpartition(".")[0] for shard in shards.shards]
        names = [f"{stems[place[0]]}/{name}" for place, name in zip(places, names, strict=True)]
    order = sorted(range(len(names)), key=names.__getitem__)
    class_names, numbers = _numbered([labels[i] for i in order], [names[i] for i in order], shards.where)
    sorted_names = tuple(names[i] for i in order)
    contents = list(in_order(lambda shard: _content(shards, shard), shards.shards))
    content = digest([INDEX_VERSION, digest_of_all(sorted_names), choice.image, contents])
    return Index(sorted_names, np.array(places, dtype=np.int64)[order], numbers, class_names, content)


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


def _write(folder: Path, index: Index) -> None:
    names = np.frombuffer("\0".join(index.names).encode("utf-8", "surrogateescape"), dtype=np.uint8)
    labels = np.empty(0, dtype=np.int64) if index.labels is None else index.labels
    np.savez(folder / "index.npz", names=names, places=index.places, labels=labels)
    (folder / "about.json").write_text(json.dumps({"class_names": index.class_names, "content": index.content}))


def _read(folder: Path) -> Index | None:
    """The index in a folder of the cache; None where it is missing or damaged."""
    try:
        about = json.loads((folder / "about.json").read_text())
        with np.load(folder / "index.npz", allow_pickle=False) as arrays:
            names = tuple(arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0"))
            places = arrays["places"]
            labels = arrays["labels"] if about["class_names"] else None
        class_names = about["class_names"] and tuple(about["class_names"])
        index = Index(names, places, labels, class_names, about["content"])
        is_sound = places.shape == (len(names), 3) and (labels is None or len(labels) == len(names))
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None
    return index if is_sound else None
