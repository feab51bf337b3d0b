"""Warnings about a valid file: each appears where it should, and nowhere else."""

from typing import Any

import pytest
from builders import run_dict, search_spec

from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.search.lint import warnings


def search(space: dict[str, Any] | None = None, objective: Any = None, settings: Any = None, **run: Any) -> SearchSpec:
    plain = {"model": {"family": "conv_vae", "pretrained": "models/digits"}, "losses": {"mse": 1.0}, "num_evals": 6}
    return search_spec(
        finetune=run_dict(**{**plain, "max_steps": 100, **run}),
        search_space=space or {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
        objective=objective or {"metric": "val/psnr", "direction": "maximize"},
        search={"num_trials": 2, **(settings or {})},
    )


UNTRAINED = {"family": "conv_vae"}
OWN = {"family": "nets:Net", "image_range": "0..1"}
GRADIENT = {"family": "vq_vae", "codebook": "gradient"}
WEIGHT = {"low": 0, "high": 1}

WARNED = [
    (search(losses={"mse": 1, "kl_warmup_fraction": 0.1}), "losses.kl_warmup_fraction has no effect: losses.kl is 0"),
    (search(losses={"mse": 1, "huber_delta": 0.2}), "losses.huber_delta has no effect: losses.huber is 0"),
    (search({"losses.huber_delta": {"low": 0.01, "high": 1}}), "losses.huber_delta is searched without effect"),
    (search({"schedule.num_cycles": {"low": 2, "high": 5}}),
     "schedule.num_cycles is searched without effect: schedule.name is 'constant' in every trial"),
    (search({"optimizer.momentum": {"low": 0.1, "high": 0.9}, "optimizer.name": {"choices": ["adam", "adamw"]}}),
     "optimizer.momentum is searched without effect: optimizer.name is 'adam' or 'adamw' in every trial"),
    (search(losses={"mse": 1, "ce": 0.1}), "losses.ce trains a classification head that no metric measures"),
    (search({"losses.ce": {"low": 0.1, "high": 1}}, losses={"mse": 1, "ce": 0.1}),
     "losses.ce trains a classification head"),
    (search(discriminator={"depth": 1, "r1": 1}),
     "discriminator (depth, r1) has no effect: losses.adversarial is 0"),
    (search({"discriminator.lr": {"low": 1e-5, "high": 1e-3}}),
     "discriminator.lr is searched without effect: losses.adversarial is 0 in every trial"),
    (search(model=UNTRAINED, freeze_depth=1), "frozen stages keep random weights"),
    (search({"freeze_depth": {"low": 0, "high": 2}}, model=UNTRAINED), "frozen stages keep random weights"),
    (search({"data.val": {"choices": [0.1, 0.2]}}),
     "data.val is searched, so that trials are not measured on the same"),
    (search(objective={"metric": "val/psnr", "direction": "minimize"}), "objective.direction is minimize, but val/psnr "
     "is better where it is higher"),
    (search(objective={"metric": "val/mse", "direction": "maximize"}, metrics=["mse"]),
     "objective.direction is maximize, "
     "but val/mse is better where it is lower"),
    (search({"data.flip": {"choices": [False, True]}}, settings={"num_trials": 3}),
     "search.num_trials (3) exceeds the 2 configurations of the search space: the search ends when all of them"),
    (search({"losses.huber_delta": {"choices": [0.1, 0.2, 1.0]}, "losses.huber": {"choices": [0.0, 1.0]}},
            settings={"num_trials": 5}), "search.num_trials (5) exceeds the 4 configurations"),
    (search({"freeze_depth": {"low": 1, "high": 5, "step": 2, "or_off": True}}, settings={"num_trials": 16}),
     "search.num_trials (16) exceeds the 4 configurations"),
    (search(settings={"num_trials": 4, "max_concurrent": 8}), "search.max_concurrent (8) is never reached: "
     "search.num_trials is 4"),
    (search(settings={"resources": {"gpus_per_trial": 2}}, device="cpu"),
     "search.resources reserves GPUs that no trial uses: finetune.device is cpu"),
    (search(settings={"scheduler": {"name": "asha", "grace_fraction": 0.9}}),
     "no trial can be stopped early: no evaluation "
     "lies between search.scheduler.grace_fraction (0.9)"),
    (search(num_evals=1), "no trial can be stopped early"),
    (search(model=GRADIENT, losses={"mse": 1, "commitment": 0.25}),
     "the codes stay as they are: they are trained by gradient"),
]  # fmt: skip

NOT_WARNED = [
    search(),
    search(model=GRADIENT, losses={"mse": 1, "commitment": 0.25, "codebook": 1}),
    search({"losses.codebook": WEIGHT}, model=GRADIENT),
    search(model={"family": "vq_vae"}, losses={"mse": 1, "commitment": 0.25}),
    search(losses={"mse": 1, "kl": 1e-4, "kl_warmup_fraction": 0.1}),
    search({"losses.kl": WEIGHT}, losses={"mse": 1, "kl_warmup_fraction": 0.1}),
    search({"losses.huber": WEIGHT, "losses.huber_delta": {"low": 0.01, "high": 1}}),
    search(losses={"mse": 1, "ce": 0.1}, metrics=["psnr", "accuracy"]),
    search({"losses.huber": WEIGHT | {"low": 0.1, "or_off": True}, "losses.huber_delta": {"low": 0.01, "high": 1}}),
    search({"losses.ce": WEIGHT | {"low": 0.1, "or_off": True}}),
    search({"losses.ce": WEIGHT}),  # accuracy could not be measured in every trial
    search({"losses.adversarial": WEIGHT, "discriminator.lr": {"low": 1e-5, "high": 1e-3}}, discriminator={"r1": 1}),
    search(losses={"mse": 1, "adversarial": 0.1}, discriminator={"r1": 1}),
    search({"data.flip": {"choices": [False, True]}}),
    search({"freeze_depth": {"low": 0, "high": 2}}),
    search({"freeze_depth": {"low": 0, "high": 2}}, model=OWN, freeze=["encoder"]),  # it may load its own weights
    search(objective={"metric": "val/kl", "direction": "minimize"}, metrics=["kl"]),
    search(objective={"metric": "val/kl", "direction": "maximize"}, metrics=["kl"]),
    search(settings={"num_trials": 8, "max_concurrent": 8}),
    search({"freeze_depth": {"low": 0, "high": 2}}, settings={"num_trials": 3}),
    search({"losses.tv": WEIGHT | {"low": 0.1, "or_off": True}}, settings={"num_trials": 500}),
    search(settings={"scheduler": {"name": "fifo"}}),
    search(settings={"resources": {"gpus_per_trial": 2}}),
    search(settings={"resources": {"workers": 2}}, device="cpu"),
]


@pytest.mark.parametrize(("spec", "expected"), WARNED, ids=[expected[:40] for _, expected in WARNED])
def test_a_warning_is_one_sentence(spec: SearchSpec, expected: str) -> None:
    (sentence,) = warnings(spec)
    assert sentence.startswith(expected)
    assert "\n" not in sentence


@pytest.mark.parametrize("spec", NOT_WARNED)
def test_settings_with_an_effect_get_no_warning(spec: SearchSpec) -> None:
    assert warnings(spec) == []


def test_a_production_run_gets_the_warnings_about_runs_alone() -> None:
    finetune = search(losses={"mse": 1, "kl_warmup_fraction": 0.1, "ce": 1}, num_evals=1).finetune
    found = warnings(ProductionSpec(name="a", finetune=finetune))
    assert [sentence.split()[0] for sentence in found] == ["losses.kl_warmup_fraction", "losses.ce"]
