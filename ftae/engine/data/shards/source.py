"""The source of images in shards, which are read by the places that their index has."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ftae.engine.data.archives.images import check_names
from ftae.engine.data.files.listing import ACCOMPANYING, ImageFiles
from ftae.engine.data.image_folder import ImageFolderSource, files_part
from ftae.engine.data.shards.blocks import Blocks
from ftae.engine.data.shards.index import (
    INDEX_VERSION,
    INDEXERS,
    Index,
    make_index,
    read_index,
    suffix_of,
    write_index,
)
from ftae.engine.data.shards.packed import read_tar, read_zip
from ftae.engine.data.shards.parquet import RowGroups, holds_images
from ftae.engine.data.shards.places import REQUESTS, Shard, ShardFiles, find_shards
from ftae.engine.data.shards.samples import Choice
from ftae.engine.data.source_base import Indices, Listing, Part
from ftae.engine.data.stores.folder import cache_folder, digest_of_all, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.sources.folders import Shards
from ftae.wording import count

MOST_BETWEEN = 2**20  # bytes an image


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
        suffix = suffix_of(shard)
        if suffix == ".parquet":
            return self.row_groups.read(self.shards, shard, offset, length, self.choice)
        return (read_tar if suffix == ".tar" else read_zip)(self.blocks or self.shards, shard, offset, length)

    def read_in_order(self) -> ImageFiles:
        return self if self.shards.is_local or self._are_apart else replace(self, blocks=Blocks(self.shards))

    @property
    def _are_apart(self) -> bool:
        """Whether reading what lies between images takes longer than a request for each, as beside large other files.

        In Parquet images are read by row groups in any case.
        """
        between = sum(shard.size for shard in self.shards.shards) - int(self.index.places[:, 2].sum())
        return between > MOST_BETWEEN * len(self.names)


class ShardsSource(ImageFolderSource):
    """``data.train`` and, where ``data.val`` names shards, these."""

    spec: Shards

    def list_images(self, folder: str) -> ShardImages:
        by = None if self.spec.groups is None else self.spec.groups.column
        return open_shards(folder, Choice(self.spec.image, self.spec.label, by))

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
    return files_part(where, shards_at(where, spec), spec)


def shards_at(where: str, spec: DataSpec) -> ShardImages:
    """The images of any shards, chosen as in those of ``spec``. Raises as ``open_shards``."""
    return open_shards(where, Choice(spec.image, spec.label) if isinstance(spec, Shards) else Choice(None, None))


def is_shards(where: str) -> bool:
    """Whether this is the place of shards: a URL, a pattern, a tar, a Parquet file with images, or a folder of such.

    A folder that has anything else, but for notes beside the shards, is none: that is what it is for.
    """
    path = Path(where).expanduser()
    if not path.exists():
        return "://" in where or any(mark in where for mark in "*?{")
    if not path.is_dir():
        return _has_suffix(path, (".tar", ".parquet")) and _may_hold_images(path)  # a single zip is an archive
    first = None
    for child in (child for child in path.iterdir() if not child.name.startswith(".")):
        if child.is_dir() or not _has_suffix(child, (*INDEXERS, *ACCOMPANYING)):
            return False
        first = first or (child if _has_suffix(child, tuple(INDEXERS)) else None)
    return first is not None and _may_hold_images(first)


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _may_hold_images(shard: Path) -> bool:
    return not _has_suffix(shard, (".parquet",)) or holds_images(shard)


def open_shards(where: str, choice: Choice) -> ShardImages:
    """The images of all shards at ``where``; the index is made if the cache does not have it.

    Raises:
        FtaeError: there are no shards or images, they cannot be read, or names, images, labels or groups are not clear.
    """
    shards = find_shards(where, tuple(INDEXERS))
    suffixes = sorted({suffix_of(shard) for shard in shards.shards})
    if len(suffixes) > 1:
        raise FtaeError(f"{where} holds shards of several formats, {', '.join(suffixes)}; name those of one")
    key = digest_of_all([INDEX_VERSION, where, choice.image, choice.label, choice.group, *map(_as_json, shards.shards)])
    folder = cache_folder() / "shards" / key

    def write(partial: Path) -> None:
        write_index(partial, make_index(shards, choice))

    make_once(folder, 2**16, write, is_sound=lambda folder: read_index(folder) is not None)
    index = read_index(folder)
    assert index is not None
    root = Path(where)
    images = ShardImages(root, index.names, index.class_names, shards=shards, choice=choice, index=index, index_key=key)
    check_names(images)
    if index.groups is not None:
        images = replace(images, groups=dict(zip(index.names, index.groups, strict=True)))
    return images if index.labels is not None else images.labelled_by_folders()


def _as_json(shard: Shard) -> list[Any]:
    return [shard.path, *shard.state]
