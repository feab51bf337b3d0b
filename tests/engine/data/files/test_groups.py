"""Images that belong together stay on one side of the split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import run_spec
from image_files import folder_spec, load, save_noise
from pydantic import ValidationError

from ftae.engine.data.dataset import check_listed
from ftae.engine.data.files.decoding import decode_image
from ftae.engine.data.files.groups import split_groups
from ftae.errors import FtaeError
from ftae.inference.pictures import validation_names
from ftae.specs.finetune.sources.folders import Archive

pytestmark = pytest.mark.usefixtures("cache")

PATIENTS = {"path": "(p[0-9]+)-"}


def patients(root: Path, *, first: int = 0, number: int = 8, images: int = 3) -> Path:
    for patient in range(first, first + number):
        for i in range(images):
            save_noise(root / f"p{patient}-{i}.png", seed=100 * patient + i, side=16)
    return root


def held_out_patients(spec: Any) -> set[str]:
    load(spec)
    names = validation_names(spec)
    assert names is not None
    return {name.split("-")[0] for name in names.images}


def test_whole_groups_are_held_out_near_to_the_wanted_number(tmp_path: Path) -> None:
    spec = folder_spec(patients(tmp_path / "images"), val=7, groups=PATIENTS)
    data = load(spec)
    assert (len(data.train), len(data.val)) == (18, 6)
    assert data.train.groups is not None
    assert data.val.groups is not None
    assert not set(data.train.groups) & set(data.val.groups)
    assert len(held_out_patients(spec)) == 2
    assert data.notes == ("data.groups: 18 images of 6 groups are trained on, 6 images of 2 groups held out",)
    assert tuple(check_listed(run_spec(data=spec))) == data.notes


def test_groups_keep_their_side_when_others_come(tmp_path: Path) -> None:
    root = patients(tmp_path / "images")
    before = held_out_patients(folder_spec(root, val=0.25, groups=PATIENTS))
    patients(root, first=8, number=2)
    after = held_out_patients(folder_spec(root, val=0.25, groups=PATIENTS))
    assert len(before & after) == 2


def test_pixels_and_names_of_validation_images_agree(tmp_path: Path) -> None:
    root = patients(tmp_path / "images")
    spec = folder_spec(root, groups=PATIENTS)
    data, names = load(spec), validation_names(spec)
    assert names is not None
    for name, pixels in zip(names.images, data.val.images, strict=True):
        np.testing.assert_array_equal(decode_image((root / name).read_bytes(), spec), pixels)


def test_groups_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = patients(tmp_path / "images")
    groupings: list[dict[str, Any]] = [{}, {"groups": PATIENTS}, {"groups": {"path": "-([0-9])"}}]
    fingerprints = {load(folder_spec(root, **groups)).fingerprint for groups in groupings}
    assert len(fingerprints) == 3


def test_a_group_in_both_folders_is_refused_by_file_names(tmp_path: Path) -> None:
    train, val = patients(tmp_path / "train"), patients(tmp_path / "val", first=7, number=2)
    with pytest.raises(FtaeError, match=r"1 group of .*val also has images in .*train: p7-0.png and p7-0.png"):
        load(folder_spec(train, val=str(val), groups=PATIENTS))


def test_files_without_a_group_are_refused(tmp_path: Path) -> None:
    root = patients(tmp_path / "images", number=2)
    save_noise(root / "other.png", seed=1)
    with pytest.raises(FtaeError, match=r"finds no group in 1 of 7 files \(other.png\)"):
        load(folder_spec(root, groups=PATIENTS))


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=r"3 images of 1 group, which cannot be parted"):
        load(folder_spec(patients(tmp_path / "images", number=1), groups=PATIENTS))


def test_groups_with_anomalies_are_held_out_whole(tmp_path: Path) -> None:
    root = patients(tmp_path / "images" / "healthy")
    save_noise(tmp_path / "images" / "sick" / "p3-9.png", seed=5, side=16)
    spec = folder_spec(root.parent, groups=PATIENTS, anomaly_classes=("sick",), val=3)
    data = load(spec)
    assert data.anomalies is not None
    assert (len(data.train), len(data.val), len(data.anomalies)) == (21, 3, 1)
    assert held_out_patients(spec) == {"healthy/p3", "sick/p3"}


def test_the_number_held_out_is_the_nearest() -> None:
    groups = np.repeat(np.arange(4), [5, 1, 4, 2])
    train, val = split_groups(groups, (), 5)
    assert set(groups[val]) == {2, 3}
    train, val = split_groups(groups, (), 1)
    assert set(groups[val]) == {3}
    assert set(groups[train]) == {0, 1, 2}


def test_identical_images_on_both_sides_are_told(tmp_path: Path) -> None:
    root = patients(tmp_path / "images")
    spec = folder_spec(root)
    assert load(spec).notes == ()
    names = validation_names(spec)
    assert names is not None
    for i in range(20):  # copies under other names: some are trained on, others held out
        (root / f"copy-{i}.png").write_bytes((root / names.images[0]).read_bytes())
    (note,) = load(spec).notes
    assert "also in training, with the same pixels" in note
    assert "copy-" in note


def test_identical_images_in_two_folders_are_told_by_their_paths(tmp_path: Path) -> None:
    train, val = patients(tmp_path / "train"), patients(tmp_path / "val", first=7, number=2)
    (note,) = load(folder_spec(train, val=str(val))).notes
    assert note.startswith("3 validation images are also in training")
    assert f"{train}/p7-0.png and {val}/p7-0.png" in note


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "must have one of column .*, got none"),
        ({"column": "patient", "tag": "PatientID"}, "got column, tag"),
        ({"path": "p[0-9]+"}, "must have one group in parentheses"),
        ({"path": "(p"}, "must be a regular expression"),
    ],
)
def test_groups_are_said_in_one_way(groups: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        folder_spec(Path("x"), groups=groups)


def test_archives_have_no_metadata() -> None:
    for fields in ({"groups": {"column": "patient"}}, {"label_column": "kind"}):
        with pytest.raises(ValidationError, match=r"needs metadata.csv, which ftae reads in folders alone"):
            Archive(**{"train": "x.zip", "resolution": 16, **fields})
