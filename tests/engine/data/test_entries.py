"""The cache is listed and cleaned, the least recently used first, and never what a process uses."""

import gc
import json
import os
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import folder_spec, load, save_noise

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.stores import entries as module
from ftae.engine.data.stores.entries import IMAGES, ON_DEMAND, clean, entries, make_room
from ftae.specs.finetune.sources.folders import ImageFolder

pytestmark = pytest.mark.usefixtures("cache")
DAY = 86_400.0
Usage = namedtuple("Usage", "total used free")


def folder(place: Path, seed: int) -> ImageFolder:
    for i in range(8):
        save_noise(place / str(seed) / f"{i}.png", 10 * seed + i, side=64)
    return folder_spec(place / str(seed), resolution=64)


def forget() -> None:
    """As if the process that has loaded data sets had ended."""
    load_dataset.cache_clear()
    gc.collect()


def age(cache: Path, days: dict[str, float]) -> None:
    """Set how many days ago the images of each folder, by its name, were used."""
    for about in cache.glob("images*/*/about.json"):
        name = Path(json.loads(about.read_text())["what"].split(",")[0]).name
        then = about.stat().st_mtime - DAY * days[name]
        os.utime(about, (then, then))


def images(cache: Path) -> list[str]:
    """The names of the folders whose images are there, the least recently used first."""
    return [Path(entry.what.split(",")[0]).name for entry in entries(cache, (IMAGES, ON_DEMAND))]


@pytest.fixture
def three(cache: Path, tmp_path: Path) -> list[ImageFolder]:
    """Three sets, last used 3 days, 1 day and 2 days ago."""
    specs = [folder(tmp_path, seed) for seed in range(3)]
    for spec in specs:
        load(spec)
    forget()
    age(cache, {"0": 3, "1": 1, "2": 2})
    return specs


@pytest.mark.usefixtures("three")
def test_entries_say_what_they_are(cache: Path) -> None:
    found = entries(cache)
    assert {entry.kind for entry in found} == {"images", "contents", "datasets"}
    assert images(cache) == ["0", "2", "1"]
    for entry in entries(cache, (IMAGES,)):
        assert entry.what.endswith(", 64x64x3")
        assert 8 * 64 * 64 * 3 <= entry.num_bytes < 10 * 64 * 64 * 3 + 3 * 4096
        assert not entry.in_use


def test_what_is_in_use_stays(three: list[ImageFolder], cache: Path) -> None:
    part = load(three[0]).train.subset(slice(1, 3)).pixels(slice(0, 1))  # a view of the file
    sparse = load(folder_spec(Path(three[0].train), resolution=32, cache_gb=0.0))
    forget()
    assert [entry.in_use for entry in entries(cache, (IMAGES, ON_DEMAND))].count(True) == 2
    clean(cache)
    assert images(cache) == ["0", "0"]
    before = part.copy()
    assert sparse.train.pixels(slice(0, 1)).shape == (1, 32, 32, 3)
    del sparse
    gc.collect()
    clean(cache)
    assert images(cache) == ["0"]
    assert (part == before).all()
    del part
    gc.collect()
    clean(cache)
    assert entries(cache) == []


def test_only_so_much_is_removed(three: list[ImageFolder], cache: Path) -> None:
    clean(cache, unused_days=1.5)
    assert images(cache) == ["1"]
    load(three[0])
    load(three[2])
    forget()
    age(cache, {"0": 3, "1": 1, "2": 2})
    total = sum(entry.num_bytes for entry in entries(cache))
    (removed,) = clean(cache, to_bytes=total - 1)
    assert Path(removed.what.split(",")[0]).name == "0"
    assert sorted(images(cache)) == ["1", "2"]


def test_a_full_disk_drops_what_was_not_used_for_longest(
    three: list[ImageFolder], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    capacity = sum(entry.num_bytes for entry in entries(cache, (IMAGES,))) + 50_000

    def usage(_: Any) -> Usage:
        used = sum(entry.num_bytes for entry in entries(cache, (IMAGES, ON_DEMAND)))
        return Usage(capacity, used, capacity - used)

    kept = load(three[0])
    age(cache, {"0": 9, "1": 1, "2": 2})
    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    assert not make_room(cache, capacity)
    assert images(cache) == ["0", "2", "1"]
    new = load(folder(tmp_path, 5))
    assert isinstance(new.train.stored, np.ndarray)
    assert images(cache) == ["0", "1", "5"]
    assert len(kept.train.images) > 0


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    for kind in ("images", "shards", "frozen_features"):
        (cache / kind / "key.partial").mkdir(parents=True)
        (cache / kind / "key.partial" / "rows.0").write_bytes(b"half")
    assert len(clean(cache)) == 3
    assert entries(cache) == []


def test_every_folder_of_the_cache_is_listed() -> None:
    package = Path(module.__file__).parents[3]
    source = "\n".join(path.read_text() for path in package.rglob("*.py"))
    used = set(re.findall(r'cache_folder\(\) / "(\w+)"', source))
    assert {"contents", "samples", "groups"} <= used
    assert used | {IMAGES, ON_DEMAND} == set(module.KINDS)
