"""Settings that have an effect only where another one is on, and the params that trials get."""

from pathlib import Path
from typing import Any

import pytest
from builders import run_spec, search_spec

from ftae.specs import FinetuneSpec, SearchSpec
from ftae.specs.reading.overrides import apply_overrides, value_at
from ftae.specs.reading.schema import Governed
from ftae.specs.search.distributions import CONDITIONS, conditions_of, covers, default_of, drop_inactive, has_effect


def run(**changes: Any) -> FinetuneSpec:
    return run_spec(**{"losses": {"mse": 1.0}, "max_steps": 100, **changes})


@pytest.mark.parametrize("setting", CONDITIONS)
def test_every_condition_names_existing_settings_and_values(setting: str) -> None:
    spec, condition = run(losses={"mse": 1.0, "adversarial": 0.1}), CONDITIONS[setting]
    assert value_at(spec, setting) == default_of(spec, setting)
    for value in condition.values:
        changed = drop_inactive(spec, {condition.governor: value})
        assert condition.governor in changed
        assert has_effect(spec, setting, changed)
    assert any(not condition.holds(value) for value in (0.0, None, False, "constant", "sgd", "adamw", "none", "other"))


def test_a_section_goes_back_to_its_defaults() -> None:
    spec = run(losses={"mse": 1.0, "adversarial": 0.1}, discriminator={"r1": 1.0, "max_adaptive_weight": 9.0})
    kept = apply_overrides(spec, drop_inactive(spec, {"losses.adversarial": 0.2, "discriminator.lr": 1e-3}))
    assert (kept.discriminator.lr, kept.discriminator.r1) == (1e-3, 1.0)
    off = apply_overrides(spec, drop_inactive(spec, {"losses.adversarial": 0.0, "discriminator.lr": 1e-3}))
    assert off.discriminator == type(off.discriminator)()
    fixed = apply_overrides(spec, drop_inactive(spec, {"discriminator.adaptive": False}))
    assert (fixed.discriminator.max_adaptive_weight, fixed.discriminator.r1) == (100.0, 1.0)


def test_paths_among_choices_become_absolute() -> None:
    spec = search(
        {
            "losses.adversarial": {"low": 0.1, "high": 1.0, "or_off": True},
            "discriminator.pretrained": {"choices": [None, "models/d.pt"]},
        }
    )
    [none, path] = spec.with_absolute_paths().search_space["discriminator.pretrained"].corners()
    assert (none, path) == (None, str(Path("models/d.pt").absolute()))


def test_a_section_is_covered_with_all_below_it() -> None:
    assert covers("discriminator", "discriminator")
    assert covers("discriminator", "discriminator.lr")
    assert not covers("discriminator", "discriminators.lr")
    assert [str(condition) for condition in conditions_of("discriminator.lr")] == ["losses.adversarial is on"]


def test_a_leaf_depends_on_its_governor_and_on_what_governs_that(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {"losses.kl_capacity": Governed("losses.kl"), "losses.kl": Governed("losses.huber")}
    monkeypatch.setattr("ftae.specs.search.distributions.CONDITIONS", chain)
    assert [c.governor for c in conditions_of("losses.kl_capacity")] == ["losses.kl", "losses.huber"]
    assert conditions_of("optimizer.lr") == []
    on = run(losses={"huber": 1.0, "kl": 1e-3, "kl_capacity": 5.0})
    assert has_effect(on, "losses.kl_capacity", {})
    assert not has_effect(on, "losses.kl_capacity", {"losses.huber": 0.0})
    assert not has_effect(on, "losses.kl_capacity", {"losses.kl": 0.0})
    given = {"losses.mse": 1.0, "losses.huber": 0.0, "losses.kl": 1e-2, "losses.kl_capacity": 3.0}
    assert drop_inactive(on, given) == {
        "losses.mse": 1.0,
        "losses.huber": 0.0,
        "losses.kl": 0.0,
        "losses.kl_capacity": None,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"losses.kl": 1e-3, "losses.kl_capacity": 5.0}, {"losses.kl": 1e-3, "losses.kl_capacity": 5.0}),
        ({"losses.kl": 0.0, "losses.kl_capacity": 5.0},
         {"losses.kl": 0.0, "losses.kl_capacity": None, "losses.kl_warmup_fraction": 0.0}),
        ({"losses.kl_capacity": 5.0, "optimizer.lr": 0.1}, {"optimizer.lr": 0.1}),  # the file has no KL
        ({"schedule.name": "cyclical", "schedule.num_cycles": 5},
         {"schedule.name": "cyclical", "schedule.num_cycles": 5}),
        ({"schedule.name": "cosine", "schedule.num_cycles": 5}, {"schedule.name": "cosine", "schedule.num_cycles": 3}),
        ({"optimizer.name": "sgd", "optimizer.betas": (0.5, 0.9), "optimizer.momentum": 0.8},
         {"optimizer.name": "sgd", "optimizer.momentum": 0.8, "optimizer.betas": None}),
    ],
)  # fmt: skip
def test_settings_without_effect_go_back_to_their_defaults(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert drop_inactive(run(), given) == expected


def search(space: dict[str, Any], **changes: Any) -> SearchSpec:
    return search_spec(finetune=run(**changes).model_dump(), search_space=space)


def test_schedules_are_searched_with_the_settings_of_one_of_them() -> None:
    space = {
        "schedule.name": {"choices": ["constant", "cosine", "cyclical"]},
        "schedule.num_cycles": {"low": 2, "high": 5},
    }
    spec = search(space, schedule={"name": "cyclical", "num_cycles": 4, "final_fraction": 0.1})
    assert spec.file_params() == {"schedule.name": "cyclical", "schedule.num_cycles": 4}
    constant = spec.trial_spec({"schedule.name": "constant"}).schedule
    assert (constant.name, constant.num_cycles, constant.final_fraction) == ("constant", 3, 0.0)
    cosine = spec.trial_spec({"schedule.name": "cosine"}).schedule
    assert (cosine.num_cycles, cosine.final_fraction) == (3, 0.1)


def test_optimizers_are_searched_with_the_settings_of_one_of_them() -> None:
    space = {"optimizer.name": {"choices": ["adamw", "sgd"]}, "optimizer.momentum": {"choices": [0.5, 0.9]}}
    spec = search(space, optimizer={"lr": 1e-3, "betas": [0.5, 0.9]})
    assert spec.file_params() == {"optimizer.name": "adamw"}, "the momentum of the file has no effect"
    assert spec.trial_spec({"optimizer.name": "sgd", "optimizer.momentum": 0.9}).optimizer.betas is None
    assert spec.with_absolute_paths().search_space == spec.search_space


def test_the_first_trial_is_the_file_without_inactive_params() -> None:
    spec = search(
        {"losses.kl": {"low": 1e-5, "high": 1e-2, "or_off": True}, "losses.kl_capacity": {"low": 1, "high": 9}}
    )
    assert spec.file_params() == {"losses.kl": 0.0}
    assert spec.trial_spec(spec.file_params()).losses == spec.finetune.losses
