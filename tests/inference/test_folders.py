"""A model's images of a folder: under which names, of which files, and what is said of the others."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from untrained_models import untrained

from ftae.errors import FtaeError
from ftae.inference.folders import run_folder
from ftae.inference.model import TunedModel
from ftae.inference.pictures import pixels_of, prepare_folder, read_named_image
from ftae.inference.written import file_names

Files = dict[str, bytes]


def test_every_image_comes_back_under_its_name(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "below" / "out"
    assert run_folder(model, pictures, out, overwrite=False, notify=said.append) == 12
    names = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    whole = {str(p.relative_to(pictures)) for p in pictures.rglob("*.png") if "broken" not in p.name}
    assert names == whole | {"sheet.png"}
    assert ["broken.png is skipped: not an image" in line for line in said] == [True]
    for name in whole:
        expected = pixels_of(model.run(read_named_image(model, pictures / name, print)))[0, :, :, 0].astype(int)
        assert np.abs(np.asarray(Image.open(out / name)).astype(int) - expected).max() <= 1
    assert Image.open(out / "sheet.png").size == (4 * (2 * 96 + 2) - 2, 3 * (96 + 2) - 2)


def test_no_input_is_overwritten(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(pictures, source)
    before = {path: path.read_bytes() for path in source.rglob("*.png")}
    for out in (source, source / "3", source / "new", tmp_path, tmp_path / "in" / ".." / "in"):
        with pytest.raises(FtaeError, match="must be apart from"):
            run_folder(model, source, out, overwrite=True, notify=lambda line: None)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FtaeError, match=r"is not empty; choose another folder, or use --overwrite"):
        prepare_folder(tmp_path, overwrite=False)
    prepare_folder(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(FtaeError, match="is a file; name a folder"):
        prepare_folder(tmp_path / "mine.txt", overwrite=True)


def test_no_two_images_get_one_name() -> None:
    names = ["a/x.jpg", "a/x.png", "b.jpg", "sheet.webp"]
    assert file_names(names, taken=["sheet.png"]) == {
        "a/x.jpg": "a/x.jpg.png",
        "a/x.png": "a/x.png.png",
        "b.jpg": "b.png",
        "sheet.webp": "sheet.webp.png",
    }


@pytest.mark.parametrize(
    "names",
    [
        ["x.jpg", "x.png", "x.jpg.png", "x.jpg.webp"],
        ["cat/a.jpg", "cat/a.png/b.jpg"],  # a folder of images may be named like one
        ["sheet.png.jpg", "sheet.jpg", "sheet.png"],
        ["a.b/c.tif", "a.b/c", "a.b/c.gif"],
        ["new\nline.png", "gr\udcfcn.png", "gr\udcfcn.gif"],
        ["1.2.840.77", "1.2.840.78", "1.2.840"],  # DICOM files, named by a UID
        ["a.png", "./a.png", "b/./c.png", "b//c.png", ".//a.png.png"],  # in Parquet
    ],
)
def test_written_names_are_apart_and_below_the_folder(names: list[str]) -> None:
    written = file_names(names, taken=["sheet.png"])
    assert list(written) == names
    paths = [Path(png) for png in written.values()]
    assert len({*paths, Path("sheet.png")}) == len(names) + 1
    assert not {*paths} & {parent for path in paths for parent in path.parents}
    assert all(path.suffix == ".png" and not path.is_absolute() and ".." not in path.parts for path in paths)


def _tar(path: Path, files: Files) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _zip(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def _parquet(path: Path, files: Files) -> None:
    rows = [{"bytes": data, "path": name} for name, data in files.items()]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=2)


PACKED = {"tar": _tar, "parquet": _parquet, "zip": _zip}  # the zip is an archive


def _contents(pictures: Path) -> Files:
    """In another order than that of the names."""
    paths = sorted(pictures.rglob("*.png"), key=lambda path: path.name, reverse=True)
    return {str(path.relative_to(pictures)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", [*PACKED, "tar in a bucket"])
def test_packed_images_are_run_as_those_of_a_folder(
    kind: str, model: TunedModel, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_folder(model, pictures, tmp_path / "plain", overwrite=False, notify=lambda line: None)
    suffix, *remote = kind.split(" ", 1)
    packed = tmp_path / f"images.{suffix}"
    PACKED[suffix](packed, _contents(pictures))
    where = str(packed)
    if remote:
        bucket = request.getfixturevalue("bucket")
        boto3.client("s3").upload_file(where, bucket.removeprefix("s3://"), "test-0.tar")
        where = f"{bucket}/test-*.tar"
    said: list[str] = []
    assert run_folder(model, where, tmp_path / "out", overwrite=False, notify=said.append) == 12
    assert f"{where}/3/picture 99: broken.png is skipped: not an image in a known format" in said
    names = {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.png")}
    assert names == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")}
    for name in names - {Path("sheet.png")}:
        made, expected = (np.asarray(Image.open(tmp_path / out / name)).astype(int) for out in ("out", "plain"))
        assert np.abs(made - expected).max() <= 1


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png"])
def test_names_in_shards_lead_nowhere_else(name: str, model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    content = next(iter(_contents(pictures).values()))
    _parquet(tmp_path / "a.parquet", {"b.png": content, name: content})
    with pytest.raises(FtaeError, match="must be a path below a folder"):
        run_folder(model, tmp_path / "a.parquet", tmp_path / "out", overwrite=False, notify=print)
    assert not (tmp_path / "out").exists()


def test_labels_in_shards_are_those_that_a_model_takes(pictures: Path, tmp_path: Path) -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    picture = pictures / "7" / "picture 00: as taken.png"
    _tar(tmp_path / "a.tar", {"x.png": picture.read_bytes(), "x.cls": b"7"})
    run_folder(model, tmp_path / "a.tar", tmp_path / "out", overwrite=False, notify=print)
    image = read_named_image(model, picture, print)
    made = [pixels_of(model.run(image, torch.tensor([label])))[0, :, :, 0] for label in (0, 1)]
    written = np.asarray(Image.open(tmp_path / "out" / "x.png")).astype(int)
    assert np.abs(written - made[1]).max() <= 1 < np.abs(written - made[0]).max()


def test_a_number_after_a_dot_is_no_suffix() -> None:
    assert file_names(["1.2.840.77", "a/IM0.001.dcm"], taken=[]) == {
        "1.2.840.77": "1.2.840.77.png",
        "a/IM0.001.dcm": "a/IM0.001.png",
    }


def test_what_of_the_inputs_is_not_used_is_said(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "3" / "a.heic").touch()
    (tmp_path / "in" / "3" / "dead.png").symlink_to("/nowhere")
    said: list[str] = []
    assert run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=said.append) == 12
    assert said[:2] == [
        f"{tmp_path / 'in'}: 1 file of other kinds left out: .heic 1",
        f"{tmp_path / 'in'}/3/dead.png is skipped: a link to nothing",
    ]


def test_what_values_are_is_not_guessed_of_images_that_are_named(model: TunedModel, tmp_path: Path) -> None:
    dark = np.full((16, 16), 4095, np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(dark).save(tmp_path / "in" / "dark.png")
    with pytest.raises(FtaeError, match="looks like 12 bits"):
        run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=print)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FtaeError, match="looks like 12 bits"):
        read_named_image(model, tmp_path / "in" / "dark.png", print)


def test_a_folder_without_a_readable_image(model: TunedModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"not an image")
    with pytest.raises(FtaeError, match=r"no image of .* can be read"):
        run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=lambda line: None)


def test_a_conditional_model_takes_the_labels_of_sub_folders(pictures: Path, tmp_path: Path) -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    run_folder(model, pictures, tmp_path / "out", overwrite=False, notify=lambda line: None)
    name = "7/picture 00: as taken.png"
    image = read_named_image(model, pictures / name, print)
    made = [pixels_of(model.run(image, torch.tensor([label])))[0, :, :, 0] for label in (0, 1)]
    written = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
    assert np.abs(written - made[1]).max() <= 1 < np.abs(written - made[0]).max()
    with pytest.raises(FtaeError, match="the model is conditioned on labels: put the images"):
        run_folder(model, pictures / "3", tmp_path / "plain", overwrite=False, notify=lambda line: None)
    shutil.copytree(pictures / "3", tmp_path / "in" / "4")
    with pytest.raises(FtaeError, match="the label of an image must be one of 3, 7, got '4'"):
        run_folder(model, tmp_path / "in", tmp_path / "other", overwrite=False, notify=lambda line: None)
