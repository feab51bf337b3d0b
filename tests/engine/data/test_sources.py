"""The built-in sources: scikit-learn's digits and photographs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import load
from PIL import Image

from ftae.errors import FtaeError
from ftae.specs.finetune.sources.builtin import Digits, Photos

pytestmark = pytest.mark.usefixtures("cache")


def test_digits_keep_sklearns_pixels_and_labels() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    dataset = load(Digits(source="digits", resolution=8))
    assert dataset.train.images.shape == (1438, 8, 8, 1)
    assert dataset.val.images.shape == (359, 8, 8, 1)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train.labels is not None
    assert dataset.val.labels is not None
    ours = {
        (pixels.tobytes(), int(label))
        for image_set in (dataset.train, dataset.val)
        for pixels, label in zip(image_set.images, image_set.labels, strict=True)  # type: ignore[arg-type]
    }
    theirs = np.rint(digits.images * 255 / 16).astype(np.uint8)
    assert ours == {(p.tobytes(), int(t)) for p, t in zip(theirs, digits.target, strict=True)}
    assert dataset.train.images.max() == 255


def test_digits_are_enlarged_and_can_be_rgb() -> None:
    dataset = load(Digits(source="digits", resolution=28, color="rgb"))
    assert dataset.train.images.shape[1:] == (28, 28, 3)
    first = np.asarray(dataset.train.images[0])
    assert (first[..., 0] == first[..., 1]).all()
    assert (first[..., 0] == first[..., 2]).all()
    assert first.std() > 30


def test_digit_classes_are_filtered_and_renumbered() -> None:
    everything = load(Digits(source="digits", resolution=8))
    some = load(Digits(source="digits", resolution=8, classes=(7, 3, 3)))
    assert some.class_names == ("3", "7")
    assert some.train.labels is not None
    assert everything.train.labels is not None
    assert set(some.train.labels.tolist()) == {0, 1}
    sevens = {p.tobytes() for p in everything.train.images[everything.train.labels == 7]}
    ours = {p.tobytes() for p in some.train.images[some.train.labels == 1]}
    assert len(ours & sevens) > 0.9 * len(ours)
    assert some.fingerprint != everything.fingerprint


def test_digit_shifts() -> None:
    plain, inverted, rotated, noisy = (
        load(Digits(source="digits", resolution=8, shift=shift)) for shift in ("none", "invert", "rotate", "noise")
    )
    assert (inverted.val.images == 255 - plain.val.images).all()
    assert (rotated.val.images == np.rot90(plain.val.images, axes=(1, 2))).all()
    grey = (plain.val.images > 100) & (plain.val.images < 155)  # far enough from both ends not to be clipped much
    noise = noisy.val.images[grey].astype(float) - plain.val.images[grey]
    assert abs(noise.mean()) < 3
    assert noise.std() == pytest.approx(0.2 * 255, rel=0.05)
    assert len({d.fingerprint for d in (plain, inverted, rotated, noisy)}) == 4


def test_noise_does_not_depend_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Digits(source="digits", resolution=8, shift="noise", classes=(4,))
    first = np.array(load(spec).train.images)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
    assert (load(spec).train.images == first).all()


@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_photo_patches_come_from_separate_parts(color: Any) -> None:
    from sklearn.datasets import load_sample_images

    spec = Photos(source="photos", resolution=48, num_patches=40, val=0.25, color=color)
    dataset = load(spec)
    channels = spec.channels
    assert dataset.train.images.shape == (30, 48, 48, channels)
    assert dataset.val.images.shape == (10, 48, 48, channels)
    assert dataset.train.labels is None
    assert dataset.class_names is None

    photos = [
        np.asarray(Image.fromarray(p).convert("L" if color == "grey" else "RGB")).reshape(427, 640, channels)
        for p in load_sample_images().images
    ]
    columns = {
        "train": [_left_edge(patch, photos) for patch in dataset.train.images],
        "val": [_left_edge(patch, photos) for patch in dataset.val.images],
    }
    assert max(columns["train"]) + 48 <= 480 <= min(columns["val"])


def _left_edge(patch: np.ndarray, photos: list[np.ndarray]) -> int:
    """The column in which ``patch`` was cut."""
    for photo in photos:
        windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (1, 48))[:, :, 0]
        for top, left in np.argwhere((windows[: 427 - 47] == patch[0, :, 0]).all(axis=2)):
            if (photo[top : top + 48, left : left + 48] == patch).all():
                return int(left)
    raise AssertionError("the patch is in no photograph")


@pytest.mark.parametrize(("side", "part"), [(200, "validation"), (512, "training")])
def test_photo_patch_larger_than_its_part_is_refused(side: int, part: str) -> None:
    with pytest.raises(FtaeError, match=rf"{part} patch of {side} x {side} pixels does not fit.*resolution"):
        load(Photos(source="photos", resolution=side))
