"""What sets of features say: the same distribution, a lost mode, copies, outliers."""

import pytest
import torch
from torch import Tensor

from ftae.engine.objectives.sample_metrics import (
    kernel_distance,
    relative_novelty,
    relative_spread,
    share_inside,
)


def drawn(count: int, seed: int = 0, dim: int = 8) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def two_modes(count: int, seed: int) -> Tensor:
    """Half of the points around 0, half around 10."""
    points = drawn(count, seed)
    points[::2] += 10.0
    return points


def test_kid_of_sets_of_unequal_size_is_unbiased() -> None:
    same = [kernel_distance(drawn(200, seed), drawn(60, 100 + seed)) for seed in range(20)]
    assert abs(sum(same)) / 20 < 0.05
    assert min(same) < 0.0
    assert kernel_distance(drawn(200), drawn(60, 1) + 0.5) > 2 * max(same)


def test_kid_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = drawn(30, 1) + 0.5, drawn(100)
    whole = kernel_distance(many, few)
    monkeypatch.setattr("ftae.engine.objectives.sample_metrics.ROWS_AT_ONCE", 7)
    assert kernel_distance(many, few) == pytest.approx(whole, rel=1e-9)


def test_points_lie_inside_balls_that_reach_to_the_third_neighbour() -> None:
    support = torch.tensor([[0.0], [1.0], [2.0], [3.0], [20.0]])  # with radii 3, 2, 2, 3, 19
    points = torch.tensor([[-2.9], [-3.1], [5.9], [0.5], [39.5]])
    assert share_inside(points, support) == pytest.approx(3 / 5)


def test_a_lost_mode_costs_recall_and_not_precision() -> None:
    real, all_modes, one_mode = two_modes(200, 0), two_modes(200, 1), drawn(200, 2)
    assert share_inside(all_modes, real) > 0.7
    assert share_inside(real, all_modes) > 0.7
    assert share_inside(one_mode, real) > 0.7
    assert share_inside(real, one_mode) < 0.5


def test_both_sets_count_with_equally_many_points() -> None:
    real, made = drawn(50), drawn(80, 1)
    assert share_inside(made, real) == share_inside(made[:50], real)
    assert share_inside(real, made) == share_inside(real, made[:50])


def test_spread_is_relative_to_that_of_real_images() -> None:
    real = drawn(100)
    assert relative_spread(0.5 * drawn(150, 1), real) == pytest.approx(0.5, rel=0.1)
    assert relative_spread(real[:1].expand(30, -1), real) < 1e-5


def test_copies_of_training_images_are_not_new() -> None:
    train, real = drawn(300), drawn(100, 1)
    assert relative_novelty(train[:50], real, train) < 1e-5
    assert relative_novelty(drawn(100, 2), real, train) == pytest.approx(1.0, rel=0.1)
    assert relative_novelty(train[:50] + 0.01, real, train) < 0.1
    assert relative_novelty(real[:1], real[:1], real) == 1.0  # duplicates are no copies
