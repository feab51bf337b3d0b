"""Anomaly detection: anomalies stay out of training, and auroc measures how well they are recognized."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from PIL import Image
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from ftae.engine.data.batches import train_batch
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.models.autoencoder import Encoding
from ftae.engine.objectives.eval_batch import EvalBatch
from ftae.engine.objectives.metrics import Auroc
from ftae.engine.training.evaluator import evaluate_all
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.builtin import Digits
from ftae.specs.finetune.sources.folders import ImageFolder

SHADES = {"bad": 0, "good": 100, "odd": 200, "plain": 50}


def folder(root: Path, *classes: str, count: int = 8) -> str:
    """Class folders of flat images; the shade tells the class, and its last digit the number."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), SHADES[name] + i).save(root / name / f"{i}.png")
    return str(root)


def load(train: str, *anomalies: Any, **fields: Any) -> Dataset:
    fields = {"source": "image_folder", "resolution": 8, "color": "grey", "val": 0.25, **fields}
    return load_dataset(ImageFolder.model_validate({"train": train, "anomaly_classes": anomalies, **fields}))


def shades(images: Any) -> list[int]:
    return sorted(images.images[:, 0, 0, 0].tolist())


def test_anomalies_are_validation_images_alone(tmp_path: Path) -> None:
    data = load(folder(tmp_path / "d", "bad", "good", "odd", "plain"), "odd", "bad")
    assert data.anomalies is not None
    assert shades(data.anomalies) == [*range(8), *range(200, 208)]
    assert sorted(shades(data.train) + shades(data.val)) == [*range(50, 58), *range(100, 108)]
    assert (len(data.train), len(data.val)) == (12, 4)  # the share is of the normal images


def test_normal_classes_are_numbered_without_the_others(tmp_path: Path) -> None:
    data = load(folder(tmp_path / "d", "bad", "good", "odd", "plain"), "odd", "bad")
    assert data.class_names == ("good", "plain")
    for images in (data.train, data.val):
        assert images.labels is not None
        expected = [int(shade < 100) for shade in images.images[:, 0, 0, 0]]
        assert images.labels.tolist() == expected
    assert data.anomalies is not None
    assert data.anomalies.labels is None


def test_no_anomaly_is_in_any_training_batch() -> None:
    spec = Digits.model_validate({"source": "digits", "resolution": 8, "anomaly_classes": [8]})
    plain = Digits.model_validate({"source": "digits", "resolution": 8})
    everything, data = load_dataset(plain), load_dataset(spec)
    eights = {
        image.tobytes()
        for part in (everything.train, everything.val)
        for image, label in zip(part.images, part.labels, strict=True)  # type: ignore[arg-type]
        if label == 8
    }
    assert data.anomalies is not None
    assert {image.tobytes() for image in data.anomalies.images} == eights
    assert len(data.anomalies) == 174  # scikit-learn's
    for number in range(20):
        batch = train_batch(data.train, spec, batch_size=100, batch=number, seed=0, device="cpu")
        pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert not eights & {image.tobytes() for image in pixels}
    assert data.num_classes == 9
    assert data.fingerprint != everything.fingerprint


def test_the_split_of_the_normal_images_stays(tmp_path: Path) -> None:
    train = folder(tmp_path / "d", "bad", "good")
    with_bad, alone = load(train, "bad"), load(folder(tmp_path / "e", "good"))
    assert (with_bad.train.images == alone.train.images).all()
    assert (with_bad.val.images == alone.val.images).all()


def test_a_validation_folder_may_have_anomalies_that_training_lacks(tmp_path: Path) -> None:
    train, val = folder(tmp_path / "t", "good", "plain", "odd"), folder(tmp_path / "v", "bad", "good", "odd", count=3)
    data = load(train, "bad", "odd", val=val)
    assert shades(data.train) == [*range(50, 58), *range(100, 108)]
    assert shades(data.val) == [100, 101, 102]
    assert data.val.labels is not None
    assert data.val.labels.tolist() == [0, 0, 0]
    assert data.anomalies is not None
    assert shades(data.anomalies) == [0, 1, 2, 200, 201, 202]
    with pytest.raises(FtaeError, match=r"data.val .* has the class folders bad, but data.train has only good, plain"):
        load(train, "odd", val=val)


