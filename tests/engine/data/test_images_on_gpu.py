"""Batches of images that are kept on a GPU are those of the images on the disk. A CPU may stand in for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from image_files import load
from PIL import Image

from ftae.engine.data.batches import Batch, training_batch, val_batches
from ftae.engine.data.dataset import Dataset
from ftae.engine.training.images_on_gpu import with_images_on
from ftae.specs.finetune.data_spec import DataSpec

pytestmark = pytest.mark.usefixtures("cache")

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sixteen_bits(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for i in range(12):
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 2**16, (40, 36), dtype=np.uint16)).save(folder / f"{i}.png")
    data = {"source": "image_folder", "train": str(folder), "val": 0.25, "resolution": [24, 16], "color": "grey"}
    return {**data, "intensity": {"bits": 16}}


def digits(folder: Path) -> dict[str, Any]:
    return {"source": "digits", "resolution": 16}


def anomalies(folder: Path) -> dict[str, Any]:
    return {**digits(folder), "anomaly_classes": ["3"]}


def replayed(folder: Path) -> dict[str, Any]:
    replay = {"source": "photos", "num_patches": 20, "resolution": 16, "color": "grey", "share": 0.25}
    return {**digits(folder), "replay": replay}


def pairs(folder: Path) -> dict[str, Any]:
    return {"source": "digit_edges", "resolution": 16}


def unpaired(folder: Path) -> dict[str, Any]:
    return {"source": "digit_domains", "resolution": 16}


def grouped(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(24, 16, 16)))
    np.save(folder / "groups.npy", np.arange(24) // 4)
    data = {"source": "arrays", "train": str(folder / "x.npy"), "groups": str(folder / "groups.npy"), "val": 0.25}
    return {**data, "resolution": 16, "layout": "hw", "normalise": "minmax"}


def spec_of(data: dict[str, Any]) -> DataSpec:
    if data["source"] == "digit_domains":
        losses = {"adversarial": 1.0, "cycle": 10.0}
        return run_spec(model={"family": "cyclegan"}, data=data, losses=losses, metrics=["change"]).data
    return run_spec(data=data, losses={"mse": 1.0}).data


def batches(data: Dataset, spec: DataSpec) -> list[Batch]:
    train = [
        training_batch(data, spec, batch_size=8, batch=number, seed=3, device=GPU, rows=rows)
        for number in (0, 5)
        for rows in (slice(None), slice(0, 4), slice(6, 8))
    ]
    return [
        *train,
        *(batch for images in held_out(data) for batch in val_batches(images, spec, batch_size=5, device=GPU)),
    ]


def held_out(data: Dataset) -> list[Any]:
    some = data.val.subset(slice(1, None, 2))
    return [data.val, some] + ([] if data.anomalies is None else [data.anomalies])


CROPPED = {"flip": True, "random_crop_from": 40}
MADE = [
    (sixteen_bits, {"flip": True, "random_crop_from": [40, 36]}),
    (digits, {}),
    (digits, CROPPED),
    (anomalies, CROPPED),
    (replayed, {}),
    (replayed, CROPPED),
    (pairs, CROPPED),
    (unpaired, CROPPED),
    (grouped, {"flip": True}),
]


@pytest.mark.parametrize(("make", "changes"), MADE)
def test_batches_are_those_of_the_disk(make: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of({**make(tmp_path / "images"), **changes})
    on_disk = load(spec)
    kept = with_images_on(GPU, on_disk, spec, room=2**30)
    assert kept.train.on_gpu is not None
    assert (kept.replay is None) == (on_disk.replay is None)
    for expected, found in zip(batches(on_disk, spec), batches(kept, spec), strict=True):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.inputs, expected.inputs)
        assert found.images.is_contiguous()
        assert (found.labels is None) == (expected.labels is None)
        assert [each.key for each in found.ids] == [each.key for each in expected.ids]


def test_images_that_do_not_fit_stay_on_the_disk(tmp_path: Path) -> None:
    spec = spec_of(digits(tmp_path))
    data = load(spec)
    size = data.train.stored.nbytes + data.val.stored.nbytes  # type: ignore[union-attr]
    assert with_images_on(GPU, data, spec, room=size).train.on_gpu is not None
    assert with_images_on(GPU, data, spec, room=size - 1) == replace(data)


def test_images_to_be_degraded_and_those_on_demand_stay_on_the_disk(tmp_path: Path) -> None:
    noisy = spec_of({**digits(tmp_path), "degrade": {"noise": 0.1}})
    on_demand = spec_of({**sixteen_bits(tmp_path / "images"), "cache_gb": 1e-6})
    for spec in (noisy, on_demand):
        assert with_images_on(GPU, load(spec), spec, room=2**30).train.on_gpu is None
