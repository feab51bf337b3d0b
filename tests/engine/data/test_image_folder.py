"""What a folder of images becomes: classes, skipped files, the split."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import BLUE, GREEN, RED, all_pixels, folder_spec, load, save, save_noise

from ftae.errors import FtaeError

pytestmark = pytest.mark.usefixtures("cache")


def cached_arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/images.npy"))


def test_folder_without_classes_is_found_whatever_the_suffix(tmp_path: Path) -> None:
    for i, name in enumerate(["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.tif", "g.TIFF", "h.Jpg"]):
        save(tmp_path / "d" / name, (i * 30, 0, 0))
    (tmp_path / "d" / "notes.txt").write_text("no image")
    save(tmp_path / "d" / "._a.jpg")
    save(tmp_path / "d" / ".ipynb_checkpoints" / "a.jpg")

    dataset = load(folder_spec(tmp_path / "d"))

    assert dataset.train.images.shape == (6, 16, 16, 3)
    assert dataset.val.images.shape == (2, 16, 16, 3)
    assert np.allclose(all_pixels(dataset)[:, 8, 8, 0], np.arange(8) * 30, atol=2)
    assert dataset.train.labels is None
    assert dataset.val.labels is None
    assert dataset.class_names is None
    assert dataset.skipped == ()


def test_images_are_memory_mapped_and_read_only(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png")
    dataset = load(folder_spec(tmp_path / "d"))
    for image_set in (dataset.train, dataset.val):
        assert isinstance(image_set.images, np.memmap)
        assert image_set.images.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            image_set.images[0, 0, 0, 0] = 1


def test_classes_are_the_subfolders_however_deep_the_images(tmp_path: Path) -> None:
    colors = {"red": RED, "green": GREEN, "blue": BLUE}
    for name, color in colors.items():
        for i in range(4):
            save(tmp_path / "d" / name / ("deep" if i % 2 else ".") / f"{i}.png", color)
    (tmp_path / "d" / "annotations").mkdir()
    (tmp_path / "d" / "annotations" / "all.json").write_text("{}")

    dataset = load(folder_spec(tmp_path / "d"))

    assert dataset.class_names == ("blue", "green", "red")
    for image_set in (dataset.train, dataset.val):
        assert image_set.labels is not None
        assert image_set.labels.dtype == np.int64
        for pixels, label in zip(image_set.images, image_set.labels, strict=True):
            assert tuple(pixels[8, 8]) == colors[dataset.class_names[label]]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "elsewhere" / f"{i}.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "d")
    dataset = load(folder_spec(tmp_path / "d"))
    assert len(dataset.train) + len(dataset.val) == 4
    assert dataset.class_names == ("cat",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "d" / "cat" / "0.png")
    (tmp_path / "d" / "cat").chmod(0)
    try:
        with pytest.raises(FtaeError, match=r"cannot read the folder .*cat"):
            load(folder_spec(tmp_path / "d"))
    finally:
        (tmp_path / "d" / "cat").chmod(0o755)


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    assert len(load(folder_spec(Path("~/d"))).train) == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: None, r"there is no image folder .*d"),
        (lambda d: d.write_text("x"), r"d is a file"),
        (lambda d: (d.mkdir(), (d / "a.heic").write_text("x")), r"holds no images: .*\.jpg .*1 other file: \.heic 1"),
        (lambda d: (save(d / "a.png"), save(d / "cat" / "b.png")), r"1 image directly \(a\.png.*1 in sub-folders"),
        (
            lambda d: (d.mkdir(), (d / "a.png").write_text("x")),
            r"no image can be decoded, 1 file tried; .*: a\.png: not an image",
        ),
        (lambda d: save(d / "a.png"), r"at least 2 readable images"),
        (lambda d: (d.mkdir(), (d / "a.png").symlink_to(d / "gone")), r"no images: .*a\.png: a link to nothing"),
    ],
    ids=["missing", "file", "no images", "mixed", "all corrupt", "one image", "dangling link"],
)
def test_unusable_folders_are_refused(tmp_path: Path, cache: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "d")
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(tmp_path / "d"))
    assert cached_arrays(cache) == [] or "2 readable" in message
    assert list(cache.glob("*/*.partial")) == []


def test_damaged_images_are_skipped_and_named(tmp_path: Path) -> None:
    for i in range(6):
        save_noise(tmp_path / "d" / "cat" / f"{i}.jpg", i)
    whole = (tmp_path / "d" / "cat" / "3.jpg").read_bytes()
    (tmp_path / "d" / "cat" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d" / "cat" / "4.jpg").write_bytes(b"")

    dataset = load(folder_spec(tmp_path / "d", val=0.5))

    assert len(dataset.train) == 2
    assert len(dataset.val) == 2
    assert dataset.val.labels is not None
    assert dataset.val.labels.tolist() == [0, 0]
    truncated, empty = dataset.skipped
    assert truncated.startswith(str(tmp_path / "d" / "cat" / "3.jpg: "))
    assert "truncated" in truncated
    assert empty == str(tmp_path / "d" / "cat" / "4.jpg: not an image in a known format")
    assert load(folder_spec(tmp_path / "d", val=0.5)).skipped == dataset.skipped  # from the cache, too
    assert (dataset.train.images.std(axis=(1, 2, 3)) > 5).all()  # no hole where the damaged ones were


def test_random_crop_decodes_the_larger_side(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png", size=(64, 64))
    assert load(folder_spec(tmp_path / "d", random_crop_from=24)).train.images.shape == (1, 24, 24, 3)


# -------------------------------------------------------------------------------------------- the split


def test_share_is_held_out_once_and_always_the_same(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "d" / f"{i:02}.png", (i * 6, i, 0))
    dataset = load(folder_spec(tmp_path / "d", val=0.25))
    train, val = ({tuple(p[0, 0]) for p in s.images} for s in (dataset.train, dataset.val))
    assert len(train) == 30
    assert len(val) == 10
    assert not train & val
    numbers = dataset.val.images[:, 0, 0, 1].tolist()
    assert numbers != sorted(numbers)
    assert min(numbers) < 10

    smaller = load(folder_spec(tmp_path / "d", val=0.1))
    assert {tuple(p[0, 0]) for p in smaller.val.images} < val
    assert smaller.fingerprint != dataset.fingerprint

    save(tmp_path / "d" / "new.png", (1, 2, 3))  # no image changes sides because of a new one, but at the edge
    larger = {tuple(p[0, 0]) for p in load(folder_spec(tmp_path / "d", val=0.25)).val.images}
    assert len(larger & val) >= 9


@pytest.mark.parametrize(("val", "num_val"), [(0.001, 1), (0.999, 3)])
def test_each_side_of_the_split_keeps_an_image(tmp_path: Path, val: float, num_val: int) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png")
    dataset = load(folder_spec(tmp_path / "d", val=val))
    assert (len(dataset.train), len(dataset.val)) == (4 - num_val, num_val)


def test_val_folder_takes_the_labels_of_train(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        save(tmp_path / "train" / name / "0.png", BLUE)
    save(tmp_path / "val" / "cat" / "0.png", RED)
    save(tmp_path / "val" / "bee" / "0.png", GREEN)
    spec = folder_spec(tmp_path / "train", val=str(tmp_path / "val"))

    dataset = load(spec)

    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.val.labels is not None
    by_label = {int(label): tuple(p[0, 0]) for p, label in zip(dataset.val.images, dataset.val.labels, strict=True)}
    assert by_label == {1: GREEN, 2: RED}

    save(tmp_path / "val" / "cat" / "1.png", RED)
    assert load(spec).fingerprint != dataset.fingerprint


def test_val_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "0.png")
    save(tmp_path / "val" / "0.png")
    dataset = load(folder_spec(tmp_path / "train", val=str(tmp_path / "val")))
    assert dataset.train.labels is not None
    assert dataset.val.labels is None


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("train/cat", "val/dog", r"class folders dog, but data\.train has only cat"),
        ("train", "val/dog", r"class folders dog, but data\.train has no class folders"),
        ("train/cat", "train/cat", r"separate folders"),
        ("train/cat", "train/val/cat", r"separate folders"),
    ],
)
def test_unusable_val_folders_are_refused(tmp_path: Path, train: str, val: str, message: str) -> None:
    save(tmp_path / train / "0.png")
    save(tmp_path / val / "1.png")
    val_root = tmp_path / val if "train" in val else tmp_path / "val"
    with pytest.raises(FtaeError, match=message):
        load(folder_spec(tmp_path / "train", val=str(val_root)))


def test_missing_val_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "d" / "0.png")
    with pytest.raises(FtaeError, match=r"no image folder .*nowhere"):
        load(folder_spec(tmp_path / "d", val=str(tmp_path / "nowhere")))