def test_a_pinned_dataset_is_recalled_with_its_anomalies(tmp_path: Path) -> None:
    train = folder(tmp_path / "t", "bad", "good")
    before = load(train, "bad")
    (tmp_path / "t" / "good" / "0.png").unlink()
    load_dataset.cache_clear()
    again = load(train, "bad", fingerprint=before.fingerprint)
    assert again.anomalies is not None
    assert shades(again.anomalies) == list(range(8))
    assert shades(again.train) == shades(before.train)


@pytest.mark.parametrize(
    ("train", "val", "anomalies", "words"),
    [
        (["good", "bad"], None, ["bda"], r"must be one of bad, good, got 'bda', did you mean 'bad'\?"),
        (["good", "bad"], None, ["bad", "good"], "names all classes"),
        (["good", "bad"], ["good"], ["bad"], "no validation image is of bad"),
        (["bad"], ["good", "bad"], ["bad"], r"data.train \(.*\) has no readable image that is not of"),
    ],
)
def test_what_cannot_be(
    train: list[str], val: list[str] | None, anomalies: list[str], words: str, tmp_path: Path
) -> None:
    place = {} if val is None else {"val": folder(tmp_path / "v", *val)}
    with pytest.raises(FtaeError, match=words):
        load(folder(tmp_path / "t", *train), *anomalies, **place)


def test_images_without_classes_have_no_anomalies(tmp_path: Path) -> None:
    folder(tmp_path, "good")
    with pytest.raises(FtaeError, match=r"data\.anomaly_classes needs classes"):
        load(str(tmp_path / "good"), "bad")
    with pytest.raises(ValidationError, match="photos has no labels"):
        spec_of(data={"source": "photos", "resolution": 16, "anomaly_classes": ["a"]})
    with pytest.raises(ValidationError, match=r"data\.anomaly_classes must be one of 0, 1, got '7'"):
        spec_of(data={"source": "digits", "resolution": 16, "classes": [0, 1], "anomaly_classes": [7]})


# ------------------------------------------------------------------------------------------- being judged


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 4, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1], "anomaly_classes": ["1"]},
        "losses": {"mse": 1.0},
        "max_steps": 80,
        "num_evals": 1,
        "batch_size": 16,
        "metrics": ["auroc", "mse", "psnr", "active_units"],
        "num_threads": 1,
    }
    return run_spec(**(fields | changes))


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    metric = Auroc()
    metric.update(wrong_by(0.3))
    metric.update(wrong_by(0.1, 0.2))
    metric.update_anomalies(wrong_by(0.25, 0.3))
    assert metric.compute() == (2 + 2.5) / 6  # a tie is half


def wrong_by(*errors: float) -> EvalBatch:
    """Images by the mse of their reconstruction."""
    target = torch.zeros(len(errors), 1, 2, 2, dtype=torch.float64)
    made = target + torch.tensor(errors, dtype=torch.float64).sqrt().reshape(-1, 1, 1, 1)
    return EvalBatch(target, target, made, Encoding(torch.zeros(len(errors), 1)), None, None)


def test_auroc_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randint(0, 20, (90,), generator=generator)  # with many ties
    anomalous = torch.randint(5, 25, (40,), generator=generator)
    metric = Auroc()
    metric.update(wrong_by(*normal.tolist()))
    metric.update_anomalies(wrong_by(*anomalous.tolist()))
    theirs = roc_auc_score([0] * 90 + [1] * 40, torch.cat([normal, anomalous]))
    assert metric.compute() == pytest.approx(theirs, abs=1e-12)


def test_all_other_metrics_are_of_the_normal_images(tmp_path: Path) -> None:
    found, collapse_signs = evaluate_all(Trainer(spec_of()).eval_sets)
    without = evaluate_all(Trainer(spec_of(metrics=["mse", "psnr", "active_units"])).eval_sets)
    assert without == ({n: v for n, v in found.items() if n != "val/auroc"}, collapse_signs)


def test_auroc_does_not_depend_on_the_batch_size() -> None:
    found = [evaluate_all(Trainer(spec_of(batch_size=size)).eval_sets)[0]["val/auroc"] for size in (3, 16, 500)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-3)


def test_a_model_of_zeros_does_not_know_ones(tmp_path: Path) -> None:
    first, last = finetune(spec_of(), tmp_path)
    assert last.metrics["val/auroc"] > max(0.95, first.metrics["val/auroc"])


def test_auroc_needs_anomalies() -> None:
    with pytest.raises(ValidationError, match="auroc needs anomalies"):
        spec_of(data={"source": "digits", "resolution": 16})
