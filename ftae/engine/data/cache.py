"""Images decoded once per machine, kept as memory-mapped arrays that all processes share.

Layout below ``$FTAE_CACHE`` (default ``~/.cache/ftae``). One process, which holds the lock of a folder, writes it under
another name and renames it when it is complete:

    contents/<stat fingerprint>/survey.json    what a folder of images holds, and the fingerprint of its content
    images/<key>/images.npy                    uint8 (N, side, side, channels)
    images/<key>/labels.npy                    int64 (N,), if there are labels
    images/<key>/factors.npy                   int64 (N, F), if the factors of variation are known
    images/<key>/about.json                    class names and skipped files
    datasets/<fingerprint>/keys.json           the keys of a dataset's parts: all images, or training and validation
    models/<key>/model.safetensors             a pretrained model in the state in which trials begin with it

ftae never removes anything from it; any folder in it may be deleted while no search runs.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from ftae.engine.data.decoding import Pixels, UnreadableImage, quiet_pillow
from ftae.engine.data.listing import legible
from ftae.engine.data.source_base import Labels, ListedImages
from ftae.errors import FtaeError
from ftae.wording import count

logger = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when the same files would decode to different pixels
READ_AHEAD = 32  # images decoded but not yet written


@dataclass(frozen=True)
class StoredImages:
    """One cached array, read-only, with labels and factors. ``skipped``: undecodable files, each as "name: reason"."""

    images: Pixels
    labels: Labels | None
    class_names: tuple[str, ...] | None
    skipped: tuple[str, ...]
    factors: Labels | None = None


@dataclass(frozen=True)
class PartKeys:
    """The keys of one part of a dataset.

    ``images``: where its array is cached; depends on the pixels alone. ``fingerprint``: its contribution to the
    fingerprint of the dataset; depends on ``data.anomaly_classes``, too.
    """

    images: str
    fingerprint: str


def digest(value: Any) -> str:
    """32 hexadecimal digits that depend on every part of a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def stored_images(key: str, shape: tuple[int, int, int], list_images: Callable[[], ListedImages]) -> StoredImages:
    """The images cached under ``key``; those of ``list_images()`` are decoded if it is missing or damaged.

    Raises:
        FtaeError: no image could be decoded, or the cache cannot be written or read.
    """
    if (stored := cached_images(key, shape)) is None:
        listed = list_images()
        assert listed.shape == shape
        make_once(
            cache_folder() / "images" / key,
            listed.num_bytes,
            lambda partial: _write(partial, listed),
            is_sound=lambda folder: cached_images(key, shape) is not None,
        )
        stored = cached_images(key, shape)
    assert stored is not None
    return stored


def cached_images(key: str, shape: tuple[int, int, int]) -> StoredImages | None:
    """The images cached under ``key``; None where they are missing, damaged, or of another shape."""
    try:
        stored = _read(cache_folder() / "images" / key)
        number = len(stored.images)
        is_sound = stored.images.shape == (number, *shape) and stored.images.dtype == np.uint8
        is_sound = is_sound and all(len(a) == number for a in (stored.labels, stored.factors) if a is not None)
    except (OSError, ValueError, LookupError, TypeError, EOFError, AttributeError):
        return None
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
        return keys if keys and all((cache_folder() / "images" / part.images).exists() for part in keys) else None
    except (OSError, ValueError, TypeError):
        return None


def cache_folder() -> Path:
    """``$FTAE_CACHE``, or its default."""
    return Path(os.environ.get("FTAE_CACHE") or "~/.cache/ftae").expanduser()


def make_once(
    folder: Path, num_bytes: int, write: Callable[[Path], None], is_sound: Callable[[Path], bool] = Path.exists
) -> None:
    """Let exactly one process make ``folder`` if it is missing or not sound; the others wait.

    ``write`` fills an empty folder, and raises FtaeError for whatever is not the cache's fault. ``num_bytes``: the
    room that it needs.

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
            "Free some space there, or set FTAE_CACHE to a folder that has enough"
        ) from error


def _make(folder: Path, num_bytes: int, write: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
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
    """Some disks and networks report only now that they are full; and a crash must not leave a hollow file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(folder: Path, listed: ListedImages) -> None:
    logger.info("decoding %d images (%.0f MB) into %s", len(listed.names), listed.num_bytes / 1e6, folder.parent)
    kept: list[int] = []
    skipped: list[str] = []
    with quiet_pillow(), (folder / "images.npy").open("wb") as file:
        _write_header(file, len(listed.names), listed.shape)
        for i, decoded in enumerate(_decode_all(listed)):
            if isinstance(decoded, UnreadableImage):
                skipped.append(f"{listed.names[i]}: {decoded}")
            else:
                assert decoded.shape == listed.shape
                assert decoded.dtype == np.uint8
                file.write(np.ascontiguousarray(decoded).data)
                kept.append(i)
        if not kept:
            first = legible(skipped[0])
            raise FtaeError(f"no image can be decoded, {count(len(skipped), 'file')} tried; the first: {first}")
        _write_header(file, len(kept), listed.shape)
    if listed.labels is not None:
        np.save(folder / "labels.npy", listed.labels[kept])
    if listed.factors is not None:
        np.save(folder / "factors.npy", listed.factors[kept])
    about = {"class_names": listed.class_names, "skipped": sorted(skipped)}
    (folder / "about.json").write_text(json.dumps(about))


def _decode_all(listed: ListedImages) -> Iterator[Pixels | UnreadableImage]:
    """Every image in order; threads help, as Pillow and file reads release the interpreter."""

    def decode(i: int) -> Pixels | UnreadableImage:
        try:
            return listed.decode(i)
        except UnreadableImage as unreadable:
            return unreadable

    pending: deque[Future[Pixels | UnreadableImage]] = deque()
    with ThreadPoolExecutor() as pool:
        for i in range(len(listed.names)):
            pending.append(pool.submit(decode, i))
            if len(pending) > READ_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write_header(file: BinaryIO, num_images: int, shape: tuple[int, int, int]) -> None:
    """Write the header of the array; numpy pads it, so that it can be replaced by one for fewer images."""
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
