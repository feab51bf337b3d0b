"""``metadata.csv`` and ``metadata.jsonl`` beside images: labels, groups and whatever else is known of each file.

As for Hugging Face's folders of images: the column ``file_name`` has the path of an image below the folder.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ftae.engine.data.files.groups import group_digest, some
from ftae.engine.data.files.listing import ImageFiles, legible
from ftae.errors import FtaeError

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metadata:
    """What ``path`` says of the images of a folder, by their names."""

    path: Path
    rows: Mapping[str, Row]

    def column(self, name: str, leaf: str) -> dict[str, str]:
        """The values of a column, by the names of images; ``leaf`` is the field that wants it.

        Raises:
            FtaeError: there is no such column, or it is empty for an image.
        """
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row if key != FILE_NAME))
        if name not in columns:
            found = ", ".join(map(legible, columns)) or "none"
            raise FtaeError(f"{leaf}: {self.path} has no column {legible(name)}; its columns are {found}")
        values = {file: _text(row.get(name)) for file, row in self.rows.items()}
        if empty := [file for file, value in values.items() if not value]:
            raise FtaeError(
                f"{leaf}: the column {legible(name)} of {self.path} is empty for {some(empty, len(values))}"
            )
        return values


def metadata_path(root: Path) -> Path | None:
    """The file with the metadata of a folder; None where it has none."""
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def read_metadata(files: ImageFiles, leaf: str) -> Metadata:
    """The metadata of a folder, which has one row for each image.

    Raises:
        FtaeError: there is none, it cannot be read, names an image twice, or not the images of the folder; ``leaf`` is
            the field that wants it.
    """
    if (path := metadata_path(files.root)) is None:
        raise FtaeError(f"{leaf} needs {' or '.join(NAMES)} in {files.root}, which has neither")
    try:
        rows = list((_csv_rows if path.suffix == ".csv" else _json_rows)(path))
    except (OSError, ValueError, csv.Error) as error:
        raise FtaeError(f"{leaf}: cannot read {path}: {error}") from error
    if without := sum(not _text(row.get(FILE_NAME)) for row in rows):
        raise FtaeError(
            f"{leaf}: {path} must have the column {FILE_NAME} in every row; {without} of {len(rows)} lack it"
        )
    names = [str(PurePosixPath(_text(row[FILE_NAME]))) for row in rows]
    known = set(files.names)
    faults = {
        "names twice": [name for name, number in Counter(names).items() if number > 1],
        "names no image of the folder in": [name for name in dict.fromkeys(names) if name not in known],
        "has no row for": sorted(known.difference(names)),
    }
    if told := [f"{fault} {some(wrong, len(names))}" for fault, wrong in faults.items() if wrong]:
        raise FtaeError(f"{leaf}: {path} must have one row for each image; it {'; it '.join(told)}")
    return Metadata(path, dict(zip(names, rows, strict=True)))


def labelled_by_column(files: ImageFiles, column: str) -> ImageFiles:
    """With the values of a column as classes, whatever the folders are. Raises as ``read_metadata``."""
    leaf = "data.label_column"
    labels = read_metadata(files, leaf).column(column, leaf)
    return replace(files, labels=labels, class_names=tuple(sorted(set(labels.values()))))


def groups_by_column(files: ImageFiles, column: str) -> Mapping[str, str]:
    """The digest of the group of each image. Raises as ``read_metadata``."""
    leaf = "data.groups.column"
    return {name: group_digest(value) for name, value in read_metadata(files, leaf).column(column, leaf).items()}


def _csv_rows(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, restkey="")


def _json_rows(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f'line {number} must be an object such as {{"{FILE_NAME}": "a.png"}}')
                yield row


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
