"""The drawn shapes: their factors are what the pixels show, the same on every machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.specs.finetune.sources.builtin import SHAPE_FACTORS, Shapes

pytestmark = pytest.mark.usefixtures("cache")


def load(**fields: Any) -> Dataset:
    load_dataset.cache_clear()
    return load_dataset(Shapes(**{"source": "shapes", "resolution": 32, "num_images": 300, **fields}))


def factors_of(images: ImageSet) -> np.ndarray:
    assert images.factors is not None
    return images.factors


def test_the_label_is_the_kind_and_the_first_factor() -> None:
    dataset = load()
    assert dataset.class_names == ("square", "circle", "triangle")
    assert (len(dataset.train), len(dataset.val)) == (240, 60)
    for images in (dataset.train, dataset.val):
        assert (images.labels == factors_of(images)[:, 0]).all()
        assert factors_of(images).shape == (len(images), len(SHAPE_FACTORS))
    assert factors_of(dataset.train).max(axis=0).tolist() == [count - 1 for count in SHAPE_FACTORS.values()]


def test_factors_are_what_the_pixels_show() -> None:
    dataset = load(num_images=1000)
    pixels, factors = np.asarray(dataset.train.images)[..., 0] / 255.0, factors_of(dataset.train)
    square = factors[:, 0] == 0
    down, right = np.mgrid[0:32, 0:32] + 0.5
    mass = pixels.sum((1, 2))
    brightest = 0.4 + 0.2 * factors[:, 4]
    assert np.allclose(pixels.max((1, 2))[square], brightest[square], atol=1 / 255)
    assert np.allclose(
        ((pixels * right).sum((1, 2)) / mass / 32)[square], (0.25 + factors[:, 2] / 14)[square], atol=0.02
    )
    assert np.allclose(
        ((pixels * down).sum((1, 2)) / mass / 32)[square], (0.25 + factors[:, 3] / 14)[square], atol=0.02
    )
    sides = np.sqrt(mass / brightest) / 32
    assert np.allclose(sides[square], (2 * (0.08 + 0.04 * factors[:, 1]))[square], atol=0.03)


def test_every_image_is_another_and_more_images_keep_the_first() -> None:
    everything = load(num_images=3072, val=0.5)
    factors = np.concatenate([factors_of(everything.train), factors_of(everything.val)])
    assert len(np.unique(factors, axis=0)) == 3072
    few = load(num_images=100, val=0.5)
    assert (factors[:50] == factors_of(few.train)).all()
    assert few.fingerprint != everything.fingerprint


def test_a_cached_set_is_the_drawn_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, again = load(), load()
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another"))
    elsewhere = load()
    for other in (again, elsewhere):
        assert (other.val.images == drawn.val.images).all()
        assert (factors_of(other.val) == factors_of(drawn.val)).all()
        assert other.fingerprint == drawn.fingerprint


def test_rgb_and_side() -> None:
    dataset = load(resolution=16, random_crop_from=20, color="rgb")
    assert dataset.val.images.shape == (60, 20, 20, 3)


def test_batches_bring_the_factors_of_their_images() -> None:
    dataset = load()
    spec = Shapes(source="shapes", resolution=32, num_images=300)
    batches = list(val_batches(dataset.val, spec, batch_size=25, device="cpu"))
    found = np.concatenate([batch.factors.numpy() for batch in batches if batch.factors is not None])
    assert (found == factors_of(dataset.val)).all()
    few = dataset.val.subset(np.array([7, 3]))
    assert (factors_of(few) == factors_of(dataset.val)[[7, 3]]).all()


def test_anomalies_leave_factors_and_images_together() -> None:
    dataset = load(anomaly_classes=["circle"])
    assert dataset.class_names == ("square", "triangle")
    kinds = factors_of(dataset.train)[:, 0]
    assert set(kinds.tolist()) == {0, 2}
    assert dataset.train.labels is not None
    assert (dataset.train.labels == (kinds == 2)).all()
    with pytest.raises(ValidationError, match="circle, square, triangle"):
        Shapes(source="shapes", resolution=16, anomaly_classes=("star",))
