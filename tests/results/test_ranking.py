"""Which trial is better, by one number and by several."""

import random

import pytest

from ftae.errors import FtaeError
from ftae.results import ranking
from ftae.specs.search.objective import read_objective

TWO = read_objective(
    {
        "metrics": [
            {"metric": "val/psnr", "direction": "maximize"},
            {"metric": "val/kl", "direction": "minimize"},
        ]
    }
)


def test_one_value_is_sorted_by() -> None:
    assert ranking.ordered({3: (1.0,), 1: (2.0,), 2: (1.0,), 7: (3.0,)}) == [7, 1, 2, 3]
    assert ranking.ordered({}) == []
    assert ranking.pareto_front({1: (2.0,), 2: (1.0,), 3: (2.0,)}) == [1, 3]


def test_to_dominate_is_to_be_no_worse_and_better_in_something() -> None:
    assert ranking.dominates((2.0, 1.0), (1.0, 1.0))
    assert not ranking.dominates((1.0, 1.0), (1.0, 1.0))
    assert not ranking.dominates((2.0, 0.0), (1.0, 1.0))


def test_the_front_comes_first_its_ends_before_its_crowded_middle() -> None:
    line = {0: (0.0, 9.0), 1: (4.9, 5.0), 2: (5.0, 4.9), 3: (9.0, 0.0), 4: (5.1, 4.8)}
    behind = {5: (4.0, 4.0), 6: (-1.0, -1.0)}
    order = ranking.ordered(line | behind)
    assert order[0] == 3, "the best of the first value leads"
    assert order[1] == 0
    assert set(order[2:5]) == {1, 2, 4}
    assert order[4] == 2, "the one in the thick of it is the last of the front"
    assert order[5:] == [5, 6], "dominated by three, then by all"
    assert ranking.pareto_front(line | behind) == order[:5]


def test_the_front_is_what_a_plain_search_finds() -> None:
    draw = random.Random(0)
    points = {i: (draw.random(), draw.random(), draw.random()) for i in range(60)}
    pareto_front = set(ranking.pareto_front(points))
    for key, point in points.items():
        beaten = any(
            all(b >= a for a, b in zip(point, other, strict=True)) and other != point for other in points.values()
        )
        assert (key in pareto_front) is not beaten
    assert set(ranking.ordered(points)[: len(pareto_front)]) == pareto_front


def test_scores_are_means_of_what_is_scaled_over_the_front() -> None:
    found = {
        1: {"val/psnr": 20.0, "val/kl": 100.0},
        2: {"val/psnr": 25.0, "val/kl": 300.0},
        3: {"val/psnr": 30.0, "val/kl": 500.0},
    }
    assert ranking.scores(TWO, found, {"val/psnr": 1.0, "val/kl": 1.0}) == {1: 0.5, 2: 0.5, 3: 0.5}
    assert ranking.scores(TWO, found, {"val/psnr": 3.0, "val/kl": 1.0}) == {1: 0.25, 2: 0.5, 3: 0.75}
    assert ranking.scores(TWO, found, {"val/kl": 2.0}) == {1: 1.0, 2: 0.5, 3: 0.0}
    same = {1: {"val/psnr": 20.0, "val/kl": 100.0}, 2: {"val/psnr": 21.0, "val/kl": 100.0}}
    assert ranking.scores(TWO, same, {"val/psnr": 1.0, "val/kl": 1.0}) == {1: 0.5, 2: 1.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"val/psn": 1.0}, r"weights: must be one of val/psnr, val/kl, got 'val/psn', did you mean 'val/psnr'\?"),
        ({"val/psnr": -1.0}, r"weights: that of val/psnr must be 0 or more, got -1\.0"),
        ({"val/psnr": float("nan")}, "weights: that of val/psnr must be 0 or more, got nan"),
        ({"val/psnr": 0.0}, "weights: at least one must be above 0"),
    ],
)
def test_weights_that_cannot_choose_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(FtaeError, match=message):
        ranking.check_weights(TWO, weights)
    with pytest.raises(FtaeError, match="this search optimises val/psnr alone"):
        ranking.check_weights(read_objective({"metric": "val/psnr", "direction": "maximize"}), weights)
