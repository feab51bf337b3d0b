"""Images that are decoded as they are needed are the images that are decoded at once."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from image_files import folder_spec, load, save_noise

from ftae.engine.data import cache as cache_module
from ftae.engine.data.batches import train_batch, val_batches
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.engine.data.stored_parts import ImagesChanged, decoded_as_needed
from ftae.engine.data.stores import rows
from ftae.engine.data.stores.on_demand import ImagesOnDemand
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.folders import ImageFolder

pytestmark = pytest.mark.usefixtures("cache")
NUM = 40
ROW = 16 * 16 * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(NUM):
        save_noise(tmp_path / "d" / "ab"[i % 2] / f"{i:02d}.png", i, side=20)
    return tmp_path / "d"


def sparse(folder: Path, num_kept: int = NUM - 1, **fields: Any) -> ImageFolder:
    return folder_spec(folder, cache_gb=num_kept * ROW / 1e9, **fields)


def store(images: ImageSet) -> ImagesOnDemand:
    assert isinstance(images.stored, ImagesOnDemand)
    return images.stored


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **fields: Any) -> tuple[Dataset, Dataset]:
    """The data set decoded as it is needed and, in another cache, at once."""
    needed = load(sparse(folder, **fields))
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "other"))
    return needed, load(folder_spec(folder, **fields))


@pytest.mark.parametrize("fields", [{}, {"random_crop_from": 20, "flip": True}, {"anomaly_classes": ("b",)}])
def test_batches_are_the_same_to_the_bit(
    fields: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed, whole = both(folder, monkeypatch, tmp_path, **fields)
    assert needed.fingerprint == whole.fingerprint
    spec = folder_spec(folder, **fields)
    assert store(needed.train).num_decoded() == 0
    for number in range(3):
        args: dict[str, Any] = {"batch_size": 4, "batch": number, "seed": 1, "device": "cpu"}
        one, other = train_batch(needed.train, spec, **args), train_batch(whole.train, spec, **args)
        assert torch.equal(one.images, other.images)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)
    assert store(needed.train).num_decoded() == 12  # no others
    sets = [(needed.val, whole.val)]
    if needed.anomalies is not None and whole.anomalies is not None:
        sets.append((needed.anomalies, whole.anomalies))
    for first, second in sets:
        for one, other in zip(
            *(val_batches(x, spec, batch_size=3, device="cpu") for x in (first, second)), strict=True
        ):
            assert torch.equal(one.images, other.images)
            assert [(a.key, a.positions.tolist()) for a in one.ids] == [
                (b.key, b.positions.tolist()) for b in other.ids
            ]
        assert (first.images == second.images).all()


def test_a_run_has_the_same_losses(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for cache_gb in (0.0, 6 * ROW / 1e9, None):
        monkeypatch.setenv("FTAE_CACHE", str(tmp_path / f"cache-{cache_gb}"))
        data = folder_spec(folder, cache_gb=cache_gb, flip=True).model_dump()
        spec = run_spec(data=data, batch_size=4, max_steps=3, num_evals=2)
        load_dataset.cache_clear()
        reports = list(finetune(spec, tmp_path / f"run-{cache_gb}"))
        found.append([report.metrics for report in reports])
    assert found[0] == found[1] == found[2]


def test_what_is_decoded_is_kept_and_needs_no_files(folder: Path) -> None:
    spec = sparse(folder)
    first = load(spec)
    before = first.train.pixels(slice(0, 10))
    pinned = spec.model_copy(update={"fingerprint": first.fingerprint})
    for path in folder.rglob("*.png"):
        path.write_bytes(b"changed")
    again = load(pinned)
    assert (again.train.pixels(slice(0, 10)) == before).all()
    with pytest.raises(ImagesChanged, match="some of the old ones were not decoded yet"):
        again.train.pixels(slice(10, 11))


def test_another_takes_the_place_of_an_unreadable_image(folder: Path) -> None:
    broken = [folder / "a" / "00.png", folder / "b" / "07.png", folder / "b" / "09.png"]
    for path in broken:
        path.write_bytes(b"no image")
    data = load(sparse(folder))
    assert len(data.train) + len(data.val) == NUM
    every = [(images, images.images) for images in (data.train, data.val)]
    assert sum(store(images).unreadable() != [] for images, _ in every) == 2  # one list for both
    assert [line.split(":")[0] for line in store(data.train).unreadable()] == ["a/00.png", "b/07.png", "b/09.png"]
    for images, pixels in every:
        assert images.labels is not None
        _, good = store(images).take(np.arange(len(images)))
        for bad in np.flatnonzero(~good):
            same = [i for i in np.flatnonzero(good) if (pixels[i] == pixels[bad]).all()]
            assert [images.labels[i] for i in same] == [images.labels[bad]]
    again = load(sparse(folder))
    assert (again.train.images == every[0][1]).all()
    assert any("others take the place of images: 3 images cannot be read" in note for note in again.notes)


def test_a_killed_decoder_leaves_the_store_usable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is killed while rows are written whose state is not."""
    code = """
    import os, signal, sys
    from ftae.engine.data.dataset import load_dataset
    from ftae.engine.data.stores import rows
    from ftae.specs.finetune.sources.folders import ImageFolder

    data = load_dataset(ImageFolder.model_validate_json(sys.argv[1]))
    data.train.pixels(slice(0, 4))
    write = rows._write_all
    def half(file, image, offset):
        write(file, image[: len(image) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    rows._write_all = half
    data.train.pixels(slice(4, 12))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), sparse(folder).model_dump_json()], check=False)
    assert done.returncode == -signal.SIGKILL
    needed, whole = both(folder, monkeypatch, tmp_path)
    assert store(needed.train).num_decoded() == 4
    assert (needed.train.images == whole.train.images).all()


def disk_of(rows_left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New rows find a full disk after some; those that were written have their room."""
    write, written = os.pwrite, set[int]()

    def limited(file: int, data: memoryview, offset: int) -> int:
        if offset not in written and len(written) == rows_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.add(offset)
        return write(file, data, offset)

    monkeypatch.setattr(rows.os, "pwrite", limited)
    monkeypatch.setattr(rows, "make_room", lambda *_: False)


