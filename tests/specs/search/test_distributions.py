"""Distributions take the type of their leaf, and allow no value with which a trial would be invalid."""

import json
from contextlib import suppress
from itertools import combinations, product
from typing import Any

import pytest
from builders import search_spec
from pydantic import TypeAdapter, ValidationError

from ftae.errors import FtaeError
from ftae.specs import Choices, FinetuneSpec, Range, SearchSpec
from ftae.specs.reading.problems import dotted, problems
from ftae.specs.search import space as search_space
from ftae.specs.search.space import FileDistribution, coerced, joint_problems, validation_errors

RUN = FinetuneSpec.model_validate(
    {
        "model": {"family": "conv_vae"},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0, "kl": 1e-4},
        "optimizer": {"lr": 1e-3, "lr_multipliers": {"encoder": 0.5}},
        "max_steps": 100,
    }
)
READER: TypeAdapter[Any] = TypeAdapter(FileDistribution)


def held(path: str, entry: dict[str, Any]) -> Any:
    return coerced(RUN, path, READER.validate_python(entry))


def faults(path: str, entry: dict[str, Any]) -> list[str]:
    distribution = READER.validate_python(entry)
    with pytest.raises(ValidationError) as caught:
        coerced(RUN, path, distribution)
    return [f"{dotted(at)}: {rule}" for at, rule in problems(type(distribution), caught.value)]


@pytest.mark.parametrize(
    ("path", "entry", "expected"),
    [
        ("optimizer.lr", {"low": "1e-6", "high": "1e-2", "log": True}, Range(low=1e-6, high=1e-2, log=True)),
        ("optimizer.lr", {"low": "1e-3", "high": 1}, Range(low=1e-3, high=1.0)),
        ("optimizer.lr", {"low": 0.0005, "high": "2e-3", "step": "5e-4"}, Range(low=5e-4, high=2e-3, step=5e-4)),
        ("optimizer.lr", {"choices": ["1e-4", "1e-3", 1]}, Choices(choices=(1e-4, 1e-3, 1.0))),
        ("batch_size", {"low": 1.0, "high": "64", "log": True}, Range(low=1, high=64, log=True)),
        ("batch_size", {"low": 8, "high": 32, "step": 8.0}, Range(low=8, high=32, step=8)),
        ("freeze_depth", {"choices": [0, 2.0, "3"]}, Choices(choices=(0, 2, 3))),
        ("freeze", {"choices": [[], ["encoder.*", "bottleneck"]]}, Choices(choices=((), ("encoder.*", "bottleneck")))),
        ("max_grad_norm", {"choices": ["0.5", 1, None]}, Choices(choices=(0.5, 1.0, None))),
        ("max_grad_norm", {"low": "0.1", "high": 1}, Range(low=0.1, high=1.0)),
        ("optimizer.name", {"choices": ["adamw", "sgd"]}, Choices(choices=("adamw", "sgd"))),
        ("data.flip", {"choices": [True, False]}, Choices(choices=(True, False))),
        ("sample_posterior", {"choices": ["yes", "no"]}, Choices(choices=(True, False))),
        ("optimizer.lr_multipliers.encoder", {"low": "1e-1", "high": 1}, Range(low=0.1, high=1.0)),
        ("losses.tv", {"low": "1e-5", "high": 1, "or_off": True},
         Range(low=1e-5, high=1.0, or_off=True).with_off(0.0)),
        ("freeze_depth", {"low": 2, "high": 4, "or_off": True}, Range(low=2, high=4, or_off=True).with_off(0)),
        ("max_grad_norm", {"low": 0.1, "high": 1, "or_off": True}, Range(low=0.1, high=1.0, or_off=True)),
    ],
)  # fmt: skip
def test_bounds_and_choices_take_the_type_of_the_leaf(path: str, entry: dict[str, Any], expected: Any) -> None:
    result = held(path, entry)
    assert result == expected
    pairs = zip(result.corners(), expected.corners(), strict=True)
    assert all(type(a) is type(b) for a, b in pairs)
    assert isinstance(result, Choices) or type(result.step) is type(expected.step)


