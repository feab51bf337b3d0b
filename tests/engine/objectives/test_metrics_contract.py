"""What every metric promises: a number, a refusal before the run, or "non-finite"; never an error of a library."""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from vision_weights import random_weights

from ftae.engine.data.batches import val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.engine.objectives.auxiliary import SIDES
from ftae.engine.objectives.eval_batch import EvalContext
from ftae.engine.objectives.feature_metrics import FEATURE_METRICS
from ftae.engine.objectives.metrics import CollapseDetector, Evaluation
from ftae.engine.sizing import probe
from ftae.engine.training.evaluator import (
    EvalSet,
    check_images,
    check_metrics,
    evaluate_all,
    missing_for,
    missing_in_training,
    run_batch,
)
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import FinetuneRun, finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune import needs
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec

MODEL = {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4}
DATA = {"source": "shapes", "resolution": 20, "num_images": 40, "val": 0.3}
# What a run gets for a metric that needs it; the model has a posterior, and its images labels and known factors.
GIVEN: dict[Any, dict[str, Any]] = {
    needs.codes: {"model": {"family": "vq_vae", "channels": 4, "codebook_size": 8, "code_dim": 2}},
    needs.head: {"losses": {"mse": 1.0, "ce": 0.1}},
    needs.other_inputs: {"data": DATA | {"degrade": {"noise": 0.1}}},
    needs.both_ways: {
        "model": {"family": "cyclegan", "channels": 2, "blocks": 1},
        "data": {"source": "digit_domains", "resolution": 20, "classes": [0], "val": 0.1},
        "losses": {"adversarial": 1.0, "cycle": 10.0},
        "discriminator": {"channels": 2, "depth": 1},
    },
    needs.anomalies: {"data": DATA | {"anomaly_classes": ["circle"]}},
    needs.discriminator: {
        "losses": {"mse": 1.0, "adversarial": 0.1},
        "discriminator": {"channels": 4, "start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0},
    },
    needs.perceptual: {"perceptual": {"net": "squeezenet", "weights": random_weights("squeezenet")}},
    needs.features: {"features": {"net": "resnet18", "weights": random_weights("resnet18")}},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and forests that take no time."""
    monkeypatch.setitem(SIDES, "resnet18", 32)
    monkeypatch.setattr("ftae.engine.objectives.latent_metrics.TREES", 3)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pretrained")
    spec = spec_of("mse", "")
    *_, last = finetune(spec, folder / "run")
    export_model(spec, folder / "run" / str(last.checkpoint), folder / "model")
    return str(folder / "model")


# All metrics; of those that compare with training images, which are computed alike, three.
WITH_TRAINING = ("kid_train", "kid_floor", "fid_floor")


@pytest.fixture(params=[n for n, facts in METRICS.items() if not facts.least_train_images or n in WITH_TRAINING])
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spec_of(metric: str, pretrained: str, **changes: Any) -> FinetuneSpec:
    """A run that fulfils the needs of the metric, and measures it alone."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "data": DATA,
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "batch_size": 5,
        "max_steps": 1,
        "num_evals": 1,
        "metrics": [metric],
        "num_threads": 1,
    }
    for need in METRICS[metric].needs:
        fields |= GIVEN.get(need, {})
        if need is needs.reference:
            fields["model"] = MODEL | {"pretrained": pretrained}
    if metric == "ms_ssim":
        fields["data"] = DATA | {"resolution": 176}
    fields["data"] = fields["data"] | changes.pop("data", {})
    return run_spec(**fields | changes)


def judged(spec: FinetuneSpec) -> EvalSet:
    return Trainer(spec).eval_sets[0]


def value(part: EvalSet) -> float:
    metrics, _ = evaluate_all([part])
    return next(iter(metrics.values()))


def is_refused(metric: str, part: EvalSet) -> bool:
    """Whether a run on these images is refused; then the message names the metric and what it needs."""
    reason = missing_for(metric, part.images) or missing_in_training(metric, part.context.train)
    if reason is None:
        return False
    assert re.search(r"at least \d+|labels|edges", reason)
    with pytest.raises(FtaeError, match=f"metrics: {metric} needs {re.escape(reason)}"):
        check_metrics([metric], part.context.train, part.images)
    return True


@pytest.mark.parametrize("batch_size", [1, 100])  # the last is more than there are
def test_values_of_a_run_lie_within_the_bounds(metric: str, batch_size: int, pretrained: str, tmp_path: Path) -> None:
    facts = METRICS[metric]
    for report in finetune(spec_of(metric, pretrained, batch_size=batch_size), tmp_path):
        assert facts.low <= report.metrics[f"val/{metric}"] <= facts.high


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_probe_works_with_small_batches(metric: str, batch_size: int, pretrained: str) -> None:
    found = probe(spec_of(metric, pretrained, batch_size=batch_size))
    assert 0 < found.eval_seconds < math.inf


def test_one_image_gives_a_number_or_is_refused(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained)).first(1)
    assert is_refused(metric, part) or math.isfinite(value(part))
    spec = spec_of(metric, pretrained, data={"val": 0.03})
    if is_refused(metric, part):
        with pytest.raises(FtaeError, match=f"metrics: {metric} needs"):
            Trainer(spec)


