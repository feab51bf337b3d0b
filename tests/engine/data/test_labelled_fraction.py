"""Semi-supervised data: which training labels are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import run_spec
from PIL import Image

from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.sources.builtin import Digits
from ftae.specs.finetune.sources.folders import ImageFolder


def digits(share: float, **fields: Any) -> Dataset:
    return load_dataset(
        Digits.model_validate({"source": "digits", "resolution": 8, "labelled_fraction": share, **fields})
    )


def labels(data: Dataset) -> np.ndarray:
    assert data.train.labels is not None
    return data.train.labels


def test_a_share_of_each_class_keeps_its_label() -> None:
    everything, some = digits(1.0), digits(0.1)
    kept = labels(some) >= 0
    assert (labels(some)[kept] == labels(everything)[kept]).all()
    assert (labels(some)[~kept] == -1).all()
    assert np.bincount(labels(some)[kept]) == pytest.approx(0.1 * np.bincount(labels(everything)), abs=0.5)
    assert np.array_equal(some.val.labels, everything.val.labels)  # type: ignore[arg-type]
    assert some.fingerprint == everything.fingerprint
    assert some.class_names == everything.class_names


def test_every_class_keeps_one_and_a_larger_share_keeps_those_of_a_smaller() -> None:
    least, more = digits(1e-6), digits(0.05)
    assert sorted(labels(least)[labels(least) >= 0]) == list(range(10))
    assert (labels(more)[labels(least) >= 0] >= 0).all()
    with pytest.raises(ValueError, match="read-only"):
        labels(least)[0] = 3


def test_a_folder_without_classes_has_none_to_keep(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    spec = ImageFolder(source="image_folder", train=str(tmp_path), resolution=8, labelled_fraction=0.5)
    with pytest.raises(FtaeError, match=r"data.labelled_fraction \(0.5\) needs labels"):
        load_dataset(spec)


def test_the_few_labels_there_are_are_learnt_from(tmp_path: Path) -> None:
    data = {"source": "digits", "resolution": 16, "classes": [0, 1], "labelled_fraction": 0.05}
    spec = run_spec(
        model={"family": "conv_ae", "channels": 8},
        data=data,
        losses={"mse": 1.0, "ce": 1.0},
        max_steps=60,
        num_evals=1,
        batch_size=32,
        metrics=["accuracy"],
    )
    reports = list(finetune(spec, tmp_path))
    assert reports[-1].metrics["val/accuracy"] > 0.9
    # Over all images of a batch, of which 1 in 20 counts: far below log(2), what a guess would cost each of them.
    assert 0.0 < reports[-1].metrics["train/ce"] < 0.05
