"""What the list of files tells is said before any image is decoded, in the words that training has for it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import run_spec
from PIL import Image

from ftae.engine.data.dataset import check_listed, load_run_dataset
from ftae.engine.training.evaluator import check_images
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders: ``flat`` (4 images), ``one`` (1), ``c/cat`` and ``c/dog``, ``v/cat`` and ``v/wolf``, ``cats/cat``."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for place in ("flat", "c/cat", "c/dog", "v/cat", "v/wolf", "cats/cat"):
        Path(place).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"{place}/{i}.png")
    Path("one").mkdir()
    shutil.copy("flat/0.png", "one")
    return tmp_path


def run(data: dict[str, Any], metrics: tuple[str, ...] = ("psnr",), ce: float = 0.0) -> FinetuneSpec:
    data = {"source": "image_folder", "resolution": 16, **data}
    return run_spec(data=data, metrics=metrics, **{"losses.ce": ce})


def replayed(**data: Any) -> dict[str, Any]:
    return {"train": "flat", "replay": {"source": "image_folder", "share": 0.5, **data}}


UNFIT = {
    "one image for a share": (run({"train": "one"}), "data.val as a share needs at least 2 readable images, found 1"),
    "train is val": (run({"train": "flat", "val": "flat"}), "must be separate folders"),
    "val inside train": (run({"train": "c", "val": "c/cat"}), "must be separate folders"),
    "other classes": (run({"train": "c", "val": "v"}), "class folders wolf, but data.train has only cat, dog"),
    "classes in val alone": (run({"train": "flat", "val": "v"}), "data.train has no class folders"),
    "no class of this name": (run({"train": "c", "anomaly_classes": ["cow"]}), "data.anomaly_classes must be one of"),
    "only anomalies": (run({"train": "cats", "anomaly_classes": ["cat"]}), "names all classes"),
    "anomalies without classes": (run({"train": "flat", "anomaly_classes": ["cat"]}), "anomaly_classes needs classes"),
    "no anomaly in val": (
        run({"train": "c", "val": "cats", "anomaly_classes": ["dog"]}),
        "data.anomaly_classes: no validation image is of dog",
    ),
    "no normal image in val": (
        run({"train": "c", "val": "cats", "anomaly_classes": ["cat"]}),
        "data.val (cats) has no readable image that is not of data.anomaly_classes",
    ),
    "labels without classes": (run({"train": "flat", "labelled_fraction": 0.5}), "data.labelled_fraction (0.5) needs"),
    "linear_probe without classes": (run({"train": "flat"}, ("linear_probe",)), "linear_probe needs labels"),
    "linear_probe with one class": (run({"train": "cats"}, ("linear_probe",)), "training images of at least 2 classes"),
    "one class is left": (
        run({"train": "v", "anomaly_classes": ["cat"]}, ("psnr", "auroc")).model_copy(
            update={"metrics": ("linear_probe",)}
        ),
        "training images of at least 2 classes",
    ),
    "accuracy without labels in val": (
        run({"train": "c", "val": "flat"}, ("accuracy",), ce=1.0),
        "accuracy needs labels: put the images of each class into a sub-folder of data.val",
    ),
    "one validation image": (
        run({"train": "flat", "val": "one"}).model_copy(update={"metrics": ("active_units",)}),
        "metrics: active_units needs at least 2 validation images, data has 1",
    ),
    "ce without classes": (run({"train": "flat"}, ce=1.0), "losses.ce needs labels"),
    "replay of one image": (run(replayed(train="one")), "needs at least 2 readable images"),
    "replay is its own val": (run(replayed(train="c", val="c")), "must be separate folders"),
    "val is replayed": (run({**replayed(train="c"), "val": "c"}), "must be separate folders"),
    "no such folder": (run({"train": "gone"}), "there is no image folder gone"),
    "a patch that is too large": (run({"source": "photos", "resolution": 512}), "does not fit into"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.usefixtures("home")
def test_validation_says_what_training_says(name: str, cache: Path) -> None:
    spec, told = UNFIT[name]
    with pytest.raises(FtaeError) as listed:
        check_listed(spec)
    assert told in str(listed.value)
    assert not (cache / "images").exists()
    with pytest.raises(FtaeError) as loaded:
        check_images(spec, load_run_dataset(spec))
    assert str(loaded.value) == str(listed.value)


FIT = {
    "flat": run({"train": "flat"}),
    "classes": run({"train": "c"}, ("linear_probe", "accuracy"), ce=1.0),
    "two folders": run({"train": "c", "val": "cats"}, ("linear_probe",)),
    "val without classes": run({"train": "c", "val": "flat"}),
    "anomalies": run({"train": "c", "anomaly_classes": ["dog"]}, ("auroc",)),
    "anomalies in val alone": run({"train": "cats", "val": "v", "anomaly_classes": ["wolf"]}, ("auroc",)),
    "replay": run(replayed(train="c")),
}


@pytest.mark.parametrize("name", FIT)
@pytest.mark.usefixtures("home")
def test_nothing_is_said_of_images_that_are_fit(name: str) -> None:
    assert check_listed(FIT[name]) == []
    assert load_run_dataset(FIT[name]).notes == ()


@pytest.mark.usefixtures("home")
def test_one_class_tells_nothing_apart() -> None:
    (note,) = check_listed(run({"train": "cats"}, ("accuracy",), ce=1.0))
    assert note == "losses.ce and accuracy distinguish nothing: all images are of the class cat"
