"""Where shards lie: files, patterns, folders and URLs, found and opened through fsspec."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftae.engine.data.files.listing import file_stamp
from ftae.engine.data.files.threads import in_order
from ftae.errors import FtaeError
from ftae.storage.backends import CLIENTS, opened_url, os_errors
from ftae.wording import did_you_mean

_BRACES, _RANGE = re.compile(r"\{([^{}]*)\}"), re.compile(r"(\d+)\.\.(\d+)")
MOST_SHARDS = 1_000_000
REQUESTS = 32  # at once


@dataclass(frozen=True)
class Shard:
    """One file of images. ``state``: JSON values that change whenever its content may have changed."""

    path: str
    size: int
    state: tuple[str | int, ...]


@dataclass(frozen=True)
class ShardFiles:
    """Shards in the order of their names. ``fs``: fsspec's filesystem, whose paths these are."""

    where: str
    fs: Any
    shards: tuple[Shard, ...]

    @property
    def is_local(self) -> bool:
        return "://" not in self.where

    def open(self, shard: Shard) -> Any:
        """A file to read from, at any position.

        Raises:
            OSError: it cannot be read.
        """
        with os_errors():
            return self.fs.open(shard.path, "rb", block_size=2**20)

    def read(self, shard: Shard, start: int, length: int) -> bytes:
        """Some bytes of a shard, by one request.

        Raises:
            FtaeError: they cannot be read now.
        """
        try:
            with os_errors():
                data: bytes = self.fs.cat_file(shard.path, start=start, end=start + length)
        except OSError as error:
            raise cannot_read(shard, error) from error
        return data


def find_shards(where: str, suffixes: tuple[str, ...]) -> ShardFiles:
    """The shards at ``where``: a file, a folder with all below it, or patterns with ``*``, ``{000..099}``, ``{a,b}``.

    Raises:
        FtaeError: there are none, or they cannot be listed.
    """
    fs, root = _filesystem(where)
    try:
        with os_errors():
            found = {info["name"]: info for path in _expanded(root) for info in _listed(fs, path, suffixes)}
    except FileNotFoundError as error:
        raise FtaeError(f"there is no shard {error.args[-1]} ({where})") from error
    except OSError as error:
        raise FtaeError(f"cannot list the shards {where}: {error.strerror or error}") from error
    shards = tuple(in_order(_shard, (found[name] for name in sorted(found)), threads=REQUESTS))
    if not shards:
        raise FtaeError(f"{where} holds no shards: looked for {' '.join(suffixes)}")
    return ShardFiles(where, fs, shards)


def cannot_read(shard: Shard, error: OSError) -> FtaeError:
    """The error of a shard that may be readable tomorrow."""
    return FtaeError(f"cannot read the shard {shard.path}: {error.strerror or error}")


def _filesystem(where: str) -> tuple[Any, str]:
    scheme, separator, _ = where.partition("://")
    if not separator:
        import fsspec

        return fsspec.filesystem("file"), str(Path(where).expanduser().absolute())
    if scheme not in CLIENTS:
        choices = ", ".join(f"{name}://" for name in CLIENTS)
        raise FtaeError(
            f"shards must lie in a folder or an object store by one of {choices}, got {scheme}://..."
            f"{did_you_mean(scheme, CLIENTS)}"
        )
    return opened_url(where, "shards")


def _expanded(pattern: str) -> Iterator[str]:
    """What the braces of a pattern stand for."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    for choice in _choices(found[1]):
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _choices(braces: str) -> list[str]:
    numbers = _RANGE.fullmatch(braces)
    if numbers is None:
        return braces.split(",")
    first, last = map(int, numbers.groups())
    if last - first >= MOST_SHARDS:
        raise FtaeError(f"{{{braces}}} stands for {last - first + 1:,} shards, {MOST_SHARDS:,} at most can be read")
    return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]


def _listed(fs: Any, path: str, suffixes: tuple[str, ...]) -> list[dict[str, Any]]:
    if any(mark in path for mark in "*?["):
        infos = fs.glob(path, detail=True).values()
    elif path.lower().endswith(suffixes):
        infos = [fs.info(path)]
    else:
        infos = fs.find(path, detail=True).values()
    return [info for info in infos if info["type"] == "file" and info["name"].lower().endswith(suffixes)]


def _shard(info: dict[str, Any]) -> Shard:
    if "mtime" in info:  # of this machine
        return Shard(info["name"], info["size"], tuple(file_stamp(info["name"])))
    state = next((info[key] for key in ("ETag", "etag", "md5Hash", "LastModified") if info.get(key)), "")
    return Shard(info["name"], info["size"], (info["size"], str(state)))
