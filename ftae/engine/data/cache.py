"""Images decoded once per machine, kept as memory-mapped arrays that all processes share.

Layout below ``$FTAE_CACHE`` (default ``~/.cache/ftae``), where each folder is written under another
name by one process, which holds its lock, and renamed when complete:

    contents/<stat fingerprint>/survey.json    what a folder of images holds, and its fingerprint (``survey``)
    images/<key>/images.npy                    uint8 (N, side, side, channels)
    images/<key>/labels.npy                    int64 (N,), if there are labels
    images/<key>/factors.npy                   int64 (N, F), if the factors of variation are known
    images/<key>/about.json                    class names and skipped files
    datasets/<fingerprint>/keys.json           the keys of a dataset's arrays: training, or training and validation
    models/<key>/model.safetensors             a pretrained model as trials begin with it (``warm``)

Nothing is ever removed from it; any folder in it may be deleted while no search runs.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from ftae.engine.data.decoding import Pixels, UnreadableImage, quiet_pillow
from ftae.engine.data.listing import legible
from ftae.engine.data.sources import Labels, Source
from ftae.errors import FtaeError

logger = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when the same files would decode to other pixels

READ_AHEAD = 32  # images decoded but not yet written


@dataclass(frozen=True)
class StoredImages:
    """One cached array, read-only, with what belongs to it. ``skipped``: "name: reason"."""

    images: Pixels
    labels: Labels | None
    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...]
    factors: Labels | None = None


def digest(value: Any) -> str:
    """32 hexadecimal digits that depend on every part of a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def stored_images(key: str, shape: tuple[int, int, int], open_source: Callable[[], Source]) -> StoredImages:
    """The images cached under ``key``, decoded from ``open_source()`` if they are not there, or damaged.

    Raises:
        FtaeError: no image could be decoded, or the cache cannot be written or read.
    """
    if (stored := cached_images(key, shape)) is None:
        source = open_source()
        assert source.shape == shape
        make_once(
            cache_folder() / "images" / key,
            source.num_bytes,
            lambda partial: _write(partial, source),
            is_sound=lambda folder: cached_images(key, shape) is not None,
        )
        stored = cached_images(key, shape)
    assert stored is not None
    return stored


def cached_images(key: str, shape: tuple[int, int, int]) -> StoredImages | None:
    """The images cached under ``key``; None where they are missing, damaged, or of another shape."""
    try:
        stored = _read(cache_folder() / "images" / key)
        count = len(stored.images)
        whole = stored.images.shape == (count, *shape) and stored.images.dtype == np.uint8
        whole = whole and all(len(its) == count for its in (stored.labels, stored.factors) if its is not None)
    except (OSError, ValueError, LookupError, TypeError, EOFError, AttributeError):
        return None
    return stored if whole else None


def remember_keys(fingerprint: str, keys: list[str]) -> None:
    """Note that the dataset with this fingerprint is cached under ``keys``."""

    def write(partial: Path) -> None:
        (partial / "keys.json").write_text(json.dumps(keys))

    folder = cache_folder() / "datasets" / fingerprint
    make_once(folder, 100, write, is_sound=lambda folder: recalled_keys(fingerprint) == keys)


def recalled_keys(fingerprint: str) -> list[str] | None:
    """The keys of a dataset that this machine has cached whole; None if it has not."""
    try:
        keys = json.loads((cache_folder() / "datasets" / fingerprint / "keys.json").read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)
    return keys if known and all((cache_folder() / "images" / key).exists() for key in keys) else None


def cache_folder() -> Path:
    """``$FTAE_CACHE``, or its default."""
    return Path(os.environ.get("FTAE_CACHE") or "~/.cache/ftae").expanduser()


def make_once(
    folder: Path, num_bytes: int, write: Callable[[Path], None], is_sound: Callable[[Path], bool] = Path.exists
) -> None:
    """Have exactly one process make ``folder``, if it is not there or not sound; the others wait for it.

    ``write`` fills an empty folder, and raises FtaeError for anything that is not the cache's fault.

    Raises:
        FtaeError: the cache cannot be written.
    """
    if is_sound(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_sound(folder):
                _make(folder, num_bytes, write)
    except OSError as error:
        raise FtaeError(
            f"cannot write {num_bytes:,} bytes to the image cache {cache_folder()}: {error.strerror or error}. "
            "Make room there, or set FTAE_CACHE to a folder that has it"
        ) from error


def _make(folder: Path, num_bytes: int, write: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        if shutil.disk_usage(partial).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(partial)
        for path in partial.iterdir():
            _flush_to_disk(path)
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush_to_disk(path: Path) -> None:
    """Some disks and networks say only now that they are full; and a crash must not leave a hollow file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(folder: Path, source: Source) -> None:
    logger.info("decoding %d images (%.0f MB) into %s", len(source.names), source.num_bytes / 1e6, folder.parent)
    kept: list[int] = []
    skipped: list[str] = []
    with quiet_pillow(), (folder / "images.npy").open("wb") as file:
        _write_header(file, len(source.names), source.shape)
        for i, decoded in enumerate(_decode_all(source)):
            if isinstance(decoded, UnreadableImage):
                skipped.append(f"{source.names[i]}: {decoded}")
            else:
                assert decoded.shape == source.shape
                assert decoded.dtype == np.uint8
                file.write(np.ascontiguousarray(decoded).data)
                kept.append(i)
        if not kept:
            raise FtaeError(f"none of the {len(skipped)} images could be decoded; the first: {legible(skipped[0])}")
        _write_header(file, len(kept), source.shape)
    if source.labels is not None:
        np.save(folder / "labels.npy", source.labels[kept])
    if source.factors is not None:
        np.save(folder / "factors.npy", source.factors[kept])
    about = {"class_names": source.class_names, "skipped": sorted(skipped)}
    (folder / "about.json").write_text(json.dumps(about))


def _decode_all(source: Source) -> Iterator[Pixels | UnreadableImage]:
    """Every image in order; Pillow and file reads let other threads run."""

    def decode(i: int) -> Pixels | UnreadableImage:
        try:
            return source.decode(i)
        except UnreadableImage as unreadable:
            return unreadable

    pending: deque[Future[Pixels | UnreadableImage]] = deque()
    with ThreadPoolExecutor() as pool:
        for i in range(len(source.names)):
            pending.append(pool.submit(decode, i))
            if len(pending) > READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write_header(file: BinaryIO, num_images: int, shape: tuple[int, int, int]) -> None:
    """At the start of the file; numpy pads it so that another number of images fits into its place."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _read(folder: Path) -> StoredImages:
    images = np.load(folder / "images.npy", mmap_mode="r")
    about = json.loads((folder / "about.json").read_text())
    labels = np.load(folder / "labels.npy") if about["class_names"] is not None else None
    factors = np.load(folder / "factors.npy") if (folder / "factors.npy").exists() else None
    for values in (labels, factors):
        if values is not None:
            values.setflags(write=False)
    class_names = None if about["class_names"] is None else tuple(about["class_names"])
    return StoredImages(images, labels, class_names, tuple(about["skipped"]), factors)
