"""Pairs of images: they stay pairs in everything that is done to images, and files that are none are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import load
from PIL import Image
from pydantic import ValidationError

from ftae.engine.data.batches import Batch, train_batch, val_batches
from ftae.engine.data.sources import source_of
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.builtin import DigitEdges
from ftae.specs.finetune.sources.two_sided import Pairs

pytestmark = pytest.mark.usefixtures("cache")

SIDE = 20


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def negatives(place: Path, number: int = 8) -> tuple[Path, Path, Path]:
    """Folders with A, with B, which is the negative of A, and with both side by side."""
    rng = np.random.default_rng(0)
    for i in range(number):
        a = rng.integers(0, 256, (SIDE, SIDE, 3))
        save(place / "a" / f"{i}.png", a)
        save(place / "b" / f"{i}.bmp", 255 - a)
        save(place / "both" / f"{i}.png", np.concatenate([a, 255 - a], axis=1))
    return place / "a", place / "b", place / "both"


def side_by_side(train: Path, **fields: Any) -> Pairs:
    return Pairs.model_validate({"train": str(train), "resolution": SIDE, "val": 0.25, **fields})


def two_folders(inputs: Path, train: Path, **fields: Any) -> Pairs:
    return side_by_side(train, inputs=str(inputs), **fields)


def batches(spec: Pairs) -> list[Batch]:
    data = load(spec)
    drawn = [train_batch(data.train, spec, batch_size=6, batch=i, seed=0, device="cpu") for i in range(3)]
    return [*drawn, *val_batches(data.val, spec, batch_size=6, device="cpu")]


def test_a_pair_stays_a_pair_when_it_is_cropped_and_mirrored(tmp_path: Path) -> None:
    a, b, both = negatives(tmp_path)
    changed = {"resolution": 16, "random_crop_from": SIDE, "flip": True}
    for spec in (side_by_side(both, **changed), two_folders(a, b, **changed)):
        found, unmirrored = batches(spec), batches(spec.model_copy(update={"flip": False}))
        assert not torch.equal(found[0].images, unmirrored[0].images)
        for batch in found:
            assert batch.inputs.shape == batch.images.shape == (len(batch.images), 3, 16, 16)
            assert batch.inputs.is_contiguous()
            torch.testing.assert_close(batch.inputs + batch.images, torch.ones_like(batch.images))


def test_both_layouts_give_the_same_and_a_direction_swaps(tmp_path: Path) -> None:
    a, b, both = negatives(tmp_path)
    apart, together = batches(two_folders(a, b)), batches(side_by_side(both))
    swapped = batches(side_by_side(both, direction="b_to_a"))
    by_name = {}
    for batch in together:
        by_name |= {image.numpy().tobytes(): given for image, given in zip(batch.images, batch.inputs, strict=True)}
    for batch in apart:
        for image, given in zip(batch.images, batch.inputs, strict=True):
            assert torch.equal(by_name[image.numpy().tobytes()], given)
    for one, other in zip(together, swapped, strict=True):
        assert torch.equal(one.inputs, other.images)
        assert torch.equal(one.images, other.inputs)


def test_only_the_input_is_degraded(tmp_path: Path) -> None:
    *_, both = negatives(tmp_path)
    plain, degraded = batches(side_by_side(both)), batches(side_by_side(both, degrade={"noise": 0.1}))
    for clean, noisy in zip(plain, degraded, strict=True):
        assert torch.equal(clean.images, noisy.images)
        assert 0.0 < (clean.inputs - noisy.inputs).abs().mean() < 0.1


def test_either_side_and_the_direction_are_in_the_fingerprint(tmp_path: Path) -> None:
    a, b, both = negatives(tmp_path)
    specs = [two_folders(a, b), two_folders(b, a), side_by_side(both), side_by_side(both, direction="b_to_a")]
    found = [load(spec).fingerprint for spec in specs]
    for folder in (a, b):
        name = next(folder.iterdir())
        save(name, np.zeros((SIDE, SIDE, 3)))
        found.append(load(two_folders(a, b)).fingerprint)
    assert len(set(found)) == len(found)


def test_validation_pairs_come_from_folders_of_their_own(tmp_path: Path) -> None:
    a, b, _ = negatives(tmp_path)
    val_a, val_b, _ = negatives(tmp_path / "val", number=3)
    spec = two_folders(a, b, val=str(val_b), val_inputs=str(val_a))
    data = load(spec)
    assert (len(data.train), len(data.val)) == (8, 3)
    [batch] = val_batches(data.val, spec, batch_size=8, device="cpu")
    torch.testing.assert_close(batch.inputs + batch.images, torch.ones_like(batch.images))
    with pytest.raises(FtaeError, match="must be separate folders"):
        load(two_folders(a, b, val=str(val_b), val_inputs=str(a)))


def test_a_damaged_file_costs_its_pair_alone(tmp_path: Path) -> None:
    a, b, _ = negatives(tmp_path)
    (a / "3.png").write_bytes(b"no image")
    data = load(two_folders(a, b))
    assert len(data.train) + len(data.val) == 7
    [skipped] = data.skipped
    assert "3.bmp: of its partner" in skipped
    assert "3.png: not an image" in skipped


def alone(a: Path, b: Path, both: Path) -> Pairs:
    (a / "1.png").unlink()
    (a / "2.png").unlink()
    return two_folders(a, b)


def twins(a: Path, b: Path, both: Path) -> Pairs:
    save(a / "1.bmp", np.zeros((SIDE, SIDE, 3)))
    return two_folders(a, b)


def other_size(a: Path, b: Path, both: Path) -> Pairs:
    save(a / "1.png", np.zeros((SIDE, SIDE + 1, 3)))
    return two_folders(a, b)


def odd(a: Path, b: Path, both: Path) -> Pairs:
    save(both / "4.png", np.zeros((SIDE, 2 * SIDE + 1, 3)))
    return side_by_side(both)


def single(a: Path, b: Path, both: Path) -> Pairs:
    return side_by_side(a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (alone, r"a has no partner for 2 of 8 files: 1\.bmp, 2\.bmp$"),
        (twins, r"a: images of pairs must differ .*; not so 2 of 9 files: 1\.bmp, 1\.png"),
        (other_size, r"must have the same size; not so 1 of 8 files: 1\.bmp \(20x20, input 21x20\)"),
        (odd, r"an even width, larger than its height; not so 1 of 8 files: 4\.png \(41x20\); images in two folders"),
        (single, r"not so 8 of 8 files: .*\(20x20\)"),
    ],
)
def test_files_that_are_no_pairs_are_counted_and_named(
    make: Callable[[Path, Path, Path], Pairs], message: str, tmp_path: Path
) -> None:
    spec = make(*negatives(tmp_path))
    for check in (source_of(spec).check_listed, lambda: load(spec)):
        with pytest.raises(FtaeError, match=message):
            check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": "d"}, "inputs: must be another folder than train"),
        ({"inputs": "a", "val": "v"}, "val_inputs: must be the folder with A for the val folder"),
        ({"val": "v", "val_inputs": "a"}, "val_inputs: has no effect, it needs inputs and a val folder"),
        ({"inputs": "a", "direction": "b_to_a"}, "direction: b_to_a has no effect on two folders"),
        ({"replay": {"source": "digits", "share": 0.1}}, "replay: must be of pairs where data is"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Pairs.model_validate({"train": "d", "resolution": SIDE, **fields})
    [error] = caught.value.errors()
    assert f"{error['loc'][0]}: {error['msg'].removeprefix('Value error, ')}".startswith(message)


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Pairs(train="b", inputs="a", val="vb", val_inputs="va", resolution=SIDE).with_absolute_paths()
    assert spec.image_folders() == {
        "data.inputs": f"{tmp_path}/a",
        "data.val_inputs": f"{tmp_path}/va",
        "data.train": f"{tmp_path}/b",
        "data.val": f"{tmp_path}/vb",
    }


def test_edges_lie_where_digits_change(tmp_path: Path) -> None:
    spec = DigitEdges(resolution=16, classes=(3, 7))
    [batch] = val_batches(load(spec).val, spec, batch_size=1000, device="cpu")
    assert set(batch.inputs.unique().tolist()) == {0.0, 1.0}
    slopes = (batch.images[..., 1:, 1:] - batch.images[..., :-1, :-1]).abs()
    at_edges = batch.inputs[..., :-1, :-1] > 0.5
    assert slopes[at_edges].mean() > 2 * slopes[~at_edges].mean()
