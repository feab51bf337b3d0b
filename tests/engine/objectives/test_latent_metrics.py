"""Metrics of latents are best where each factor has a latent to itself, and lowest where latents are noise."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from pydantic import ValidationError
from torch import Tensor

from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.autoencoder import Encoding
from ftae.engine.models.families import build_model
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.latent_metrics import Dci, Mig
from ftae.engine.training.evaluator import check_metrics, evaluate
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 8, "latent_dim": 6},
        "data": {"source": "shapes", "resolution": 16, "num_images": 400},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 3e-3},
        "batch_size": 32,
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["linear_probe", "mig", "dci"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def of(latents: Tensor, factors: Tensor) -> EvalBatch:
    images = torch.zeros(len(latents), 1, 1, 1)
    return EvalBatch(images, images, images, Encoding(latents), None, None, factors)


def measured(metric: Mig | Dci, latents: Tensor, factors: Tensor, batch_size: int = 1000) -> float:
    for part in zip(latents.split(batch_size), factors.split(batch_size), strict=True):
        metric.update(of(*part))
    return metric.compute()


@pytest.fixture
def factors() -> Tensor:
    return torch.cartesian_prod(*(torch.arange(n) for n in (3, 4, 5))).repeat(5, 1)


@pytest.mark.parametrize("metric", [Mig, Dci])
def test_one_latent_for_each_factor_is_best_and_rotated_latents_are_worse(metric: Any, factors: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    own = factors * torch.tensor([2.0, -1.0, 0.5]) + 7
    rotated, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    noise = torch.randn(len(factors), 3, generator=generator)
    best = measured(metric(), torch.cat([own, noise[:, :2]], dim=1), factors)
    mixed = measured(metric(), (factors - factors.float().mean(0)) @ rotated, factors)
    assert best > 0.9
    assert mixed < best - 0.2
    assert measured(metric(), noise, factors) < 0.2
    assert measured(metric(), torch.zeros(len(factors), 3), factors) == 0.0


def test_mig_by_hand() -> None:
    factors = torch.tensor([[0], [0], [1], [1]])
    latents = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert measured(Mig(), latents, factors) == pytest.approx(1.0)  # the first has all information, the other none
    assert measured(Mig(), latents[:, [0, 0]], factors) == pytest.approx(0.0)  # both have the same information
    latents[3, 0] = 0.0  # now it has 0.2158 of 0.6931 nats
    assert measured(Mig(), latents, factors) == pytest.approx(0.2157615 / np.log(2), rel=1e-5)


def test_dci_is_low_where_one_latent_serves_two_factors(factors: Tensor) -> None:
    both = factors[:, :2].float() @ torch.tensor([[4.0], [1.0]])  # one latent for two factors
    shared = measured(Dci(), both, factors[:, :2])
    own = measured(Dci(), factors[:, :2].float(), factors[:, :2])
    assert own == pytest.approx(1.0, abs=0.02)
    assert shared < 0.1


def test_without_factors_that_vary_there_is_no_value(factors: Tensor) -> None:
    one = factors * torch.tensor([1, 0, 0])
    assert measured(Mig(), factors.float(), one) > 0.0
    assert math.isnan(measured(Mig(), factors.float(), one * 0))
    assert math.isnan(measured(Dci(), factors.float(), one))


@pytest.mark.parametrize("metric", [Mig, Dci])
def test_values_depend_neither_on_batches_nor_on_random_state(metric: Any, factors: Tensor) -> None:
    latents = torch.randn(len(factors), 4, generator=torch.Generator().manual_seed(0)) + factors[:, [0, 1, 2, 0]]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    values = {measured(metric(), latents, factors, batch_size) for batch_size in (1000, 7, 1)}
    assert len(values) == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def context_of(spec: FinetuneSpec) -> EvalContext:
    dataset = load_dataset(spec.data)
    return EvalContext(
        build_model(spec, dataset.num_classes), spec, AuxiliaryNetworks(), dataset.train, torch.device("cpu")
    )


def test_a_whole_evaluation_does_not_depend_on_the_batch_size() -> None:
    results = []
    for batch_size in (32, 7):
        context = context_of(spec_of(batch_size=batch_size))
        results.append(evaluate(context, load_dataset(context.spec.data).val)[0])
    assert results[0] == pytest.approx(results[1], abs=0.02)  # the last digits of latents may cross a bin
    assert all(0 <= value <= 1 for value in results[0].values())


def test_the_probe_leaves_out_images_without_a_label() -> None:
    context = context_of(spec_of(metrics=["linear_probe"]))
    val = load_dataset(context.spec.data).val
    assert context.train.labels is not None
    assert val.labels is not None
    everything = evaluate(context, val)[0]["linear_probe"]
    half = np.where(np.arange(len(context.train)) < 200, context.train.labels, -1)
    fewer = replace(context, train=replace(context.train, labels=half))
    same = replace(context, train=context.train.subset(slice(200)))
    assert evaluate(fewer, val) == evaluate(same, val)
    first = np.where(np.arange(len(val)) < 40, val.labels, -1)
    assert evaluate(context, replace(val, labels=first)) == evaluate(context, val.subset(slice(40)))
    assert 1 / 3 < everything <= 1
    one = replace(context.train, labels=np.zeros(len(context.train), np.int64))
    with pytest.raises(FtaeError, match="linear_probe needs training images of at least 2 classes, data has 1"):
        check_metrics(["linear_probe"], one, val)


def test_the_probe_finds_nothing_in_random_labels() -> None:
    context = context_of(spec_of(data={"source": "digits", "resolution": 16}, metrics=["linear_probe"]))
    val = load_dataset(context.spec.data).val
    assert val.labels is not None
    accuracy = evaluate(context, val)[0]["linear_probe"]
    shuffled = np.random.default_rng(0).permutation(val.labels)
    assert accuracy > 0.4  # ten classes, untrained latents
    assert evaluate(context, replace(val, labels=shuffled))[0]["linear_probe"] < 0.2


@pytest.mark.parametrize(
    ("metric", "source", "reason"),
    [
        ("mig", "digits", "needs images with known factors of variation, those of digits are not known"),
        ("dci", "photos", "needs images with known factors of variation, those of photos are not known"),
        ("linear_probe", "photos", "needs labels, photos has none"),
    ],
)
def test_metrics_that_the_data_does_not_support_are_refused(metric: str, source: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"{metric} {reason}"):
        spec_of(metrics=[metric], data={"source": source, "resolution": 16})


def test_a_weight_of_the_kl_far_too_high_ends_as_posterior_collapse(tmp_path: Path) -> None:
    def run(kl: float) -> None:
        list(finetune(spec_of(losses={"mse": 1.0, "kl": kl}, max_steps=60, metrics=["mig"]), tmp_path / str(kl)))

    run(1e-4)
    with pytest.raises(TrainingFailed, match="posterior collapse"):
        run(100.0)