def test_the_least_number_of_images_gives_a_number(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained)).first(METRICS[metric].least_images)
    assert is_refused(metric, part) or math.isfinite(value(part))


# ------------------------------------------------------------------------------------------- ruined models


def everything(number: float) -> Callable[[EvalContext], None]:
    def ruin(context: EvalContext) -> None:
        for parameter in context.autoencoder.parameters():
            parameter.data.fill_(number)

    return ruin


def encoder(number: float) -> Callable[[EvalContext], None]:
    """Latents alone may be beyond all bounds where what decodes them is bounded."""

    def ruin(context: EvalContext) -> None:
        for stage in context.autoencoder.stages:
            for parameter in stage.parameters() if stage.group == "encoder" else ():
                parameter.data.fill_(number)

    return ruin


RUINED = {
    "nan": everything(math.nan),
    "infinite": everything(math.inf),
    "infinite_latents": encoder(math.inf),
    "huge_latents": encoder(1e30),
}


@pytest.mark.parametrize("ruin", RUINED.values(), ids=RUINED)
def test_a_ruined_model_gives_no_value(ruin: Callable[[EvalContext], None], metric: str, pretrained: str) -> None:
    if needs.both_ways in METRICS[metric].needs and ruin is not RUINED["nan"] and ruin is not RUINED["infinite"]:
        pytest.skip("its features are normalised")
    run = FinetuneRun(spec_of(metric, pretrained), Path("unused"))
    ruin(run.eval_sets[0].context)
    assert not math.isfinite(value(run.eval_sets[0]))


def test_a_value_that_is_not_finite_fails_the_run_by_name(metric: str, pretrained: str, tmp_path: Path) -> None:
    run = FinetuneRun(spec_of(metric, pretrained), tmp_path)
    run.report()
    everything(math.nan)(run.eval_sets[0].context)
    run.step = 1
    with pytest.raises(TrainingFailed, match=f"non-finite val/{metric} at step 1"):
        run.report()


def test_a_ruined_pretrained_model_is_refused(metric: str, pretrained: str, tmp_path: Path) -> None:
    run = FinetuneRun(spec_of(metric, pretrained), tmp_path)
    everything(math.nan)(run.eval_sets[0].context)
    with pytest.raises(FtaeError, match=f"val/{metric} of the model as it was given is nan"):
        run.report()


@pytest.mark.parametrize("metric", [*FEATURE_METRICS, "lpips"])
def test_features_that_are_not_finite_give_no_number(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))
    network = part.context.auxiliary.features or part.context.auxiliary.perceptual
    assert network is not None
    for parameter in network.parameters():
        parameter.data.fill_(math.nan)
    assert math.isnan(value(part))


# ------------------------------------------------------------------------------------------- poor images


def test_constant_latents_give_a_number(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))
    everything(0.0)(part.context)
    assert math.isfinite(value(part))


