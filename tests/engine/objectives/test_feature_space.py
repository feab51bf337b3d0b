"""Features of an encoder of ftae: their scale, one pass for all metrics, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MODELS, built, spec_of
from torch import Tensor, nn

from ftae.engine.models.pretrained.model_folder import CONFIG, weights_digest
from ftae.engine.objectives.feature_metrics import FEATURE_METRICS, FeatureSets
from ftae.engine.objectives.feature_space import FeatureSpace
from ftae.engine.objectives.sample_metrics import kernel_distance
from ftae.engine.sizing import summarize
from ftae.engine.training.evaluator import check_metrics, evaluate_all
from ftae.engine.training.loop import finetune
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that ftae wrote, untrained, below their names."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("conv_ae", "conv_vae", "conv_cvae", "unet_translator"):
        (folder / name).mkdir()
        built(MODELS[name]).save(folder / name)
    return folder


def judged(folder: Path, model: str = "conv_ae", net: str = "conv_ae", **changes: Any) -> FinetuneSpec:
    features = {"net": "encoder", "weights": str(folder / net)}
    return spec_of(MODELS[model], **{"features": features, "metrics": list(FEATURE_METRICS)} | changes)


def values(trainer: Trainer) -> dict[str, float]:
    with trainer.averaged():
        return evaluate_all(trainer.eval_sets)[0]


class Counting(nn.Module):
    """Counts the images that it is shown; its features are ``factor`` times those of ``inner``."""

    def __init__(self, inner: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.inner, self.factor, self.seen = inner, factor, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        features: Tensor = self.factor * self.inner(images)
        return features


@pytest.fixture
def counted(folder: Path) -> Callable[..., Any]:
    """Makes a trainer, and the network of its features."""

    def make(factor: float = 1.0, **changes: Any) -> tuple[Trainer, Counting]:
        trainer = Trainer(judged(folder, **changes))
        inner = trainer.auxiliary.features
        assert inner is not None
        counting = Counting(inner, factor)
        object.__setattr__(trainer.auxiliary, "features", counting)
        return trainer, counting

    return make


def test_all_metrics_share_one_pass_and_real_images_are_kept(counted: Any) -> None:
    trainer, network = counted()
    num_train, num_val = len(trainer.data.train), len(trainer.data.val)
    first = values(trainer)
    assert network.seen == num_train + 2 * num_val
    assert values(trainer) == first
    assert network.seen == num_train + 3 * num_val


def test_training_images_take_the_place_of_outputs_or_of_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    real, made, train = torch.randn(30, 4), 2.0 * torch.randn(20, 4), torch.randn(80, 4)
    monkeypatch.setattr(FeatureSpace, "train", train)
    space = object.__new__(FeatureSpace)
    sets = FeatureSets(real, made, space)
    swapped = {"train": FeatureSets(train[:30], made, space), "floor": FeatureSets(real, train[:20], space)}
    for name in ("fid", "precision", "recall", "diversity"):
        for end in METRICS[name].beside:
            assert FEATURE_METRICS[f"{name}_{end}"](sets) == FEATURE_METRICS[name](swapped[end])
    assert FEATURE_METRICS["kid_train"](sets) == kernel_distance(train, made)  # without bias: of all training images
    assert FEATURE_METRICS["kid_floor"](sets) == kernel_distance(train, real)
    copies = FeatureSets(real, train[:30], space)
    assert FEATURE_METRICS["fid_train"](copies) < 0.01 < FEATURE_METRICS["fid"](copies)


def test_a_floor_is_computed_once(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = counted(metrics=["fid_floor", "kid_train"])
    first = values(trainer)
    for name in ("fid_floor", "kid_train"):
        monkeypatch.setitem(FEATURE_METRICS, name, lambda sets: 7.0)
    assert values(trainer) == first | {"val/kid_train": 7.0}


def test_a_floor_needs_training_images(counted: Any) -> None:
    trainer, _ = counted(metrics=["fid_floor"])
    few = trainer.data.train.subset(slice(9))
    with pytest.raises(FtaeError, match="metrics: fid_floor needs at least 10 training images, data has 9"):
        check_metrics(["fid_floor"], few, trainer.data.val)


def test_some_of_the_images_have_the_scale_of_all(counted: Any) -> None:
    trainer, network = counted(metrics=["fid"])
    for _ in range(2):
        evaluate_all([trainer.eval_sets[0].first(16)])
    assert network.seen == len(trainer.data.train) + 3 * 16  # a probe does not take it for a part of each evaluation


def test_the_scale_of_the_network_does_not_count(counted: Any) -> None:
    small, large = (values(counted(factor)[0]) for factor in (1.0, 1000.0))
    assert small == pytest.approx(large, rel=1e-4)


def test_a_generator_makes_further_images(counted: Any) -> None:
    metrics = ["fid", "kid", "recall"]  # the training images give the scale alone
    few = {"model": "dcgan", "metrics": metrics, "num_samples": 10}
    trainer, network = counted(**few)
    num_train, num_val = len(trainer.data.train), len(trainer.data.val)
    by_few = values(trainer)
    assert network.seen == num_train + 2 * num_val  # one for each validation image at the least
    trainer, network = counted(**few | {"num_samples": 100})
    assert values(trainer)["val/kid"] != by_few["val/kid"]
    assert network.seen == num_train + num_val + 100


def test_a_generator_is_measured_in_a_run(folder: Path, tmp_path: Path) -> None:
    spec = judged(folder, "dcgan", metrics=["kid", "diversity"], num_samples=50, max_steps=2, num_evals=1)
    reports = [list(finetune(spec, tmp_path / name, reuse=ModelReuse())) for name in ("first", "second")]
    assert [report.metrics["val/kid"] for report in reports[0]] == [r.metrics["val/kid"] for r in reports[1]]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model": "conv_ae"}, "has no effect, conv_ae gives one output for each image"),
        ({"model": "dcgan", "metrics": ["sharpness"]}, "has no effect, no metric compares sets of images"),
        ({"model": "dcgan", "metrics": ["rfid"], "num_samples": None}, "rfid compares each output with an image"),
    ],
)
def test_samples_without_effect_are_refused(folder: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        judged(folder, **{"num_samples": 50, **changes})


@pytest.mark.parametrize("net", ["conv_ae", "conv_vae"])
def test_latents_are_the_features(folder: Path, net: str) -> None:
    network = Trainer(judged(folder, net=net)).auxiliary.features
    assert network is not None
    images = torch.rand(2, 3, 16, 16)
    model = built(MODELS[net])
    assert torch.equal(network(images).flatten(), model.encode(model.to_range(images)).mode.flatten())


@pytest.mark.parametrize(
    ("net", "data", "rule"),
    [
        ("nothing", {}, "nothing is not a folder that ftae train or ftae export wrote"),
        ("", {}, "holds no model of a family of ftae"),
        ("unet_translator", {}, "holds a unet_translator: name an autoencoder that takes images alone"),
        ("conv_cvae", {}, "holds a conv_cvae: name an autoencoder that takes images alone"),
        ("conv_vae", {"resolution": 32}, "takes images of 16 pixels a side, got data.resolution 32"),
        ("conv_ae", {"color": "grey"}, "the model takes 3 image channels"),
    ],
)
def test_other_models_are_refused(folder: Path, net: str, data: dict[str, Any], rule: str) -> None:
    given = judged(folder).data.model_dump(exclude_unset=True) | data
    with pytest.raises(FtaeError, match=f"features.weights: .*{rule}"):
        summarize(judged(folder, net=net, data=given), 2)


def test_a_users_own_module_is_not_imported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / CONFIG).write_text(json.dumps({"family": "antigravity:fly"}))
    with pytest.raises(FtaeError, match="holds no model of a family of ftae"):
        summarize(judged(tmp_path, net="own"), 2)


def test_the_weights_have_a_digest(folder: Path) -> None:
    digests = [weights_digest(str(folder / name)) for name in ("conv_ae", "conv_vae", "nothing")]
    assert digests[2] is None
    assert len(set(digests)) == 3
