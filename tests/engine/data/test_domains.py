"""Two domains without partners: who is drawn when, what is held out, and which validation images belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import run_spec
from image_files import load
from PIL import Image

from ftae.engine.data.batches import training_batch, val_batches
from ftae.engine.data.dataset import Dataset, check_listed
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.run import FinetuneSpec

pytestmark = pytest.mark.usefixtures("cache")

SIDE = 16


def folder(place: Path, values: range, suffix: str = "png") -> None:
    """Images of one colour each: image ``i`` has the value ``i``."""
    place.mkdir(parents=True)
    for value in values:
        Image.fromarray(np.full((SIDE, SIDE), value, dtype=np.uint8)).save(place / f"{value % 100}.{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """12 images of A, from 0 on; 5 of B, from 100 on; 4 and 3 to test."""
    for name, values in (("trainA", range(12)), ("trainB", range(100, 105))):
        folder(tmp_path / "root" / name, values)
    folder(tmp_path / "root/testA", range(20, 24))
    folder(tmp_path / "root/testB", range(120, 123), "bmp")
    return tmp_path / "root"


def run_of(root: Path, **data: Any) -> FinetuneSpec:
    return run_spec(
        model={"family": "cyclegan"},
        data={"source": "unpaired", "train": str(root), "resolution": SIDE, "color": "grey", **data},
        losses={"adversarial": 1.0, "cycle": 10.0},
        metrics=["change"],
    )


def values(spec: AnyData, data: Dataset, batch: int, seed: int = 0, size: int = 4) -> tuple[list[int], list[int]]:
    """The numbers of the inputs and of the images of a training batch."""
    found = training_batch(data, spec, batch_size=size, batch=batch, seed=seed, device="cpu")
    a, b = (np.rint(part[:, 0, 0, 0].numpy() * 255).astype(int).tolist() for part in (found.inputs, found.images))
    return a, b


def test_each_side_is_drawn_by_a_permutation_of_its_own(root: Path) -> None:
    spec = run_of(root, val=str(root)).data
    data = load(spec)
    assert (len(data.train), len(data.val)) == (12, 3)  # the longer side; as many as the shorter one has
    epochs = [values(spec, data, epoch, size=12) for epoch in range(2)]
    for a, b in epochs:
        assert sorted(a) == list(range(12))
        assert {b.count(value) for value in range(100, 105)} == {2, 3}
    first, second = (set(zip(a, b, strict=True)) for a, b in epochs)
    assert len(first & second) < 6  # other partners in the next epoch
    assert values(spec, data, 7) == values(spec, data, 7)
    assert values(spec, data, 7) != values(spec, data, 7, seed=1)


def test_the_sides_are_cropped_and_mirrored_apart(tmp_path: Path) -> None:
    ramp = np.arange(24, dtype=np.uint8)[None].repeat(24, axis=0)
    for name in ("trainA", "trainB"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(ramp).save(tmp_path / name / f"{i}.png")
    spec = run_of(tmp_path, val=0.25, random_crop_from=24, flip=True).data
    batch = training_batch(load(spec), spec, batch_size=16, batch=0, seed=0, device="cpu")
    same = [bool((a == b).all()) for a, b in zip(batch.inputs, batch.images, strict=True)]
    assert sum(same) < 4


def test_a_share_of_each_side_is_held_out(root: Path) -> None:
    spec = run_of(root, val=0.25).data
    data = load(spec)
    assert (len(data.train), len(data.val)) == (9, 1)
    (batch,) = val_batches(data.val, spec, batch_size=8, device="cpu")
    held_out = {round(float(part[0, 0, 0, 0]) * 255) for part in (batch.inputs, batch.images)}
    seen = {value for i in range(20) for side in values(spec, data, i) for value in side}
    assert len(seen) == 9 + 4
    assert not held_out & seen


def test_validation_images_of_the_same_name_may_belong_together(root: Path) -> None:
    (root / "testA/23.png").unlink()
    spec = run_of(root, val=str(root), val_paired=True).data
    (batch,) = val_batches(load(spec).val, spec, batch_size=8, device="cpu")
    a, b = ((part[:, 0, 0, 0] * 255).round().int().tolist() for part in (batch.inputs, batch.images))
    assert [value + 100 for value in a] == b
    assert sorted(b) == [120, 121, 122]


@pytest.mark.parametrize(("val_paired", "rule"), [(True, "no partner for 1 of 4 files: 23.png"), (False, None)])
def test_names_without_a_partner_are_refused_where_they_should_have_one(
    root: Path, val_paired: bool, rule: str | None
) -> None:
    run = run_of(root, val=str(root), val_paired=val_paired)
    if rule is None:
        assert check_listed(run) == []
        return
    with pytest.raises(FtaeError, match=rule):
        check_listed(run)


def test_a_folder_without_the_sides_is_named(root: Path) -> None:
    with pytest.raises(FtaeError, match=r"there is no image folder .*testA/trainA"):
        check_listed(run_of(root / "testA"))


def test_a_damaged_file_is_named_and_left_out(root: Path) -> None:
    (root / "trainA/3.png").write_bytes(b"no image")
    data = load(run_of(root, val=str(root)).data)
    assert len(data.train) == 11
    assert len(data.skipped) == 1
    assert "trainA/3.png" in data.skipped[0]
