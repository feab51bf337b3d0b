"""Arrays in files: ``.npy``, ``.npz``, Parquet and HDF5, as samples (H, W, channels) and back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ftae.errors import FtaeError
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.reading.problems import one_of

T = TypeVar("T")
Raw = npt.NDArray[Any]
AXES = {"hwc": 3, "chw": 3, "hw": 2, "cs": 2, "d": 1}  # of a sample in the file


def open_array(file: str, spec: Arrays) -> Raw:
    """The array in ``file``, its first axis that of samples, each of ``spec.layout`` and ``spec.resolution``.

    An ``.npy`` stays on the disk; the others are read.

    Raises:
        FtaeError: the file is missing or damaged, or holds other numbers.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in _READERS:
        raise FtaeError(f"{file} must end in one of {', '.join(_READERS)}")
    values = _read(path, lambda: _READERS[path.suffix.lower()](path, spec))
    if values.dtype.kind not in "fiub":
        raise FtaeError(f"{file} must hold real numbers, it has {values.dtype}")
    if values.ndim != 1 + AXES[spec.layout]:
        raise FtaeError(
            f"{file} has the shape {values.shape}; layout {spec.layout} has {1 + AXES[spec.layout]} axes, the first "
            "that of samples"
        )
    found = as_sample(values[:1], spec).shape[1:] if len(values) else None
    if found is not None and found != (*spec.decoded_size, spec.channels):
        height, width, channels = found
        raise FtaeError(
            f"{file} has, as layout {spec.layout}, samples of resolution [{height}, {width}] with {channels} channels, "
            f"not {list(spec.decoded_size)} and {spec.channels}; nothing is resized"
        )
    return values


def read_column(file: str, name: str) -> Raw:
    """One value for each sample: an ``.npy``, or the column ``name`` of the Parquet ``file``.

    Raises:
        FtaeError: it is missing, damaged or has no single value for a sample.
    """
    is_file = Path(name).suffix.lower() == ".npy"
    path = Path(name if is_file else file).expanduser()
    values = _read(path, lambda: _npy(path) if is_file else _table(path, (name,))[name].to_numpy(zero_copy_only=False))
    missing = values.dtype.kind == "f" and bool(np.isnan(values).any())
    missing = missing or (values.dtype == object and any(value is None for value in values))
    if values.ndim != 1 or missing:
        raise FtaeError(f"{name} must have one value for each sample, it has the shape {values.shape} or misses some")
    return values


@dataclass(frozen=True)
class Found:
    """An array in a file: the settings of ``data`` that name it, its shape, and its type."""

    inside: dict[str, Any]
    shape: tuple[int, ...]
    kind: np.dtype[Any]


def arrays_in(file: str) -> list[Found]:
    """The arrays in a file, those of a Parquet file are its columns: what ``data`` may name.

    Raises:
        FtaeError: the file is missing or damaged.
    """
    path = Path(file).expanduser()
    suffix = path.suffix.lower()
    return _read(path, lambda: _FINDERS[suffix](path))


def _found_npy(path: Path) -> list[Found]:
    values = _npy(path)
    return [Found({}, values.shape, values.dtype)]


def _found_npz(path: Path) -> list[Found]:
    with np.load(path, allow_pickle=False) as members:
        return [Found({"member": name}, members[name].shape, members[name].dtype) for name in members]


def _found_parquet(path: Path) -> list[Found]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        head = next(file.iter_batches(batch_size=1)) if file.metadata.num_rows else file.schema_arrow.empty_table()
        found = []
        for name in file.schema_arrow.names:
            column = head.column(name).to_pylist()
            first = np.asarray(column[0]) if column and column[0] is not None else np.asarray("")
            found.append(Found({"columns": [name]}, (file.metadata.num_rows, *first.shape), first.dtype))
        return found


def _found_hdf5(path: Path) -> list[Found]:
    h5py = _h5py(path)
    found: list[Found] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim:
            found.append(Found({"dataset": name}, item.shape, item.dtype))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def is_column(name: str | None, file: str) -> bool:
    """Whether ``name``, of one value for each sample, is a column of the Parquet ``file``."""
    return name is not None and not name.lower().endswith(".npy") and Path(file).suffix.lower() == ".parquet"


def as_sample(values: Raw, spec: Arrays) -> Raw:
    """Samples (N, ...) of ``spec.layout`` as (N, H, W, channels)."""
    if spec.layout == "chw":
        return values.transpose(0, 2, 3, 1)
    if spec.layout == "hw":
        return values[..., None]
    if spec.layout == "cs":
        return values.transpose(0, 2, 1)[:, None]
    return values[:, None, :, None] if spec.layout == "d" else values


def as_in_file(samples: Raw, spec: Arrays) -> Raw:
    """The way back from ``as_sample``."""
    if spec.layout == "chw":
        return samples.transpose(0, 3, 1, 2)
    if spec.layout == "hw":
        return samples[..., 0]
    if spec.layout == "cs":
        return samples[:, 0].transpose(0, 2, 1)
    return samples[:, 0, :, 0] if spec.layout == "d" else samples


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError as error:
        raise FtaeError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise FtaeError(f"{path} cannot be read: {error}") from error


def _npy(path: Path) -> Raw:
    values: Raw = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def _npz(path: Path, spec: Arrays) -> Raw:
    with np.load(path, allow_pickle=False) as members:
        if spec.member not in members:
            raise FtaeError(f"data.member of {path} {one_of(list(members), str(spec.member))}")
        return np.asarray(members[str(spec.member)])


def _parquet(path: Path, spec: Arrays) -> Raw:
    import pyarrow as pa

    assert spec.columns is not None
    table = _table(path, spec.columns)
    first = table[spec.columns[0]]
    if len(spec.columns) > 1 or not (pa.types.is_list(first.type) or pa.types.is_fixed_size_list(first.type)):
        return np.stack([table[name].to_numpy(zero_copy_only=False) for name in spec.columns], axis=1)
    lists = first.combine_chunks()
    values: Raw = lists.flatten().to_numpy(zero_copy_only=False)
    if lists.null_count or len(lists) == 0 or len(set(lists.value_lengths().to_pylist())) != 1:
        raise FtaeError(f"{path}: the lists of {spec.columns[0]} must have one length, and none may be missing")
    return values.reshape(len(lists), -1)


def _table(path: Path, columns: tuple[str, ...]) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        for name in columns:
            if name not in names:
                raise FtaeError(f"a column of {path} {one_of(names, name)}")
        return file.read(list(dict.fromkeys(columns)))


def _hdf5(path: Path, spec: Arrays) -> Raw:
    h5py = _h5py(path)
    with h5py.File(path, "r") as file:
        found = file.get(spec.dataset)
        if not isinstance(found, h5py.Dataset):
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            raise FtaeError(f"data.dataset of {path} {one_of(names, str(spec.dataset))}")
        return np.asarray(found)


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise FtaeError(f"{path} needs the package h5py: pip install 'ftae[hdf5]'") from error
    return h5py


_READERS: dict[str, Callable[[Path, Arrays], Raw]] = {
    ".npy": lambda path, spec: _npy(path),
    ".npz": _npz,
    ".parquet": _parquet,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}

_FINDERS: dict[str, Callable[[Path], list[Found]]] = {
    ".npy": _found_npy,
    ".npz": _found_npz,
    ".parquet": _found_parquet,
    ".h5": _found_hdf5,
    ".hdf5": _found_hdf5,
}
