"""``data.replay``: images of another domain in every batch, and what is measured on them."""

import re
from pathlib import Path
from typing import Any

import pytest
from builders import run_dict, search_spec
from pydantic import TypeAdapter, ValidationError

from ftae.specs.finetune.data import AnyData
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.builtin import Digits
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.specs.reading.problems import problems
from ftae.specs.search.lint import warnings
from ftae.specs.search.search import SearchSpec


def data(**replay: Any) -> dict[str, Any]:
    return {"source": "digits", "resolution": 16, "replay": {"source": "digits", "share": 0.25, **replay}}


def search(metric: str = "val/psnr", space: Any = None, replay: Any = None, **run: Any) -> SearchSpec:
    finetune = run_dict(**{"data": data(**(replay or {})), "losses": {"mse": 1.0}, **run})
    space = space or {"data.replay.share": {"choices": [0.0, 0.25, 0.5]}}
    changes: dict[str, Any] = {"objective.metric": metric, "search.num_trials": 3}
    return search_spec(finetune=finetune, search_space=space, **changes)


def test_resolution_and_colour_are_those_of_the_data() -> None:
    spec = ImageFolder.model_validate(
        {"source": "image_folder", "train": "a", "resolution": 64, "color": "grey"}
        | {"replay": {"source": "image_folder", "train": "b", "share": 0.1}}
    )
    assert spec.replay is not None
    assert (spec.replay.resolution, spec.replay.color) == (64, "grey")
    assert ImageFolder.model_validate(spec.model_dump()) == spec


def test_each_source_has_its_own_defaults() -> None:
    for source in ({"source": "digits"}, {"source": "photos"}, {"source": "image_folder", "train": "a"}):
        plain = TypeAdapter(AnyData).validate_python({**source, "resolution": 16, "color": "grey"})
        spec = Digits.model_validate({"source": "digits", "resolution": 16, "replay": {**source, "share": 0.1}})
        assert spec.replay is not None
        assert spec.replay.model_dump(exclude={"share"}) == plain.model_dump()


@pytest.mark.parametrize(
    ("replay", "place", "rule"),
    [
        ({"resolution": 32}, "replay.resolution", r"must be that of data \(16\), got 32"),
        ({"color": "rgb"}, "replay.color", r"must be that of data \(grey\), got 'rgb'"),
        ({"share": 1.0}, "replay.share", "less than 1"),
        ({"share": -0.1}, "replay.share", "greater than or equal to 0"),
        ({"shear": 0.1}, "replay.shear", "did you mean 'share'"),
        (
            {"source": "digit"},
            "replay.source",
            "must be one of image_folder, archive, shards, pairs, unpaired, arrays, digits, digit_edges, "
            "digit_domains, photos, shapes, got 'digit'",
        ),
        ({"labelled_fraction": 0.5}, "replay.labelled_fraction", "has no effect on replayed images"),
        ({"anomaly_classes": [1]}, "replay.anomaly_classes", "has no effect on replayed images"),
        ({"replay": {"source": "digits", "share": 0.1}}, "replay.replay", "has no effect on replayed images"),
    ],
)
def test_replayed_images_that_do_not_fit_are_refused(replay: dict[str, Any], place: str, rule: str) -> None:
    with pytest.raises(ValidationError) as error:
        Digits.model_validate(data(**replay))
    [(location, found)] = problems(Digits, error.value)
    assert ".".join(map(str, location)) == place
    assert re.search(rule, found)


def test_the_objective_may_be_a_metric_of_replayed_images() -> None:
    assert search("val_source/psnr").objective.metric == "val_source/psnr"
    with pytest.raises(ValidationError, match="must be one of val/psnr, val/ssim, val_source/psnr, val_source/ssim"):
        search("val_source/l1")
    plain: dict[str, Any] = {"data": {"source": "digits", "resolution": 16}}
    with pytest.raises(ValidationError, match=r"finetune\.metrics lacks it"):
        search("val_source/psnr", space={"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, **plain)


def test_metrics_that_replayed_images_cannot_have_are_left_out() -> None:
    run: dict[str, Any] = {"metrics": ["psnr", "accuracy", "auroc", "input_psnr"], "losses": {"mse": 1, "ce": 1}}
    both = data(degrade={"noise": 0.1}) | {"degrade": {"noise": 0.1}, "anomaly_classes": [3]}
    assert search(**run, data=both).finetune.source_metrics() == ("psnr", "input_psnr")
    clean = data() | {"degrade": {"noise": 0.1}, "anomaly_classes": [3]}
    assert search(**run, data=clean).finetune.source_metrics() == ("psnr",)


def test_the_share_can_be_searched_without_a_warning() -> None:
    assert warnings(search()) == []


def test_a_share_of_no_image_and_images_that_are_not_measured_get_a_warning() -> None:
    too_small = warnings(
        search(replay={"share": 0.05}, space={"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, batch_size=4)
    )
    assert "data.replay.share has no effect: 0.05 of a batch of 4 is no image" in too_small
    not_measured = warnings(search("val/accuracy", losses={"mse": 1, "ce": 1}, metrics=["accuracy"]))
    assert any("what the model still knows of data.replay is not measured" in text for text in not_measured)


@pytest.mark.parametrize("leaf", ["labelled_fraction", "anomaly_classes", "replay"])
def test_a_conditional_model_needs_the_label_of_every_image(leaf: str) -> None:
    fields = data() | {"labelled_fraction": 0.5, "anomaly_classes": [1]}
    one = {name: fields[name] for name in ("source", "resolution", leaf)}
    with pytest.raises(ValidationError, match=f"conv_cvae needs the label of every image, data.{leaf} brings"):
        search(model={"family": "conv_cvae"}, data=one)


def test_the_folders_of_replayed_images_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run: FinetuneSpec = search(
        replay={"source": "image_folder", "train": "a", "val": "b"}
    ).finetune.with_absolute_paths()
    assert isinstance(run.data.replay, ImageFolder)
    assert (run.data.replay.train, run.data.replay.val) == (str(tmp_path / "a"), str(tmp_path / "b"))