@pytest.mark.parametrize("rows_left", [0, 3, 6])
def test_a_full_disk_keeps_what_it_can(
    rows_left: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    needed, whole = both(folder, monkeypatch, tmp_path)
    disk_of(rows_left, monkeypatch)
    rows._warn_of_full_disk.cache_clear()
    for _ in range(2):
        for start in range(0, 30, 4):
            part = slice(start, start + 4)
            assert (needed.train.pixels(part) == whole.train.pixels(part)).all()
    assert store(needed.train).num_decoded() == rows_left
    warnings = [record.getMessage() for record in caplog.records if "is full" in record.getMessage()]
    assert len(warnings) == (rows_left == 0)


def test_another_fault_of_the_disk_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(sparse(folder))
    data.train.pixels(slice(0, 4))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(rows.os, "pwrite", broken)
        with pytest.raises(FtaeError, match=r"cannot write decoded images to the image cache .*Input/output error"):
            data.train.pixels(slice(4, 8))
    assert store(data.train).num_decoded() == 4
    assert len(data.train.pixels(slice(4, 8))) == 4


def test_what_is_noted_of_images_has_its_room_from_the_start(folder: Path, cache: Path) -> None:
    load(sparse(folder))
    for name in ("state", "places", "owners", "used"):
        (file,) = cache.rglob(name)
        assert file.stat().st_blocks * 512 >= file.stat().st_size > 0


def test_every_other_image_of_a_set(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed, whole = both(folder, monkeypatch, tmp_path)
    some = slice(1, None, 3)
    assert (needed.train.subset(some).images == whole.train.subset(some).images).all()


def test_a_disk_without_room_and_one_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "can_make_room", lambda *_: False)
        assert store(load(folder_spec(folder)).train).num_decoded() == 0
    assert isinstance(load(folder_spec(folder)).train.stored, np.ndarray)
    assert isinstance(load(sparse(folder)).train.stored, np.ndarray)  # there already
    assert len(list(cache.glob("images/*/images.npy"))) == 1


def test_how_many_images_a_run_needs_is_known_before(folder: Path) -> None:
    data = sparse(folder, val=10).model_dump()
    run = run_spec(data=data, batch_size=4, grad_accumulation=2, max_steps=2)
    assert decoded_as_needed(run) == "26 of 40 images are decoded, 20 KB"
    assert decoded_as_needed(run.model_copy(update={"max_steps": 100})) == (
        "40 of 40 images are decoded, 30.7 KB, and again once they have left the cache, which keeps 30 KB"
    )
    assert decoded_as_needed(run_spec(data=data | {"cache_gb": None})) is None


def decoded(images: ImagesOnDemand) -> set[int]:
    """The images that are there."""
    return set(np.flatnonzero(images.states() == rows.DECODED).tolist())


def test_of_a_full_store_the_least_recently_used_images_make_room(folder: Path, cache: Path) -> None:
    data = load(sparse(folder, num_kept=6, val=1))
    images, kept = data.train, store(data.train)
    expected = {i: images.pixels(slice(i, i + 1)).copy() for i in range(12)}
    assert decoded(kept) == {6, 7, 8, 9, 10, 11}
    images.pixels(np.array([6, 7]))  # used again
    images.pixels(np.array([0, 1]))
    assert decoded(kept) == {0, 1, 6, 7, 10, 11}
    for i in (8, 6, 0, 9, 8):
        assert (images.pixels(slice(i, i + 1)) == expected[i]).all()
    assert kept.num_decoded() == 6
    size = sum(path.stat().st_size for path in cache.rglob("rows"))
    assert size == 6 * ROW


def test_more_images_at_once_than_the_store_keeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed = [load(sparse(folder, num_kept)) for num_kept in (0, 3)]
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "other"))
    whole = load(folder_spec(folder))
    for data, num_kept in zip(needed, (0, 3), strict=True):
        for _ in range(2):
            assert (data.train.images == whole.train.images).all()
        assert store(data.train).num_decoded() == num_kept


def test_processes_that_share_a_small_store_see_the_right_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = """
    import sys
    import numpy as np
    from ftae.engine.data.dataset import load_dataset
    from ftae.specs.finetune.sources.folders import ImageFolder

    images = load_dataset(ImageFolder.model_validate_json(sys.argv[1])).train
    rng, expected = np.random.default_rng(int(sys.argv[2])), np.load(sys.argv[3])
    for _ in range(150):
        chosen = rng.permutation(len(images))[:4]
        assert (images.pixels(chosen) == expected[chosen]).all()
    """
    spec = sparse(folder, num_kept=7)
    load(spec)
    with monkeypatch.context() as patch:
        patch.setenv("FTAE_CACHE", str(tmp_path / "other"))
        np.save(tmp_path / "expected.npy", load(folder_spec(folder)).train.images)
    command = [sys.executable, "-c", textwrap.dedent(code), spec.model_dump_json()]
    users = [subprocess.Popen([*command, str(i), str(tmp_path / "expected.npy")]) for i in range(3)]
    assert [user.wait() for user in users] == [0, 0, 0]
