"""Which files of a folder are images, and what is said of the others."""

import os
from pathlib import Path

import pytest
from PIL import Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.files import dicom, nifti
from ftae.engine.data.files.listing import SUFFIXES, list_images
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.folders import ImageFolder


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (200, 10, 10)).save(path)
    return path


def written() -> list[str]:
    """The suffixes of which this Pillow can make an RGB file."""
    Image.init()
    return [suffix for suffix in SUFFIXES if Image.registered_extensions().get(suffix) in Image.SAVE]


def test_pillow_reads_every_suffix() -> None:
    Image.init()
    kinds = Image.registered_extensions()
    own = {kinds.get(suffix) for suffix in SUFFIXES if suffix not in (*dicom.SUFFIXES, *nifti.SUFFIXES)}
    assert own <= {*Image.OPEN, "MPO"}  # those begin as JPEG
    assert {".gif", ".jfif", ".jpe", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".webp", ".bmp", ".tif"} <= {*written()}


@pytest.mark.parametrize("suffix", written())
def test_pictures_of_any_suffix_are_used(suffix: str, tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / f"{i}{suffix.upper() if i else suffix}")
    data = load_dataset(ImageFolder(source="image_folder", train=str(tmp_path), resolution=8, color="grey"))
    assert len(data.train) + len(data.val) == 2
    assert data.skipped == ()


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for i in range(12):
        (tmp_path / f"{i}.HEIC").touch()
    for name in ("a.tar.gz", "scan", "a.txt", "labels.csv", "a.json"):
        (tmp_path / name).touch()
    files = list_images(tmp_path)
    assert files.names == ("a.png",)
    assert files.notes == ("14 files of other kinds left out: .heic 12, .gz 1, without suffix 1",)


@pytest.mark.parametrize(
    "name", ["@eaDir/x.jpg", "__MACOSX/x.jpg", ".AppleDouble/x.jpg", "._i.png", ".hidden.png", "Thumbs.db"]
)
def test_what_systems_put_beside_images_is_left_out_with_a_word(name: str, tmp_path: Path) -> None:
    for place in ("cat", "dog"):
        save(tmp_path / place / "i.png")
    path = tmp_path / "cat" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((tmp_path / "cat" / "i.png").read_bytes())
    files = list_images(tmp_path)
    assert files.names == ("cat/i.png", "dog/i.png")
    assert len(files.notes) == 1
    assert files.notes[0].startswith("left out as hidden or of an operating system: ")


def test_a_system_folder_beside_flat_images_is_no_class(tmp_path: Path) -> None:
    save(tmp_path / "i.png")
    save(tmp_path / "@eaDir" / "i.png" / "SYNOPHOTO_THUMB_XL.jpg")
    assert list_images(tmp_path).class_names is None


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    """A pipe would be waited for; a link leads where it leads, or nowhere."""
    elsewhere = save(tmp_path / "elsewhere" / "real.bin.png")
    folder = tmp_path / "d"
    for i in range(2):
        save(folder / f"{i}.png")
    os.mkfifo(folder / "live.png")
    (folder / "dead.png").symlink_to("/nowhere/at/all")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "linked.png").symlink_to(elsewhere)
    (folder / "dead.txt").symlink_to("/nowhere/at/all")
    (folder / "folder.png").mkdir()
    files = list_images(folder)
    assert files.names == ("0.png", "1.png", "linked.png")
    assert [entry.partition(": ")[0] for entry in files.unusable] == ["dead.png", "live.png", "loop.png", "null.png"]

    data = load_dataset(ImageFolder(source="image_folder", train=str(folder), resolution=8))
    assert len(data.train) + len(data.val) == 3
    assert data.skipped == tuple(f"{folder}/{entry}" for entry in files.unusable)
    assert "4 images cannot be read and are skipped" in data.notes[0]
    assert "dead.png: a link to nothing; " in data.notes[0]


def test_a_folder_of_nothing_but_dead_links_says_so(tmp_path: Path) -> None:
    (tmp_path / "dead.png").symlink_to("/nowhere/at/all")
    with pytest.raises(FtaeError, match=r"holds no images: .*dead\.png: a link to nothing"):
        list_images(tmp_path)