@pytest.mark.parametrize(
    ("path", "entry", "expected"),
    [
        ("batch_size", {"low": 1.5, "high": 64}, ["low: must be a whole number, got 1.5"]),
        ("batch_size", {"low": 0, "high": 8.5},
         ["low: must be greater than or equal to 1, got 0", "high: must be a whole number, got 8.5"]),
        ("batch_size", {"low": 8, "high": 32, "step": 0.5}, ["step: must be a whole number, got 0.5"]),
        ("optimizer.lr", {"low": 0, "high": 1}, ["low: must be greater than 0, got 0"]),
        ("optimizer.lr", {"choices": [1e-3, None, "x"]},
         ["choices.1: must be a number, got null", "choices.2: must be a number, got 'x'"]),
        ("optimizer.lr", {"choices": [1e-3, "1e-3"]}, ["choices.1: choices must differ, got 0.001 twice"]),
        ("freeze", {"choices": [[], [1]]}, ["choices.1.0: must be text in quotes, got 1"]),
        ("optimizer.name", {"choices": ["adamw", "adamm"]},
         ["choices.1: must be one of adamw, adam, radam, sgd, got 'adamm', did you mean 'adam'?"]),
        ("optimizer.name", {"low": 1, "high": 2},
         [": low and high need a numeric leaf, list its values as {choices: [...]}"]),
        ("batch_size", {"low": 9, "high": 12},
         [": must contain finetune's own value (8), the first configuration tried"]),
        ("batch_size", {"low": 2, "high": 12, "step": 5},
         [": must contain finetune's own value (8), the first configuration tried"]),
        ("optimizer.lr", {"low": 1e-4, "high": 1, "or_off": True},
         ["or_off: needs a leaf that may be 0 or null; this one may be neither"]),
        ("losses.tv", {"low": 0, "high": 1, "or_off": True},
         ["low: must be above 0, which is the value of or_off for off, got 0.0"]),
        ("losses.ssim", {"choices": [0.0, -1]}, ["choices.1: must be greater than or equal to 0, got -1"]),
        ("data.resolution", {"choices": [16, 8]},
         [": with 8: metrics.1: ssim needs a resolution of at least 16, got 8"]),
    ],
)  # fmt: skip
def test_a_value_that_is_refused_has_its_place(path: str, entry: dict[str, Any], expected: list[str]) -> None:
    assert faults(path, entry) == expected


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (Range(low=1, high=5), [1, 3, 5], [0, 6, None, "3", True]),
        (Range(low=0.0, high=1.0, step=0.1), [0.3, 0.7, 1.0], [0.35, 1.1]),
        (Range(low=1, high=9, step=4), [1, 5, 9], [3]),
        (Choices(choices=(0.5, None)), [0.5, None], [1.0]),
        (Range(low=0.1, high=1.0, or_off=True).with_off(0.0), [0.0, 0.1, 1.0], [0.05, None]),
        (Range(low=0.1, high=1.0, or_off=True), [None, 0.5], [0.0]),
        (Choices(choices=((), ("a",))), [(), ("a",)], [("b",)]),
    ],
)
def test_a_distribution_contains_its_values(distribution: Any, inside: list[Any], outside: list[Any]) -> None:
    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)


def search(space: dict[str, Any], **run: Any) -> SearchSpec:
    finetune = {**RUN.model_dump(), **run}
    return search_spec(finetune=finetune, search_space=space, search={})


def test_every_trial_the_space_allows_is_valid_or_the_search_is_refused() -> None:
    space: dict[str, Any] = {"losses.mse": {"choices": [0, 1]}, "losses.kl": {"low": 1e-5, "high": 1, "or_off": True}}
    with pytest.raises(ValidationError, match=r"losses\.kl: with 0\.0 and losses\.mse 0\.0: losses: at least one of"):
        search(space)
    space = {f"losses.{term}": {"low": 0, "high": 1} for term in ("mse", "kl", "tv")}
    with pytest.raises(ValidationError, match="with every number at its lowest: losses: at least one of"):
        search(space, losses={"mse": 1.0, "kl": 1e-4, "tv": 0.1})
    del space["losses.mse"]
    assert search(space).trial_spec({"losses.kl": 0.0, "losses.tv": 0.0}).losses.weights() == {"mse": 1.0}


@pytest.mark.parametrize("path", ["max_steps", "num_evals", "metrics", "num_threads", "frozen_cache_gb"])
def test_leaves_that_must_be_the_same_in_all_trials_cannot_be_searched(path: str) -> None:
    with pytest.raises(ValidationError, match=f"{path}: cannot be searched"):
        search({path: {"low": 1, "high": 100}})


def test_rungs_are_distinct_and_end_before_the_budget_whatever_the_factor() -> None:
    spec = search({"freeze_depth": {"low": 0, "high": 2}}, max_steps=8, num_evals=4)
    assert spec.rung_steps() == [2, 4, 6]
    narrow = SearchSpec.model_validate(
        {
            **spec.model_dump(),
            "search": {"scheduler": {"name": "asha", "reduction_factor": 1.01, "grace_fraction": 0.2}},
        }
    )
    assert narrow.rung_steps() == [2, 3, 4, 5, 6, 7]


def test_file_params_and_trial_spec_use_the_paths_of_the_space() -> None:
    spec = search(
        {"optimizer.lr_multipliers.encoder": {"low": 0.1, "high": 1}, "freeze": {"choices": [[], ["encoder"]]}}
    )
    assert spec.file_params() == {"optimizer.lr_multipliers.encoder": 0.5, "freeze": ()}
    trial = spec.trial_spec({"optimizer.lr_multipliers.encoder": 0.2, "freeze": ["encoder"]})
    assert trial.optimizer.lr_multipliers == {"encoder": 0.2}
    assert trial.freeze == ("encoder",)


# ------------------------------------------------------------------- values that do not fit each other