def test_black_images_give_a_number_or_are_refused(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))

    def black(images: ImageSet) -> ImageSet:
        return replace(images, stored=np.zeros_like(images.images), rows=None, complete=None)

    part = replace(part, images=black(part.images), context=replace(part.context, train=black(part.context.train)))
    assert is_refused(metric, part) or math.isfinite(value(part))


@pytest.mark.parametrize("labels", [[0], [0] * 20 + [1], [-1] * 20 + [0, 1]], ids=["one", "one_sample", "unlabelled"])
def test_poor_labels_give_a_number_or_are_refused(labels: list[int], metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))
    train = part.context.train
    poor = np.resize(np.array(labels), len(train))
    part = replace(part, context=replace(part.context, train=replace(train, labels=poor)))
    assert is_refused(metric, part) or math.isfinite(value(part))


def test_images_without_labels_give_a_number_or_are_refused(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))
    without = [replace(images, labels=None) for images in (part.images, part.context.train)]
    for images, train in [(without[0], part.context.train), (part.images, without[1])]:
        poor = replace(part, images=images, context=replace(part.context, train=train))
        assert is_refused(metric, poor) or math.isfinite(value(poor))


def test_factors_without_variation_give_a_number_or_are_refused(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained))
    if part.images.factors is None:
        pytest.skip("its images have none")
    for kept in (0, 1):
        factors = part.images.factors * (np.arange(part.images.factors.shape[1]) < kept)
        poor = replace(part, images=replace(part.images, factors=factors))
        assert is_refused(metric, poor) or math.isfinite(value(poor))


def test_drift_from_constant_latents_is_refused(pretrained: str, tmp_path: Path) -> None:
    run = FinetuneRun(spec_of("latent_drift", pretrained), tmp_path)
    assert run.auxiliary.reference is not None
    for parameter in run.auxiliary.reference.parameters():
        parameter.data.zero_()
    with pytest.raises(FtaeError, match="val/latent_drift of the model as it was given is nan"):
        run.report()


def test_replayed_images_are_checked_too(pretrained: str) -> None:
    replay = {"source": "digits", "classes": [0], "val": 0.05, "share": 0.0}
    data = {"source": "digits", "classes": [0, 1], "resolution": 20, "replay": replay}
    spec = FinetuneSpec.model_validate(spec_of("rfid", pretrained).model_dump() | {"data": data})
    with pytest.raises(FtaeError, match=r"rfid needs at least 10 validation images, data\.replay has 9"):
        check_images(spec, load_dataset(spec.data))


# ------------------------------------------------------------------------------------------- memory


def numbers_in(thing: Any, seen: set[int] | None = None) -> int:
    """How many numbers can be reached from an object."""
    seen = set() if seen is None else seen
    if isinstance(thing, (int, float)):
        return 1
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return math.prod(thing.shape)
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple, set)):
        return sum(numbers_in(item, seen) for item in thing)
    return numbers_in(vars(thing), seen) if hasattr(thing, "__dict__") else 0


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that take the first images, or some at a time, take 20 of them."""
    limits = ("feature_metrics.MOST_IMAGES", "latent_metrics.FACTOR_IMAGES", "metrics.POSITION_IMAGES")
    for name in limits:
        monkeypatch.setattr(f"ftae.engine.objectives.{name}", 20)


@pytest.mark.usefixtures("_few_images")
@torch.no_grad()
def test_memory_does_not_grow_with_the_images(metric: str, pretrained: str) -> None:
    part = judged(spec_of(metric, pretrained)).first(5)
    spec, context = part.context.spec, part.context
    evaluation, collapse_signs, counts = Evaluation(context), CollapseDetector(spec), []
    (batch,) = val_batches(part.images, spec.data, batch_size=5, device="cpu")
    inputs = run_batch(context.autoencoder.eval(), batch)
    for shown in range(5, 61, 5):
        evaluation.update(inputs)
        collapse_signs.update(inputs)
        if shown in (20, 60):
            counts.append(numbers_in([evaluation, collapse_signs]))
    assert counts[1] - counts[0] == (40 if metric == "auroc" else 0)  # which needs the order of all errors
