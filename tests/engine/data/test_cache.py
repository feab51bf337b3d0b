"""A cache entry that is damaged is made again; what cannot be written or read is one message."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import load
from PIL import Image

from ftae.engine.data.stored_parts import ImagesChanged
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.sources.builtin import Digits, Shapes
from ftae.specs.finetune.sources.folders import ImageFolder

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "d"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def head(path: Path) -> None:
    os.truncate(path, 20)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00 or {whatever")


def other_json(path: Path) -> None:
    path.write_text("[1, 2]")


def an_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, images=np.zeros(3))


def smaller(path: Path) -> None:
    """Sound, but of another shape than was asked for."""
    with path.open("wb") as file:
        np.save(file, np.zeros((8, 8, 8, 3), np.uint8))


def fewer(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images/*/images.npy", cut),
        ("images/*/images.npy", head),
        ("images/*/images.npy", empty),
        ("images/*/images.npy", garbage),
        ("images/*/images.npy", an_archive),
        ("images/*/images.npy", smaller),
        ("images/*/images.npy", Path.unlink),
        ("images/*/labels.npy", empty),
        ("images/*/labels.npy", fewer),
        ("images/*/labels.npy", Path.unlink),
        ("images/*/about.json", empty),
        ("images/*/about.json", other_json),
        ("contents/*/survey.json", empty),
        ("contents/*/survey.json", other_json),
        ("contents/*/survey.json", Path.unlink),
        ("datasets/*/keys.json", empty),
        ("datasets/*/keys.json", garbage),
        ("datasets/*/keys.json", Path.unlink),
    ],
)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_damaged_entry_is_made_again(
    name: str, damage: Callable[[Path], None], pinned: bool, folder: Path, cache: Path
) -> None:
    spec = ImageFolder(source="image_folder", train=str(folder), resolution=16, val=0.25)
    sound = load(spec)
    before = np.array(sound.train.images), np.array(sound.train.labels)
    (file,) = cache.glob(name)
    damage(file)
    again = load(spec.model_copy(update={"fingerprint": sound.fingerprint if pinned else None}))
    assert (again.train.images == before[0]).all()
    assert again.train.labels is not None
    assert (again.train.labels == before[1]).all()
    assert again.fingerprint == sound.fingerprint
    assert list(cache.glob("*/*.partial")) == []


@pytest.mark.parametrize("spec", [Digits(source="digits", resolution=8), Shapes(source="shapes", resolution=16)])
def test_damaged_entries_of_built_in_images_are_made_again(spec: AnyData, cache: Path) -> None:
    first = np.array(load(spec).train.images)
    for file in cache.glob("images/*/*.npy"):
        cut(file)
    assert (load(spec).train.images == first).all()


def test_a_damaged_entry_whose_files_have_changed_is_not_made_of_others(folder: Path, cache: Path) -> None:
    spec = ImageFolder(source="image_folder", train=str(folder), resolution=16)
    pinned = spec.model_copy(update={"fingerprint": load(spec).fingerprint})
    (file,) = cache.glob("images/*/images.npy")
    cut(file)
    (folder / "a" / "0.png").unlink()
    with pytest.raises(ImagesChanged, match=r"are not those of data\.fingerprint"):
        load(pinned)
    shutil.rmtree(folder)
    with pytest.raises(FtaeError, match="there is no image folder"):
        load(pinned)


@pytest.mark.parametrize("blocked", ["", "images", "contents", "datasets"])
def test_a_cache_that_cannot_be_written_is_one_message(blocked: str, folder: Path, cache: Path) -> None:
    """Whatever the system says; here a file lies where a folder is needed."""
    cache.parent.mkdir(exist_ok=True)
    if blocked:
        cache.mkdir()
    (cache / blocked).write_text("occupied")
    with pytest.raises(FtaeError, match=r"cannot write .* to the image cache .*cache: .*set FTAE_CACHE") as told:
        load(ImageFolder(source="image_folder", train=str(folder), resolution=16))
    assert "\n" not in str(told.value)
