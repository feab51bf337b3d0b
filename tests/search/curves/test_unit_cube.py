"""Params as points and vectors: every kind of leaf, there and back."""

import json
from typing import Any

import numpy as np
import pytest
from simulated import CONDITIONAL_SPACE, SPACE, sampler_spec

from ftae.search.curves.unit_cube import MIDDLE, Array, UnitCube
from ftae.specs import SearchSpec

KINDS: dict[str, dict[str, Any]] = {
    "plain": SPACE,
    "conditional": CONDITIONAL_SPACE,
    "or off": {
        "losses.tv": {"low": 0.01, "high": 1.0, "log": True, "or_off": True},
        "max_grad_norm": {"low": 0.1, "high": 2.0, "or_off": True},
    },
    "steps": {
        "schedule.warmup_fraction": {"low": 0.15, "high": 0.85, "step": 0.1},
        "batch_size": {"low": 2, "high": 30, "step": 6},
    },
}


def drawn(cube: UnitCube, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((count, cube.num_coordinates))


@pytest.fixture(params=KINDS)
def search(request: pytest.FixtureRequest) -> SearchSpec:
    return sampler_spec(KINDS[request.param])


@pytest.fixture
def cube(search: SearchSpec) -> UnitCube:
    return UnitCube(search)


# ------------------------------------------------------------------------------------- every space


def test_a_point_has_params_that_a_worker_can_build(search: SearchSpec, cube: UnitCube) -> None:
    for point in [*drawn(cube, 50), np.zeros(cube.num_coordinates), np.full(cube.num_coordinates, 1.0 - 1e-12)]:
        params = cube.params(point)
        assert list(params) == [path for path in search.search_space if path in params]
        for path, value in params.items():
            assert search.search_space[path].contains(tuple(value) if isinstance(value, list) else value), path
        search.trial_spec(params)
        assert json.loads(json.dumps(params)) == params, "they are what the journal holds"


def test_params_have_a_point_and_the_point_has_these_params(search: SearchSpec, cube: UnitCube) -> None:
    for point in drawn(cube, 50):
        params = cube.params(point)
        again = cube.params(cube.point(params))
        assert list(again) == list(params)
        for path, value in params.items():
            assert type(again[path]) is type(value)
            assert again[path] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_vectors_lie_in_the_unit_cube_and_follow_from_the_params(cube: UnitCube) -> None:
    points = drawn(cube, 100)
    vectors = cube.vectors(points)
    assert vectors.shape == (100, cube.num_columns)
    assert ((vectors >= 0.0) & (vectors <= 1.0)).all()
    for point, vector in zip(points, vectors, strict=True):
        assert cube.vector(cube.params(point)) == pytest.approx(vector, abs=1e-9)


def test_points_that_are_near_are_points_of_the_cube(search: SearchSpec, cube: UnitCube) -> None:
    points = drawn(cube, 200)
    near = cube.near(points, np.random.default_rng(1))
    assert near.shape == points.shape
    assert ((near >= 0.0) & (near < 1.0)).all()
    for point in near[:30]:
        search.trial_spec(cube.params(point))
    moved = np.abs(near - points)
    assert (moved > 0.0).any(axis=1).mean() > 0.7
    assert (moved == 0.0).mean() > 0.2, "others stay"


def test_the_width_says_how_near(cube: UnitCube) -> None:
    points = np.full((500, cube.num_coordinates), 0.4)
    values = slice(0, None, 2)  # the other coordinates say whether a leaf is on
    wide, narrow = (
        np.median(np.abs(cube.near(points, np.random.default_rng(1), width)[:, values] - 0.4), axis=0)
        for width in (1.0, 0.1)
    )
    assert (narrow <= wide).all()


def test_the_file_and_a_journal_give_the_same_vector(search: SearchSpec, cube: UnitCube) -> None:
    params = search.file_params()
    assert cube.vector(params) == pytest.approx(cube.vector(json.loads(json.dumps(params))))


# ------------------------------------------------------------------------------------ single leaves


def cube_of(path: str, **leaf: Any) -> UnitCube:
    own = leaf["choices"][0] if "choices" in leaf else leaf["low"]
    return UnitCube(sampler_spec({path: leaf}, run={path: own}))


def values_at(cube: UnitCube, places: list[float]) -> list[Any]:
    """The value of the only leaf at these places, where it is on."""
    return [next(iter(cube.params(np.array([place, 1.0])).values())) for place in places]


def columns_of(cube: UnitCube, path: str, values: list[Any]) -> list[list[float]]:
    return [cube.vector({path: value}).tolist() for value in values]


def test_a_range_is_divided_evenly_by_its_logarithm_if_it_has_one() -> None:
    linear = cube_of("optimizer.weight_decay", low=0.0, high=0.5)
    assert values_at(linear, [0.0, 0.2, 0.5]) == pytest.approx([0.0, 0.1, 0.25])
    assert columns_of(linear, "optimizer.weight_decay", [0.0, 0.1, 0.5]) == pytest.approx(
        np.array([[0.0], [0.2], [1.0]]), abs=1e-8
    )
    log = cube_of("optimizer.lr", low=1e-4, high=1.0, log=True)
    assert values_at(log, [0.0, 0.25, 0.5]) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert columns_of(log, "optimizer.lr", [1e-4, 1e-2, 1.0]) == pytest.approx(
        np.array([[0.0], [0.5], [1.0]]), abs=1e-8
    )


def test_whole_numbers_and_steps_have_places_of_equal_size() -> None:
    for path, leaf, values in (
        ("batch_size", {"low": 4, "high": 16, "step": 4}, [4, 8, 12, 16]),
        ("batch_size", {"low": 6, "high": 9}, [6, 7, 8, 9]),
        ("schedule.warmup_fraction", {"low": 0.1, "high": 0.4, "step": 0.1}, [0.1, 0.2, 0.3, 0.4]),
        ("schedule.warmup_fraction", {"low": 0.0, "high": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
    ):
        cube = cube_of(path, **leaf)
        assert values_at(cube, [0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, 0.99]) == [v for v in values for _ in (0, 1)]
        assert columns_of(cube, path, values) == pytest.approx(np.array([[0.0], [1 / 3], [2 / 3], [1.0]]))


def test_a_step_is_never_a_little_more_than_the_range_allows() -> None:
    cube = cube_of("schedule.warmup_fraction", low=0.1, high=0.7, step=0.1)
    assert values_at(cube, [2.5 / 7, 5.5 / 7, 0.99]) == [0.3, 0.6, 0.7]
    assert 0.1 + 2 * 0.1 != 0.3


def test_whole_numbers_by_the_logarithm_are_the_nearest_ones() -> None:
    cube = cube_of("grad_accumulation", low=1, high=64, log=True)
    assert values_at(cube, [0.0, 0.5, 0.99999]) == [1, 8, 64]
    columns = columns_of(cube, "grad_accumulation", [1, 8, 64])
    assert columns == pytest.approx(np.array([[0.0], [0.5], [1.0]]), abs=1e-8)
    points = np.array([[0.49, 1.0], [0.51, 1.0]])  # both are 8
    assert cube.vectors(points)[0] == cube.vectors(points)[1]


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("optimizer.betas", [[0.9, 0.999], [0.5, 0.9]]),
        ("max_grad_norm", [0.1, 1.0, None]),
        ("data.flip", [False, True]),
        ("model.latent_channels", [4, 8, 16]),
        ("schedule.name", ["constant", "cosine", "cyclical"]),
    ],
)
def test_a_category_has_a_column_for_each_choice(path: str, choices: list[Any]) -> None:
    cube = cube_of(path, choices=choices)
    assert cube.num_columns == len(choices)
    assert columns_of(cube, path, choices) == np.eye(len(choices)).tolist()
    found = [json.dumps(cube.params(point)[path]) for point in drawn(cube, 600)]
    shares = [found.count(json.dumps(choice)) / len(found) for choice in choices]
    assert shares == pytest.approx([1 / len(choices)] * len(choices), abs=0.08)


def test_a_leaf_that_may_be_off_has_a_column_that_says_so() -> None:
    for path, off in (("losses.tv", 0.0), ("max_grad_norm", None)):
        cube = cube_of(path, low=0.1, high=0.5, or_off=True)
        assert cube.num_columns == 2
        assert cube.vector({path: off}).tolist() == [0.0, MIDDLE]
        assert cube.vector({path: 0.2}) == pytest.approx([1.0, 0.25])
        assert cube.params(np.array([0.25, 0.4])) == {path: off}
        assert cube.params(np.array([0.25, 0.6])) == pytest.approx({path: 0.2})
        is_off = [cube.params(point)[path] == off for point in drawn(cube, 400)]
        assert 0.4 < sum(is_off) / 400 < 0.6
        turned = cube.near(np.tile([0.25, 0.6], (400, 1)), np.random.default_rng(0))
        assert 0.02 < (turned[:, 1] < MIDDLE).mean() < 0.3, "a small change turns it off sometimes"


def test_a_leaf_without_effect_stands_in_the_middle() -> None:
    cube = UnitCube(
        sampler_spec(
            {
                "schedule.num_cycles": {"low": 2, "high": 5},
                "schedule.name": {"choices": ["constant", "cyclical"]},
            }
        )
    )
    assert cube.num_columns == 4
    assert cube.vector({"schedule.name": "constant"}).tolist() == [0.0, MIDDLE, 1.0, 0.0]
    cyclical = {"schedule.num_cycles": 5, "schedule.name": "cyclical"}
    assert cube.vector(cyclical).tolist() == [1.0, 1.0, 0.0, 1.0]
    low, high = (np.array([place, 1.0, 0.1, 1.0]) for place in (0.1, 0.9))
    assert cube.params(low) == cube.params(high) == {"schedule.name": "constant"}
    assert (cube.vectors(np.array([low]))[0] == cube.vectors(np.array([high]))[0]).all()


def test_a_small_change_moves_a_whole_number_at_least_to_the_next() -> None:
    cube = cube_of("batch_size", low=2, high=4)
    near = cube.near(np.tile([0.5, 1.0], (300, 1)), np.random.default_rng(0), width=1e-3)
    found = {cube.params(point)["batch_size"] for point in near}
    assert found == {2, 3, 4}
