"""The source of arrays: samples of a file, normalised by what the training samples are like."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ftae.engine.data.checks import (
    check_anomalies_found,
    check_anomaly_classes,
    check_enough_to_split,
    check_labelled_fraction,
    check_not_empty,
    check_val_classes,
)
from ftae.engine.data.files.arrays import Raw, as_sample, is_column, open_array, read_column
from ftae.engine.data.files.decoding import Array, stored_shape, stored_type
from ftae.engine.data.files.listing import file_stamp
from ftae.engine.data.source_base import (
    Indices,
    Labels,
    ListedImages,
    Listing,
    Part,
    Source,
    Values,
    num_held_out,
    shuffled,
)
from ftae.engine.data.stores.folder import cache_folder, digest, make_once
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.wording import count

ARRAYS_VERSION = 1  # raise it when the same file would give other samples
SIGMAS = 4.0  # standard deviations, or interquartile ranges, on either side
PERCENTILES = (0.5, 99.5)
MOST_MEASURED = 10_000  # samples whose median and percentiles are taken
CHUNK = 2**24  # values that are checked at a time


@dataclass(frozen=True)
class Rows:
    """The samples of one file that are one part, in the order in which they are stored. ``classes``: those of all."""

    file: str
    values: Raw
    numbers: Indices
    classes: Raw | None

    @property
    def names(self) -> list[str]:
        return [f"row-{number}" for number in self.numbers]

    def class_names(self) -> tuple[str, ...]:
        return () if self.classes is None else tuple(sorted(set(self.classes[self.numbers])))

    def normal(self, anomalies: Sequence[str]) -> Indices:
        """The numbers of those that are of no anomaly."""
        if self.classes is None or not anomalies:
            return self.numbers
        return self.numbers[~np.isin(self.classes[self.numbers], list(anomalies))]


class ArraysSource(Source[Arrays]):
    """``data.train``, and ``data.val`` where it names a file; groups divide one file into two parts."""

    @property
    def folders(self) -> tuple[str, ...]:
        spec = self.spec
        return (spec.train, *([spec.val] if isinstance(spec.val, str) else [spec.train] if spec.groups else []))

    @property
    def location(self) -> str:
        return self.spec.train

    @cached_property
    def _rows(self) -> tuple[Rows, ...]:
        spec = self.spec
        files = [read_rows(file, spec) for file in dict.fromkeys(self.folders)]
        if not spec.groups:
            return tuple(files)
        (rows,) = files
        groups = _texts(_checked_column(spec.train, spec.groups, len(rows.values)))
        held_out = np.isin(groups[rows.numbers], _held_out(groups, self._share()))
        return tuple(Rows(rows.file, rows.values, rows.numbers[side], rows.classes) for side in (~held_out, held_out))

    def _share(self) -> float:
        assert isinstance(self.spec.val, float)
        return self.spec.val

    def class_names(self) -> tuple[str, ...] | None:
        return self._rows[0].class_names() or None

    def num_images(self) -> tuple[int, ...]:
        return tuple(len(rows.numbers) for rows in self._rows)

    def check_listed(self) -> Listing:
        spec, rows = self.spec, self._rows
        normal = [part.normal(spec.anomaly_classes) for part in rows]
        check_anomaly_classes(spec, sorted({name for part in rows for name in part.class_names()}))
        if len(rows) == 2:
            for leaf, file, numbers in zip(("data.train", "data.val"), self.folders, normal, strict=True):
                check_not_empty(leaf, file, len(numbers))
            check_val_classes(self.folders[1], *(part.class_names() for part in rows))
            check_anomalies_found(spec, len(rows[1].numbers) - len(normal[1]))
            num_val = len(rows[1].numbers)
        else:
            assert not isinstance(spec.val, str)
            check_enough_to_split(len(normal[0]), spec.val)
            num_val = len(rows[0].numbers) - len(normal[0]) + num_held_out(len(normal[0]), spec.val)
        check_labelled_fraction(spec, rows[0].classes is not None)
        names = [name for name in rows[0].class_names() if name not in spec.anomaly_classes]
        return Listing(tuple(names), num_val, rows[-1].classes is not None)

    def parts(self) -> tuple[Part, ...]:
        spec, first = self.spec, self._rows[0]
        training = first.normal(spec.anomaly_classes)
        if len(self._rows) == 1:
            assert not isinstance(spec.val, str)
            training = training[: len(training) - num_held_out(len(training), spec.val)]
        scale = _cached_scale(first, np.sort(training), spec)
        return tuple(part_of(rows, scale, spec) for rows in self._rows)


def part_of(rows: Rows, scale: Values, spec: Arrays) -> Part:
    """The samples of ``rows``, normalised by ``scale`` (see ``ImageSet``).

    Raises:
        FtaeError: a sample has a value that is no finite number.
    """
    _check_finite(rows, spec)
    labels, names = _labels(rows)

    def listed() -> ListedImages:
        return ListedImages(
            rows.names,
            stored_shape(spec),
            lambda i: normalised(rows.values[rows.numbers[i]][None], scale, spec)[0],
            labels,
            names,
            kind=stored_type(spec),
            levels=None,
            scale=scale,
        )

    classes = None if rows.classes is None else digest(rows.classes.tolist())
    content = [ARRAYS_VERSION, *_content(rows.file, spec), digest(rows.numbers.tolist()), classes]
    return Part(content, listed, pixel_key=["scale", *scale.ravel().tolist()])


def file_part(file: str, scale: Values, spec: Arrays) -> Part:
    """All samples of another file that is like that of ``spec``, in the order of a run that has it as ``data.val``.

    Raises as ``part_of`` and ``read_rows``.
    """
    labels = spec.labels if is_column(spec.labels, file) else None
    alone = spec.model_copy(update={"train": file, "labels": labels, "groups": None})
    return part_of(read_rows(file, alone), scale, alone)


def normalised(values: Raw, scale: Values, spec: Arrays) -> Array:
    """Samples (N, ...) as in the file as float32 (N, H, W, channels): ``scale`` becomes 0 and 1, the rest is linear."""
    low, high = scale
    unit: Array = ((as_sample(values, spec).astype(np.float64) - low) / (high - low)).astype(np.float32)
    return unit


def read_rows(file: str, spec: Arrays) -> Rows:
    """All samples of ``file``; those of the training file are in the order of ``data.split``.

    Raises:
        FtaeError: as ``open_array`` and ``read_column``.
    """
    values = open_array(file, spec)
    if not len(values):
        raise FtaeError(f"{file} has no samples")
    classes = None
    if spec.labels is not None:
        classes = _texts(_checked_column(file, spec.labels, len(values)))
    if spec.split == "time":
        return Rows(file, values, np.arange(len(values)), classes)
    order = [int(name.removeprefix("row-")) for name in shuffled([f"row-{i}" for i in range(len(values))])]
    return Rows(file, values, np.array(order, dtype=np.int64), classes)


def _checked_column(file: str, name: str, length: int) -> Raw:
    column = read_column(file, name)
    if len(column) != length:
        raise FtaeError(f"{name} has {count(len(column), 'value')}, {file} {count(length, 'sample')}")
    return column


def _texts(values: Raw) -> Raw:
    return np.array([str(value) for value in values.tolist()])


def _labels(rows: Rows) -> tuple[Labels | None, tuple[str, ...] | None]:
    if rows.classes is None:
        return None, None
    names = rows.class_names()
    return np.searchsorted(np.array(names), rows.classes[rows.numbers]).astype(np.int64), names


def _held_out(groups: Raw, share: float) -> list[str]:
    """The last groups, in the order of their hashes, that have ``share`` of the samples together; never all."""
    order = shuffled(sorted(set(groups.tolist())))
    if len(order) < 2:
        raise FtaeError(f"data.groups must have at least 2 groups to hold one out, it has {len(order)}")
    sizes = dict(zip(*np.unique(groups, return_counts=True), strict=True))
    held_out: list[str] = []
    for name in reversed(order[1:]):
        if held_out and sum(sizes[each] for each in held_out) >= share * len(groups):
            break
        held_out.append(name)
    return held_out


def _content(file: str, spec: Arrays) -> list[object]:
    """A JSON value that identifies an array; its bytes are read again only where the stamp of the file has changed."""
    path = Path(file).expanduser()
    folder = cache_folder() / "contents" / digest(["file", str(path.resolve()), *file_stamp(path)])

    def write(partial: Path) -> None:
        with path.open("rb") as data:
            (partial / "content").write_text(hashlib.file_digest(data, "blake2b").hexdigest())

    make_once(folder, 200, write)
    return [(folder / "content").read_text(), spec.layout, spec.member, spec.columns, spec.dataset]


def _check_finite(rows: Rows, spec: Arrays) -> None:
    """Refuse NaN and inf. What was found to be sound is not read again."""

    def write(partial: Path) -> None:
        step = max(1, CHUNK // max(1, rows.values[0].size))
        bad: list[int] = []
        for start in range(0, len(rows.values), step):
            part = rows.values[start : start + step]
            bad += (start + np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))).tolist()
        if bad:
            raise FtaeError(
                f"{rows.file}: {count(len(bad), 'sample')} of {len(rows.values)} with NaN or inf, the first is row "
                f"{bad[0]} (counted from 0); remove or fill them"
            )

    make_once(cache_folder() / "levels" / digest(["finite", *_content(rows.file, spec)]), 0, write)


# ------------------------------------------------------------------------------------------- the scale


def _cached_scale(rows: Rows, training: Indices, spec: Arrays) -> Values:
    """The scale of the training samples, measured once."""
    if isinstance(spec.normalise, tuple):
        shape = (1, spec.decoded_size[1], 1) if spec.layout == "d" else (1, 1, spec.channels)
        return np.stack([np.full(shape, end) for end in spec.normalise])
    _check_finite(rows, spec)
    key = digest([ARRAYS_VERSION, *_content(rows.file, spec), spec.normalise, digest(training.tolist())])

    def write(partial: Path) -> None:
        low, high = _ends(rows.values, training, spec)
        flat = ~(high > low)  # what never varies becomes the middle
        np.save(partial / "scale.npy", np.stack([np.where(flat, low - 0.5, low), np.where(flat, high + 0.5, high)]))

    make_once(cache_folder() / "levels" / key, 200, write)
    scale: Values = np.load(cache_folder() / "levels" / key / "scale.npy")
    return scale


def _ends(values: Raw, training: Indices, spec: Arrays) -> tuple[Values, Values]:
    """What becomes 0 and 1 for each channel or feature, each (1, 1, channels), or (1, W, 1) of vectors."""
    axes = (0, 1) if spec.layout == "d" else (0, 1, 2)
    if spec.normalise in ("robust", "percentile"):
        some = as_sample(values[training[:: -(-len(training) // MOST_MEASURED)]], spec).astype(np.float64)
        percents = PERCENTILES if spec.normalise == "percentile" else (25, 50, 75)
        low, *middle, high = np.percentile(some, percents, axis=axes, keepdims=True)[:, 0]
        spread = SIGMAS * (high - low)
        return (middle[0] - spread, middle[0] + spread) if middle else (low, high)
    step = max(1, CHUNK // max(1, values[0].size))
    chunks = [training[start : start + step] for start in range(0, len(training), step)]
    moments = [_moments(as_sample(values[chunk], spec).astype(np.float64), axes) for chunk in chunks]
    low, high, means, variances = (np.stack(each) for each in zip(*moments, strict=True))
    if spec.normalise == "minmax":
        return low.min(axis=0), high.max(axis=0)
    weights = np.array([len(chunk) for chunk in chunks]) / len(training)
    mean = np.tensordot(weights, means, axes=1)
    spread = SIGMAS * np.sqrt(np.tensordot(weights, variances + (means - mean) ** 2, axes=1))
    return mean - spread, mean + spread


def _moments(samples: Values, axes: tuple[int, ...]) -> list[Values]:
    measures = (np.min, np.max, np.mean, np.var)
    return [measure(samples, axis=axes, keepdims=True)[0] for measure in measures]
