"""Labels and groups from ``metadata.csv`` and ``metadata.jsonl`` beside images."""

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import folder_spec, load, save_noise

from ftae.engine.data.image_folder import folder_part
from ftae.errors import FtaeError

pytestmark = pytest.mark.usefixtures("cache")

ROWS = [
    {"file_name": f"{'left' if i % 2 else 'right'}/{i}.png", "kind": "a" if i < 4 else "b", "patient": f"Doe {i % 4}"}
    for i in range(8)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, row in enumerate(ROWS):
        save_noise(tmp_path / "images" / row["file_name"], seed=i, side=16)
    return tmp_path / "images"


def write_csv(folder: Path, rows: list[dict[str, Any]], columns: str = "file_name,kind,patient") -> None:
    lines = [",".join(str(row.get(column, "")) for column in columns.split(",")) for row in rows]
    (folder / "metadata.csv").write_text("\n".join(["\ufeff" + columns, *lines]), encoding="utf-8")


def write_json(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("write", [write_csv, write_json])
def test_labels_and_groups_are_those_of_the_columns(folder: Path, write: Any) -> None:
    write(folder, ROWS)
    data = load(folder_spec(folder, label_column="kind", groups={"column": "patient"}))
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.val)) == (6, 2)
    assert data.val.groups is not None
    assert len(set(data.val.groups)) == 1
    assert sorted([*data.train.labels, *data.val.labels]) == [0] * 4 + [1] * 4  # type: ignore[misc]
    assert not any("Doe" in note for note in data.notes)


def test_another_column_is_another_dataset(folder: Path) -> None:
    write_csv(folder, ROWS)
    both = [load(folder_spec(folder, label_column=column)) for column in ("kind", "patient")]
    assert len({data.fingerprint for data in both}) == 2
    assert both[1].class_names == ("Doe 0", "Doe 1", "Doe 2", "Doe 3")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (ROWS[1:], "file_name,kind", r"it has no row for 1 of 7 files \(right/0.png\)"),
        ([*ROWS, ROWS[0]], "file_name,kind", r"it names twice 1 of 9 files \(right/0.png\)"),
        ([*ROWS, {"file_name": "x.png"}], "file_name,kind", r"names no image of the folder in 1 of 9 files \(x.png\)"),
        (ROWS, "file_name,patient", r"has no column kind; its columns are patient"),
        (ROWS, "kind,patient", r"must have the column file_name in every row; 8 of 8 lack it"),
        ([{**ROWS[0], "kind": " "}, *ROWS[1:]], "file_name,kind", r"kind of .* is empty for 1 of 8 files"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, rows: list[dict[str, Any]], columns: str, message: str) -> None:
    write_csv(folder, rows, columns)
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(folder, label_column="kind"))


def test_damaged_or_missing_metadata_is_one_message(folder: Path) -> None:
    spec = folder_spec(folder, label_column="kind")
    with pytest.raises(FtaeError, match=r"data.label_column needs metadata.csv or metadata.jsonl in .*images"):
        load(spec)
    for content in (b"[1, 2]", b"{", b"\xff\xfe"):
        (folder / "metadata.jsonl").write_bytes(content)
        with pytest.raises(FtaeError, match=r"cannot read .*metadata.jsonl"):
            load(spec)


def test_other_folders_need_no_metadata(folder: Path) -> None:
    spec = folder_spec(folder, label_column="kind")
    assert folder_part(str(folder), spec).listed().class_names is None
    write_csv(folder, ROWS)
    assert folder_part(str(folder), spec).listed().class_names == ("a", "b")