WEIGHT = {"low": 0.0, "high": 1.0}
LEAVES: dict[str, dict[str, Any]] = {
    "losses.mse": {"choices": [0.0, 0.5, 1.0]},
    "losses.kl": {"low": 1e-5, "high": 1.0, "or_off": True},
    "losses.tv": WEIGHT,
    "losses.huber": WEIGHT,
    "losses.huber_delta": {"choices": [0.1, 0.2]},
    "losses.ssim": WEIGHT,
    "losses.ce": WEIGHT,
    "losses.adversarial": WEIGHT,
    "data.resolution": {"choices": [16, 32]},
    "data.random_crop_from": {"choices": [None, 24, 48]},
    "data.flip": {"choices": [False, True]},
    "data.labelled_fraction": {"choices": [0.5, 1.0]},
    "data.degrade.blur": {"choices": [0.0, 6.0]},
    "data.degrade.noise": {"choices": [0.0, 0.1]},
    "discriminator.depth": {"choices": [1, 2]},
    "discriminator.start_fraction": {"choices": [0.2, 0.6]},
    "discriminator.ramp_fraction": {"choices": [0.1, 0.6]},
    "discriminator.adaptive": {"choices": [False, True]},
    "discriminator.max_adaptive_weight": {"choices": [10.0, 100.0]},
    "discriminator.warmup_fraction": {"choices": [0.0, 0.1]},
    "sample_posterior": {"choices": [False, True]},
    "optimizer.name": {"choices": ["adamw", "sgd"]},
    "optimizer.lr": {"low": 1e-4, "high": 1e-2},
    "optimizer.betas": {"choices": [None, [0.5, 0.9]]},
    "optimizer.momentum": {"choices": [None, 0.9]},
    "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
    "schedule.final_fraction": {"choices": [0.0, 0.1]},
    "schedule.num_cycles": {"choices": [2, 3]},
    "batch_size": {"choices": [4, 8]},
    "freeze_depth": {"choices": [0, 2]},
    "max_grad_norm": {"choices": [0.5, 1.0]},
}
RUNS: list[dict[str, Any]] = [
    {},
    {"losses": {"mse": 0.5, "kl": 0.0, "adversarial": 0.1}},
    {"data": {"source": "digits", "resolution": 16, "degrade": {"noise": 0.1}}, "metrics": ["psnr"]},
    {"data": {"source": "digits", "resolution": 32, "random_crop_from": 48}, "losses": {"mse": 1.0, "ce": 1.0}},
    {"optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9}, "schedule": {"name": "cosine", "final_fraction": 0.1}},
]


@pytest.mark.parametrize("run", RUNS)
def test_the_pairs_that_are_tried_find_every_pair_that_is_refused(run: dict[str, Any]) -> None:
    finetune = FinetuneSpec.model_validate({**RUN.model_dump(), **run})
    space = {}
    for path, entry in LEAVES.items():
        with suppress(ValidationError, FtaeError):
            space[path] = coerced(finetune, path, READER.validate_python(entry))
    assert len(space) > 15
    refused = 0
    for (path, some), (other, others) in combinations(space.items(), 2):
        expected = any(
            validation_errors(finetune, {path: value, other: other_value})
            for value, other_value in product(some.corners(), others.corners())
        )
        found = [at for at, _ in joint_problems(finetune, {path: some, other: others})]
        assert ((other,) in found) is expected, f"{path} and {other}"
        refused += expected
    assert refused > 0


def test_a_wide_space_of_many_choices_takes_few_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    """They grow with the leaves and their values, not with the square of both."""
    validated = 0
    validate = search_space.apply_overrides

    def counting(spec: Any, values: Any) -> Any:
        nonlocal validated
        validated += 1
        return validate(spec, values)

    monkeypatch.setattr(search_space, "apply_overrides", counting)
    counts = []
    for num in (4, 8, 16):
        choices = [float(i) for i in range(1, num + 1)]
        space: dict[str, Any] = {f"losses.{term}": {"choices": choices} for term in ("mse", "l1", "tv", "edge", "kl")}
        space |= {f"optimizer.lr_multipliers.g{i}": {"choices": choices} for i in range(6)}
        space |= {"max_grad_norm": {"choices": choices}, "ema_half_life_fraction": {"choices": [None, 0.5]}}
        multipliers = {f"g{i}": 1.0 for i in range(6)}
        losses = dict.fromkeys(("mse", "l1", "tv", "edge", "kl"), 1.0)
        validated = 0
        search(space, losses=losses, optimizer={"lr": 1e-3, "lr_multipliers": multipliers})
        counts.append(validated)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
    assert counts[2] < 12 * 16 + 50


def test_a_trusted_search_is_the_same_and_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {
        "losses.kl": {"low": 1e-5, "high": 1.0, "or_off": True},
        "max_grad_norm": {"low": 0.1, "high": 1.0, "or_off": True},
        "freeze": {"choices": [[], ["encoder"]]},
        "freeze_depth": {"low": 0, "high": 4, "step": 2},
    }
    spec = search(space)
    monkeypatch.setattr(search_space, "validation_errors", lambda run, values: pytest.fail("checked again"))
    for dumped in (spec.model_dump(), json.loads(spec.model_dump_json())):
        trusted = SearchSpec.trusted(dumped)
        assert trusted == spec
        assert [d.corners() for d in trusted.search_space.values()] == [d.corners() for d in spec.search_space.values()]
        assert trusted.digest() == spec.digest()
