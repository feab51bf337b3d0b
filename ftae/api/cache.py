"""The cache of this machine: what it holds, and its removal."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftae.engine.data.stores.entries import Entry


@dataclass(frozen=True)
class CacheEntry:
    """One folder of the cache (``FTAE_CACHE``), which may be deleted.

    ``kind``: ``images``, decoded; ``images_on_demand``, of which only some are; ``frozen_features``; ``shards``, where
    their images lie; and smaller ones. ``num_bytes``: what it takes on the disk. ``what``: what it holds, in words;
    empty where that is not known. ``in_use``: whether a process uses it now.
    """

    kind: str
    folder: Path
    num_bytes: int
    last_used: datetime
    what: str
    in_use: bool


def cache_entries() -> list[CacheEntry]:
    """What the cache of this machine holds, the least recently used first.

    Raises:
        OSError: the cache cannot be read.
    """
    from ftae.engine.data.stores.entries import entries
    from ftae.engine.data.stores.folder import cache_folder

    return [_told(entry) for entry in entries(cache_folder())]


def clean_cache(*, older_than_days: float = 0.0, to_gb: float = 0.0) -> list[CacheEntry]:
    """Remove what no process uses, the least recently used first.

    Args:
        older_than_days: only what was not used for so many days.
        to_gb: only until the cache takes no more than so many 1e9 bytes.

    Returns:
        What was removed.

    Raises:
        OSError: the cache cannot be read.
    """
    from ftae.engine.data.stores.entries import clean
    from ftae.engine.data.stores.folder import cache_folder

    return [_told(entry) for entry in clean(cache_folder(), unused_days=older_than_days, to_bytes=to_gb * 1e9)]


def _told(entry: "Entry") -> CacheEntry:
    used = datetime.fromtimestamp(entry.last_used).astimezone()
    return CacheEntry(entry.kind, entry.folder, entry.num_bytes, used, entry.what, entry.in_use)
