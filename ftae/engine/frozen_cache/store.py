"""The features of frozen stages on disk: memory-mapped rows that all processes of a machine fill and share.

Layout below ``$FTAE_CACHE``; a folder is written under another name and renamed when it is complete:

    frozen_features/<key>/about.json    number of images, and the layout of each tensor
    frozen_features/<key>/filled        a byte for each image: 1 where its rows are there
    frozen_features/<key>/rows.<i>      the rows of tensor ``i``, as they lie in memory

All space of a folder is reserved when it is made: a full disk is an error then, not a signal in the middle of a write.
Where a new folder needs room, folders that no process has open are removed, the least recently used first. Any of
them may be deleted at any time.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from ftae.engine.data.stores.folder import cache_folder

ABOUT, FILLED, ROWS = "about.json", "filled", "rows.{}"


@dataclass(frozen=True)
class Layout:
    """How the feature of one image lies in memory: ``strides`` in elements, ``dtype`` by its name in torch."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout | None":
        """The layout of a batch (B, ...); None unless its images lie one behind the other, without gaps."""
        layout = cls(tuple(tensor.shape[1:]), tensor.stride()[1:], str(tensor.dtype).removeprefix("torch."))
        elements = math.prod(layout.shape)
        last = sum((size - 1) * stride for size, stride in zip(layout.shape, layout.strides, strict=True))
        is_contiguous = len(tensor) == 1 or tensor.stride(0) == elements
        return layout if is_contiguous and last == elements - 1 else None

    @property
    def num_bytes(self) -> int:
        """The size of one image."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize

    def rows(self, tensor: Tensor) -> Tensor:
        """The bytes of a batch in this layout: uint8 (B, num_bytes), on the CPU."""
        elements = math.prod(self.shape)
        return tensor.detach().cpu().as_strided((len(tensor), elements), (elements, 1)).view(torch.uint8)

    def tensor(self, rows: Tensor) -> Tensor:
        """The batch with these bytes; the inverse of ``rows``."""
        flat = rows.view(getattr(torch, self.dtype))
        return flat.as_strided((len(rows), *self.shape), (flat.shape[1], *self.strides))


class FeatureStore:
    """An open folder: one row for each image, by its position in its set, and each tensor of the features."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / ABOUT).read_text())
        self.layouts = tuple(
            Layout(tuple(layout["shape"]), tuple(layout["strides"]), layout["dtype"]) for layout in about["layouts"]
        )
        self.folder, num_images = folder, about["num_images"]
        in_use = os.open(folder / FILLED, os.O_RDONLY)
        weakref.finalize(self, os.close, in_use)
        fcntl.flock(in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held as long as this object lives
        self._turn = os.open(folder / ABOUT, os.O_RDONLY)
        weakref.finalize(self, os.close, self._turn)
        self._filled = _mapped(folder / FILLED, (num_images,))
        self._rows = [
            _mapped(folder / ROWS.format(i), (num_images, layout.num_bytes)) for i, layout in enumerate(self.layouts)
        ]
        os.utime(folder / ABOUT)  # marks the last use

    def filled(self, positions: Tensor) -> Tensor:
        """Which of these images have their rows: bool (B,)."""
        with self._in_turn():
            return self._filled[positions].bool()

    def read(self, positions: Tensor) -> list[Tensor]:
        """The rows of these images, one uint8 (B, bytes) for each tensor."""
        return [rows.index_select(0, positions) for rows in self._rows]

    def write(self, positions: Tensor, values: Sequence[Tensor]) -> None:
        """Store the rows of these images, in the form in which ``read`` returns them."""
        for rows, new in zip(self._rows, values, strict=True):
            rows.index_copy_(0, positions, new)
        with self._in_turn():
            self._filled[positions] = 1

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Lets one process at a time in: a process that then sees rows marked as filled also sees the rows.

        Without this lock another processor may see the mark before the rows.
        """
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)


def find(key: str) -> FeatureStore | None:
    """The store under ``key``; None where there is none, or it cannot be used."""
    try:
        return FeatureStore(_folder() / key)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def create(key: str, num_images: int, layouts: Sequence[Layout], budget: int) -> FeatureStore:
    """An empty store under ``key``, or the one that another process has made there in the meantime.

    Removes stores that are not in use, the least recently used first, until all of them take at most ``budget`` bytes.

    Raises:
        OSError: there is no room, or the cache cannot be written.
    """
    if not hasattr(os, "posix_fallocate"):
        raise OSError("this system cannot reserve disk space")
    sizes = {FILLED: num_images} | {ROWS.format(i): num_images * layout.num_bytes for i, layout in enumerate(layouts)}
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        existing = find(key)
        if existing is not None:
            return existing
        shutil.rmtree(folder / key, ignore_errors=True)
        _make_room(folder, sum(sizes.values()), budget)
        partial = folder / f"{key}.partial"
        partial.mkdir()
        try:
            for name, size in sizes.items():
                with (partial / name).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            about = {"num_images": num_images, "layouts": [asdict(layout) for layout in layouts]}
            (partial / ABOUT).write_text(json.dumps(about))
            partial.rename(folder / key)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return FeatureStore(folder / key)


def _folder() -> Path:
    return cache_folder() / "frozen_features"


def _make_room(folder: Path, needed: int, budget: int) -> None:
    if needed > budget:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    stores = sorted((path for path in folder.iterdir() if path.is_dir()), key=_last_used)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir() if file.name != ABOUT) for path in stores}
    for path in stores:
        if (_last_used(path) == 0.0 or needed + sum(sizes.values()) > budget) and _removed(path):
            sizes.pop(path)
    if needed + sum(sizes.values()) > budget:
        raise OSError("other runs that are in progress use up finetune.frozen_cache_gb")


def _removed(path: Path) -> bool:
    """Remove a store, unless a process has it open."""
    with suppress(FileNotFoundError), (path / FILLED).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    return True


def _last_used(path: Path) -> float:
    """Seconds since the epoch; 0 for a folder that a killed process left unfinished."""
    about = path / ABOUT
    return about.stat().st_mtime if about.exists() and path.suffix != ".partial" else 0.0


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    if path.stat().st_size != math.prod(shape):
        raise ValueError(f"{path} does not have the size that it was made with")
    try:
        return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be mapped: {error}") from error
