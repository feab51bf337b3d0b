"""Datasets are decoded once, known by their fingerprint, and stay as they were pinned."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_files import BLUE, GREEN, all_pixels, folder_spec, load, save

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.stored_parts import ImagesChanged
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.builtin import Digits

pytestmark = pytest.mark.usefixtures("cache")


def cached_arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/images.npy"))


def test_loaded_once_per_process(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    spec = folder_spec(tmp_path / "d")
    assert load_dataset(spec) is load_dataset(folder_spec(tmp_path / "d"))


def times(cache: Path) -> dict[Path, int]:
    """When each file was written; the time of ``about.json`` is that of the last use."""
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.name != "about.json"}


def test_second_load_decodes_nothing(tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    first = load(folder_spec(tmp_path / "d"))
    before = times(cache)
    second = load(folder_spec(tmp_path / "d"))
    assert times(cache) == before
    assert second.fingerprint == first.fingerprint
    assert (second.train.images == first.train.images).all()


def test_touching_or_moving_keeps_the_fingerprint(tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    first = load(folder_spec(tmp_path / "d")).fingerprint
    os.utime(tmp_path / "d" / "1.png", ns=(1, 1))
    assert load(folder_spec(tmp_path / "d")).fingerprint == first
    (tmp_path / "d").rename(tmp_path / "moved")
    assert load(folder_spec(tmp_path / "moved")).fingerprint == first
    assert len(cached_arrays(cache)) == 1


def test_changed_content_changes_the_fingerprint_and_the_pixels(tmp_path: Path) -> None:
    """Same size and same mtime, as after an unpacked archive or `cp -p`."""
    for i in range(3):
        save(tmp_path / "d" / f"{i}.bmp", (i, 0, 0))
    path = tmp_path / "d" / "1.bmp"
    first = load(folder_spec(tmp_path / "d"))
    stat = path.stat()
    save(path, (200, 0, 0))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert path.stat().st_mtime_ns == stat.st_mtime_ns

    second = load(folder_spec(tmp_path / "d"))
    assert second.fingerprint != first.fingerprint
    assert all_pixels(second)[:, 0, 0, 0].tolist() == [0, 2, 200]


def test_renaming_changes_the_fingerprint(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / "cat" / f"{i}.png")
    first = load(folder_spec(tmp_path / "d")).fingerprint
    (tmp_path / "d" / "cat").rename(tmp_path / "d" / "dog")
    assert load(folder_spec(tmp_path / "d")).fingerprint != first


def test_fingerprint_depends_on_what_changes_pixels_only(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "d" / f"{i}.png")
    first = load(folder_spec(tmp_path / "d")).fingerprint
    assert load(folder_spec(tmp_path / "d", flip=True)).fingerprint == first
    assert load(folder_spec(tmp_path / "d", random_crop_from=20)).fingerprint != first
    assert load(folder_spec(tmp_path / "d", color="grey")).fingerprint != first


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "d" / "0.png")
    (tmp_path / "occupied").write_text("a file where the cache folder should be")
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(FtaeError, match=r"image cache .*occupied.*FTAE_CACHE"):
        load(folder_spec(tmp_path / "d"))


# -------------------------------------------------------------------------------- pinned images


def change(folder: Path, how: str) -> None:
    if how == "one changed":
        save(folder / "0.png", BLUE)
    elif how == "one came":
        save(folder / "new.png", GREEN)
    elif how == "one went":
        (folder / "0.png").unlink()
    else:
        folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("how", ["one changed", "one came", "one went", "the folder went"])
@pytest.mark.parametrize("val", ["share", "folder"])
def test_pinned_images_stay_what_they_were_on_a_machine_that_has_them(val: str, how: str, tmp_path: Path) -> None:
    for i in range(4):
        for name in ("train", "val"):
            save(tmp_path / name / f"{i}.png", (i * 60, len(name), 0))
    fields = {"val": 0.25 if val == "share" else str(tmp_path / "val")}
    before = load(folder_spec(tmp_path / "train", **fields))
    change(tmp_path / ("train" if val == "share" else "val"), how)
    pinned = load(folder_spec(tmp_path / "train", **fields, fingerprint=before.fingerprint))
    assert pinned.fingerprint == before.fingerprint
    assert (all_pixels(pinned) == all_pixels(before)).all()


@pytest.mark.parametrize("how", ["one changed", "one came", "one went"])
def test_pinned_images_that_no_machine_has_any_more_are_refused(
    how: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    pinned = folder_spec(tmp_path / "d", fingerprint=load(folder_spec(tmp_path / "d")).fingerprint)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
    assert load(pinned).fingerprint == pinned.fingerprint
    change(tmp_path / "d", how)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "a third"))
    with pytest.raises(ImagesChanged, match=r"the images of .*/d are not those of data.fingerprint .*Restore them"):
        load(pinned)
    (cache / "datasets" / str(pinned.fingerprint) / "keys.json").unlink()
    monkeypatch.setenv("FTAE_CACHE", str(cache))
    with pytest.raises(ImagesChanged):
        load(pinned)


def test_pinned_images_whose_copy_was_deleted_are_decoded_again(tmp_path: Path, cache: Path) -> None:
    for i in range(4):
        save(tmp_path / "d" / f"{i}.png", (i, 0, 0))
    pinned = folder_spec(tmp_path / "d", fingerprint=load(folder_spec(tmp_path / "d")).fingerprint)
    shutil.rmtree(cache / "images")
    assert len(load(pinned).train) == 3
    with pytest.raises(ImagesChanged, match=r"the images of digits are not those"):
        load(Digits(source="digits", resolution=16, fingerprint="x"))


def test_what_version_1_noted_of_a_dataset_is_understood(tmp_path: Path, cache: Path) -> None:
    """It noted one key for each array, and stored images of anomalies behind the others, under a key of their own."""
    for i in range(8):
        save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    spec = folder_spec(tmp_path / "d", anomaly_classes=("a",))
    before = load(spec)
    pixels = [np.array(images.images) for images in (before.train, before.val, before.anomalies) if images is not None]
    (keys,) = cache.glob("datasets/*/keys.json")
    ((images, of_fingerprint),) = json.loads(keys.read_text())
    folder = cache / "images" / images
    order = np.argsort(np.load(folder / "labels.npy") == 0, kind="stable")
    for name in ("images", "labels"):
        values = np.load(folder / f"{name}.npy")[order]
        np.save(folder / f"{name}.npy", values if name == "images" else 1 - values)
    (folder / "about.json").write_text(json.dumps({"class_names": ["b", "a"], "skipped": []}))
    folder.rename(folder.with_name(of_fingerprint))
    keys.write_text(json.dumps([of_fingerprint]))
    shutil.rmtree(tmp_path / "d")

    again = load(spec.model_copy(update={"fingerprint": before.fingerprint}))
    for old, images in zip(pixels, (again.train, again.val, again.anomalies), strict=True):
        assert images is not None
        assert (images.images == old).all()
    assert again.train.labels is not None
    assert (again.train.labels == before.train.labels).all()
    assert again.class_names == before.class_names == ("b",)
