"""The probability of ADA follows its measure; other augmentations have none to follow."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ftae.engine.tasks.augmentation import MOST, AdaptiveProbability, Augmentation
from ftae.specs.finetune.augmentation import AugmentSpec


def fed(probability: AdaptiveProbability, measure: float, steps: int) -> float:
    for _ in range(steps):
        probability.update(measure, num_images=10)
    return probability.p


def test_the_probability_rises_at_its_speed_and_stays_within_bounds() -> None:
    probability = AdaptiveProbability(target=0.6, speed=1000.0)
    assert fed(probability, 0.9, 30) == pytest.approx(0.3)
    assert fed(probability, 0.9, 100) == MOST
    assert fed(probability, 0.1, 200) == 0.0


def test_single_measures_do_not_turn_it() -> None:
    probability = AdaptiveProbability(target=0.6, speed=1000.0)
    fed(probability, 0.9, 30)
    assert fed(probability, 0.0, 1) == pytest.approx(0.31)
    assert fed(probability, 0.0, 20) < 0.31


def test_it_continues_from_its_state() -> None:
    spec = AugmentSpec(name="ada", speed_fraction=0.5)
    first, second = (Augmentation(spec, budget=1000) for _ in range(2))
    first.update(0.9, 40)
    second.load_state(first.state())
    for each in (first, second):
        each.update(0.7, 40)
    assert first.state() == second.state()
    assert first.p == pytest.approx(0.16)


@pytest.mark.parametrize(("name", "p"), [("none", 0.0), ("diffaugment", 1.0)])
def test_only_ada_adapts(name: Any, p: float) -> None:
    augmentation, images = Augmentation(AugmentSpec(name=name), budget=1000), torch.rand(4, 3, 16, 16)
    augmentation.update(0.9, 500)
    assert augmentation.p == p
    assert torch.equal(augmentation.seen(images), images) == (name == "none")


def test_ada_changes_images_once_its_probability_is_above_0() -> None:
    augmentation, images = Augmentation(AugmentSpec(name="ada"), budget=1000), torch.rand(4, 3, 16, 16)
    assert torch.equal(augmentation.seen(images), images)
    augmentation.update(0.9, 80)
    assert not torch.equal(augmentation.seen(images), images)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"target": 0.5}, "has no effect where name is none, it needs ada"),
        ({"policy": ("color",)}, "has no effect where name is none, it needs diffaugment or ada"),
        ({"name": "diffaugment", "turns": True}, "has no effect where name is diffaugment, it needs ada"),
        ({"name": "diffaugment", "policy": ("flip",)}, "diffaugment has no flip, it has color, translation, cutout"),
        ({"name": "ada", "policy": ("color",), "turns": True}, "has no effect, policy has no geometry"),
    ],
)
def test_settings_without_effect_are_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        AugmentSpec(**fields)
