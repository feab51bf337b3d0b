"""The discriminator: settings that must fit each other, and when the adversarial term is on."""

from typing import Any

import pytest
from builders import run_dict, run_spec, search_spec
from pydantic import ValidationError

from ftae.specs import SearchSpec
from ftae.specs.finetune.discriminator import DiscriminatorSpec

RUN = run_dict(losses={"mse": 1, "adversarial": 0.1})


def search(space: dict[str, Any], run: dict[str, Any] = RUN, **settings: Any) -> SearchSpec:
    return search_spec(finetune=run, search_space=space, search=settings)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"discriminator": {"depth": 3}}, "depth: 3 needs a resolution of at least 24 (3 * 2**depth), got 16"),
        ({"discriminator": {"start_fraction": 0.05}}, "must be at most start_fraction (0.05), which it comes before"),
        (
            {"discriminator": {"start_fraction": 0.9, "ramp_fraction": 0.2}},
            "must end within the budget, start_fraction 0.9 + 0.2 is more than 1",
        ),
        ({"discriminator": {"adaptive": False, "max_adaptive_weight": 5.0}}, "has no effect where adaptive is false"),
        ({"losses": {"adversarial": 1}}, "adversarial: needs another term beside it"),
        ({"discriminator": {"lr": 0}}, "greater than 0"),
        ({"discriminator": {"conditional": True}}, "conditional: needs inputs that differ from the images to give"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        run_spec(**RUN | changes)
    assert rule in str(caught.value)


def test_a_discriminator_without_effect_may_be_too_deep() -> None:
    without = RUN | {"losses": {"mse": 1}, "discriminator": {"depth": 3}}
    run_spec(**without)
    with pytest.raises(ValidationError, match="3 needs a resolution of at least 24"):  # since it may have one
        search({"losses.adversarial": {"low": 0, "high": 1}, "optimizer.lr": {"low": 1e-4, "high": 1e-2}}, without)


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.39, 0.0), (0.4, 0.0), (0.5, 0.5), (0.6, 1.0), (1.0, 1.0)]
)
def test_the_term_starts_and_is_ramped(progress: float, share: float) -> None:
    spec = DiscriminatorSpec(start_fraction=0.4, ramp_fraction=0.2, warmup_fraction=0.3)
    assert spec.share(progress) == pytest.approx(share)
    assert spec.begin_fraction == pytest.approx(0.1)
    assert DiscriminatorSpec(start_fraction=0.4, ramp_fraction=0.0).share(0.4) == 1.0
    assert spec.from_the_start().share(0.0) == 1.0


def test_the_settings_of_a_discriminator_can_be_searched() -> None:
    spec = search(
        {
            "losses.adversarial": {"low": 0.01, "high": 1, "log": True},
            "discriminator.lr": {"low": 1e-5, "high": 1e-3, "log": True},
            "discriminator.start_fraction": {"low": 0.1, "high": 0.6},
            "discriminator.loss": {"choices": ["hinge", "non_saturating"]},
            "discriminator.betas": {"choices": [[0.5, 0.9], [0.9, 0.999]]},
        }
    )
    trial = spec.trial_spec({"discriminator.lr": 5e-4, "discriminator.betas": (0.9, 0.999)})
    assert (trial.discriminator.lr, trial.discriminator.betas) == (5e-4, (0.9, 0.999))


@pytest.mark.parametrize("searched", [True, False])
@pytest.mark.parametrize("resources", [{"workers": 2}, {"gpus_per_trial": 2}])
def test_several_workers_cannot_train_a_discriminator(searched: bool, resources: dict[str, Any]) -> None:
    on: dict[str, Any] = {"losses.adversarial": {"choices": [0.0, 0.5]}}
    off: dict[str, Any] = {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}
    without = RUN | {"losses": {"mse": 1}}
    space, run = (on, without) if searched else (off, RUN)
    with pytest.raises(ValidationError, match=r"resources\.workers: 2 workers cannot share losses\.adversarial"):
        search(space, run, resources=resources)
    search(space, run)
    search(off, without, resources=resources)


def test_the_weights_of_a_discriminator_get_an_absolute_path() -> None:
    spec = run_spec(**RUN | {"discriminator": {"pretrained": "models/d.safetensors"}})
    assert str(spec.with_absolute_paths().discriminator.pretrained).startswith("/")
