"""A generator fails once its images are all alike at two evaluations in a row."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ftae.engine.objectives.metrics import PixelVariance
from ftae.engine.objectives.mode_collapse import with_mode_collapse
from ftae.errors import Reason

WELL = {Reason.MODE_COLLAPSE: 0.8}  # the variance of pixels


def course(metric: str, *values: float) -> list[float]:
    """The sign that the metric keeps from evaluation to evaluation."""
    reason = Reason.MODE_COLLAPSE if metric == "diversity" else Reason.LOST_RECALL
    signs: dict[str, float] = {}
    found = []
    for value in values:
        signs = with_mode_collapse(WELL, {f"val/{metric}": value}, signs)
        found.append(signs[reason])
    return found


def test_diversity_is_lost_at_two_evaluations_in_a_row() -> None:
    assert course("diversity", 0.9, 0.5, 0.6, 0.4, 0.3) == [1.0, 0.5, 1.0, 0.5, 0.0]


def test_a_generator_that_never_had_any_cannot_lose_it() -> None:
    assert course("diversity", 0.3, 0.2, 0.6, 0.2) == [0.0, 0.0, 1.0, 0.5]


def test_recall_must_have_been_above_a_tenth() -> None:
    assert course("recall", 0.0, 0.08, 0.0, 0.2, 0.02, 0.07, 0.02, 0.01) == [0.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.5, 0.0]


def test_pixels_judge_a_generator_without_the_metric() -> None:
    for variance, sign in [(0.8, 1.0), (0.2, 1.0), (0.05, 0.5)]:
        found = with_mode_collapse({Reason.MODE_COLLAPSE: variance}, {"val/kid": 0.1}, {Reason.MODE_COLLAPSE: 1.0})
        assert found == {Reason.MODE_COLLAPSE: sign}


def test_other_models_keep_their_signs() -> None:
    signs = {str(Reason.POSTERIOR_COLLAPSE): 3.0}
    assert with_mode_collapse(signs, {"val/diversity": 0.1}, {}) == signs


@dataclass(frozen=True)
class Pair:
    target: Tensor
    reconstruction: Tensor


def test_the_variance_of_pixels_is_relative() -> None:
    target = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for made, ratio in [(target, 1.0), (0.5 * target, 0.25), (target[:1].expand(20, -1, -1, -1), 0.0)]:
        variance = PixelVariance()
        variance.update(Pair(target, made))
        assert variance.compute() == pytest.approx(ratio)
