"""Metrics as the run reported them, the error of each image, and the maps of the worst."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import small_search
from PIL import Image

from ftae.errors import FtaeError
from ftae.inference import evaluate
from ftae.inference.model import TunedModel, load_model
from ftae.inference.pictures import INFERNO, heat, named_folder, validation_names
from ftae.inference.source import find_model, with_settings
from ftae.results.replay import replay

SEARCH = small_search()


@pytest.fixture(scope="session")
def model(home: Path) -> TunedModel:
    return load_model(find_model(str(home / "exports/small"), "searches", notify=lambda line: None))


def test_the_figures_are_those_of_the_run(home: Path) -> None:
    """To the last digit: of the best trial, its export, a training run, and the baseline."""
    record = replay(home / "searches/small")
    last = replay(home / "runs/digits").trials[1].metrics
    assert record.baseline is not None
    best, untuned = record.ranked()[0].metrics, record.baseline.metrics
    storage = str(home / "searches")
    expected = [("small", {}, best), (str(home / "exports/small"), {}, best), (str(home / "runs/digits"), {}, last)]
    for name, chosen, metrics in [*expected, ("small", {"baseline": True}, untuned)]:
        model = load_model(find_model(name, storage, notify=lambda line: None, **chosen))
        images = evaluate.evaluation_images(model, None)
        names = evaluate.choose_metrics(model, images, None)
        measured = evaluate.measure(model, images, names)
        assert {f"val/{name}": value for name, value in measured.items()} == {
            name: value for name, value in metrics.items() if name.startswith("val/")
        }


def test_every_image_has_a_line(model: TunedModel, tmp_path: Path) -> None:
    images = evaluate.evaluation_images(model, None)
    found = evaluate.score_images(model, images)
    evaluate.write_scores(images, found, tmp_path / "below" / "scores.csv")
    with (tmp_path / "below" / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines] == list(images.names or ())
    assert {line["label"] for line in lines} == {"3", "7"}
    assert np.mean([float(line["psnr"]) for line in lines]) == pytest.approx(
        evaluate.measure(model, images, ("psnr",))["psnr"], abs=1e-9
    )
    assert [float(line["mse"]) for line in lines] == found.mse.tolist()


def test_names_are_those_of_the_images(pictures: Path) -> None:
    """Each stored image is the decoded file of its name; the broken one is left out of both."""
    spec = SEARCH.finetune.data
    found = named_folder(str(pictures), spec)
    assert len(found.names.images) == 12
    assert found.notes[0].startswith("1 image cannot be read and is skipped: 3/picture 99: broken.png: ")
    assert found.images.labels is not None
    for name, pixels, label in zip(found.names.images, found.images.images, found.images.labels, strict=True):
        grey = Image.open(pictures / name).convert("L").resize((16, 16), Image.Resampling.LANCZOS, box=(2, 0, 22, 20))
        assert np.abs(np.asarray(grey).astype(int) - pixels[:, :, 0]).max() <= 1
        assert name.split("/")[0] == (found.class_names or ())[label]


@pytest.mark.parametrize("apart", [False, True])
def test_validation_images_have_names_as_long_as_their_files_are_there(apart: bool, pictures: Path) -> None:
    from ftae.engine.data.dataset import load_dataset
    from ftae.specs.finetune.sources.folders import ImageFolder

    val = str(pictures / "7") if apart else 0.25
    train = str(pictures / "3") if apart else str(pictures)
    spec = ImageFolder(source="image_folder", train=train, val=val, resolution=16)
    names, images = validation_names(spec), load_dataset(spec).val.images
    assert names is not None
    assert len(names.images) == len(images) == (6 if apart else 3)
    whole = named_folder(str(pictures / "7") if apart else str(pictures), spec)
    for name, image in zip(names.images, images, strict=True):
        assert np.array_equal(whole.images.images[whole.names.images.index(name)], image)


def test_names_of_files_that_changed_are_not_told(pictures: Path, tmp_path: Path) -> None:
    from ftae.engine.data.dataset import load_dataset
    from ftae.specs.finetune.sources.folders import ImageFolder

    shutil.copytree(pictures, tmp_path / "copy")
    spec = ImageFolder(source="image_folder", train=str(tmp_path / "copy"), val=0.25, resolution=16)
    pinned = spec.model_copy(update={"fingerprint": load_dataset(spec).fingerprint})
    assert validation_names(pinned) == validation_names(spec)
    next((tmp_path / "copy" / "3").iterdir()).unlink()
    load_dataset.cache_clear()
    assert len(load_dataset(pinned).val) == 3
    assert validation_names(pinned) is None
    shutil.rmtree(tmp_path / "copy")
    load_dataset.cache_clear()
    assert validation_names(pinned) is None


def test_other_images(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    images = evaluate.evaluation_images(model, str(pictures))
    assert len(images.images) == 12
    assert "1 image cannot be read" in images.notes[0]
    assert images.classes == tuple(name.split("/")[0] for name in images.names or ())
    assert "accuracy" in evaluate.choose_metrics(model, images, None)
    shutil.copytree(pictures / "3", tmp_path / "plain")
    plain = evaluate.evaluation_images(model, str(tmp_path / "plain"))
    assert (plain.classes, evaluate.choose_metrics(model, plain, None)) == (None, ("psnr", "ssim"))
    reason = "accuracy needs the classes the model was trained with; these images have none of them"
    assert (evaluate.unavailable_metrics(model, plain), evaluate.unavailable_metrics(model, images)) == ([reason], [])
    with pytest.raises(FtaeError, match=reason):
        evaluate.choose_metrics(model, plain, ["accuracy"])
    with pytest.raises(FtaeError, match="rfid needs at least 10 validation images, data has 6"):
        evaluate.choose_metrics(model, plain, ["rfid"])


def test_classes_that_the_model_does_not_know_are_told_but_not_used(
    model: TunedModel, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures / "3", tmp_path / "all" / "4")
    images = evaluate.evaluation_images(model, str(tmp_path / "all"))
    assert (set(images.classes or ()), images.images.labels) == ({"4"}, None)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["psnrr"], r"a metric must be one of mse, .* did you mean 'psnr'\?"),
        (["latent_drift"], r"metrics\.0: latent_drift compares with the pretrained model"),
        (["psnr", "psnr"], r"metrics\.1: psnr is given twice"),
    ],
)
def test_metrics_that_cannot_be_measured(model: TunedModel, metrics: list[str], message: str) -> None:
    with pytest.raises(FtaeError, match=message):
        evaluate.choose_metrics(model, evaluate.evaluation_images(model, None), metrics)


def test_changed_images_are_judged_as_they_are_and_it_is_said(home: Path) -> None:
    source = find_model("small", str(home / "searches"), notify=lambda line: None)
    data = source.spec.data.model_copy(update={"fingerprint": "0" * 32})
    model = load_model(type(source)(source.spec.model_copy(update={"data": data}), source.weights, ""))
    images = evaluate.evaluation_images(model, None)
    assert "The metrics are of the images as they are now" in images.notes[0]


def test_heat_maps_show_the_worst_first(model: TunedModel, tmp_path: Path) -> None:
    images = evaluate.evaluation_images(model, None)
    found = evaluate.score_images(model, images)
    worst = found.worst(3)
    assert found.mse[worst[0]] == found.mse.max()
    assert sorted(found.mse)[::-1][:3] == found.mse[worst].tolist()
    largest = evaluate.write_heat_maps(model, images, worst, tmp_path / "maps.png")
    picture = np.asarray(Image.open(tmp_path / "maps.png"))
    side = 6 * 16  # small images are enlarged to 96 pixels
    assert picture.shape == (3 * (side + 2) - 2, 3 * side, 3)
    inputs = picture[::6, :side:6][:16, :, 0]
    assert np.array_equal(inputs, images.images.images[worst[0], :, :, 0])
    assert (picture[:, 2 * side :].reshape(-1, 3) == INFERNO[-1]).all(1).any()  # the largest error of all
    assert 0 < largest <= 1


def test_colours_of_heat_grow_lighter() -> None:
    colours = heat(np.linspace(0, 1, 200)).astype(float)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1).all()
    assert luminance[0] < 1
    assert luminance[-1] > 240


def test_other_settings(home: Path) -> None:
    source = find_model("small", str(home / "searches"), notify=lambda line: None)
    values = []
    for sets in ([], ["data.shift=invert"]):
        model = load_model(with_settings(source, sets))
        values.append(evaluate.measure(model, evaluate.evaluation_images(model, None), ("psnr",))["psnr"])
    assert values[1] < values[0]


def test_anomalies_have_lines_and_a_metric_of_their_own(home: Path, pictures: Path, tmp_path: Path) -> None:
    source = find_model("small", str(home / "searches"), notify=lambda line: None)
    spec = source.spec.model_copy(update={"losses": source.spec.losses.model_copy(update={"ce": 0.0})})
    spec = spec.model_copy(update={"metrics": ("psnr",)})
    source = with_settings(type(source)(spec, None, ""), ["data.anomaly_classes=['7']"])
    model = load_model(source)
    images = evaluate.evaluation_images(model, None)
    assert images.anomalies is not None
    evaluate.write_scores(images, evaluate.score_images(model, images), tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["label"], line["anomaly"]) for line in lines} == {("3", "0"), ("7", "1")}
    errors = {kind: [float(line["mse"]) for line in lines if line["anomaly"] == kind] for kind in "01"}
    assert len(errors["1"]) == len(images.anomalies)
    pairs = np.subtract.outer(errors["1"], errors["0"])
    auroc = evaluate.measure(model, images, evaluate.choose_metrics(model, images, ["auroc"]))["auroc"]
    assert auroc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)
    evaluate.write_heat_maps(model, images, np.array([0, len(images) - 1]), tmp_path / "maps.png")
    last = np.asarray(Image.open(tmp_path / "maps.png"))[96 + 2 :: 6, :96:6][:, :, 0]
    assert np.array_equal(last, images.anomalies.images[-1, :, :, 0])

    folder = evaluate.evaluation_images(model, str(pictures))
    assert folder.anomalies is not None
    assert (len(folder.images), len(folder.anomalies)) == (6, 6)
    assert folder.classes == ("3",) * 6 + ("7",) * 6
    with pytest.raises(FtaeError, match=r"auroc needs images of data\.anomaly_classes"):
        evaluate.choose_metrics(model, evaluate.evaluation_images(model, str(pictures / "3")), ["auroc"])


NAMES = ["gr\udcfcn.png", "new\nline.png", 'a "quote", a comma;.png', "=1+1.png", "\u00fcber.png", "\x1b[31mred.png"]


def test_any_file_name_is_written_and_told(model: TunedModel, tmp_path: Path) -> None:
    """Names are bytes: a table holds all of them as valid UTF-8, a message each on one line."""
    folder = tmp_path / "in" / "cl\udcfcss"
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.new("L", (16, 16), 99).save(folder / name, format="png")
        (folder / f"broken {name}").write_bytes(b"no image")
    images = evaluate.evaluation_images(model, str(tmp_path / "in"))
    assert all(note.isprintable() for note in images.notes)
    assert images.notes[0].startswith(f"{len(NAMES)} images cannot be read and are skipped: cl\\xfcss/broken ")
    evaluate.write_scores(images, evaluate.score_images(model, images), tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["image"] for line in lines} == {f"cl\\xfcss/{name}".replace("\udcfc", "\\xfc") for name in NAMES}
    assert {line["label"] for line in lines} == {"cl\\xfcss"}
