"""The rungs: what Ray's ASHA decides, keyed by trial numbers, at the steps the plan shows."""

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ftae.search.scheduler import Rungs
from ftae.specs import SearchSpec


def spec(direction: str = "maximize", max_steps: int = 12, num_evals: int = 3, **scheduler: Any) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": "rungs",
            "finetune": {
                "model": {"family": "conv_ae"},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3},
                "max_steps": max_steps,
                "num_evals": num_evals,
                "metrics": ["psnr", "mse"],
            },
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
            "objective": {"metric": "val/psnr" if direction == "maximize" else "val/mse", "direction": direction},
            "search": {"scheduler": {"name": "asha", "reduction_factor": 2.0, "grace_fraction": 0.33} | scheduler},
        }
    )


def arrive(rungs: Rungs, number: int, step: int, value: float) -> bool:
    """A report: whether its trial goes on, which is asked first, and as often as one likes."""
    before = rungs.recorded()
    goes_on = rungs.goes_on(number, step, value)
    assert rungs.goes_on(number, step, value) is goes_on
    assert rungs.recorded() == before
    rungs.record(number, step, value)
    return goes_on


@pytest.mark.parametrize("reduction_factor", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_goes_on_where_rays_own_bracket_lets_it(direction: str, reduction_factor: float) -> None:
    from ray.tune.schedulers.async_hyperband import _Bracket  # here: ftae.search prepares the environment it reads

    search = spec(direction, max_steps=100, num_evals=100, grace_fraction=0.1, reduction_factor=reduction_factor)
    rungs, bracket = Rungs(search), _Bracket(10, 99, reduction_factor, 0, stop_last_trials=False)
    bracket._rungs = [(step, {}) for step in reversed(search.rung_steps())]
    draw, sign = random.Random(0), 1.0 if direction == "maximize" else -1.0
    decided: list[bool] = []
    for number in range(200):
        for step in range(0, 100, draw.choice([1, 7, 30])):
            value, trial = draw.gauss(number / 100, 1.0), cast(Any, SimpleNamespace(trial_id=number))
            decided.append(arrive(rungs, number, step, value))
            assert decided[-1] == (bracket.on_result(trial, step, sign * value) == "CONTINUE")
    assert 100 < decided.count(False) < decided.count(True)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trial_goes_on_unless_it_is_behind_the_best_half_of_those_before_it(sign: int) -> None:
    rungs = Rungs(spec("maximize" if sign == 1 else "minimize"))
    # Against nobody; below 10; above the median of 10 and 5; not below the median of 10, 5 and 8.
    arrivals = [(1, 10.0, True), (2, 5.0, False), (3, 8.0, True), (4, 8.0, True), (5, 7.9, False)]
    for number, value, goes_on in arrivals:
        assert arrive(rungs, number, 4, sign * value) is goes_on
    assert rungs.recorded()[4] == {number: sign * value for number, value, _ in arrivals}


def test_a_report_made_again_does_not_count_twice() -> None:
    rungs = Rungs(spec())
    arrive(rungs, 1, 4, 10.0)
    arrive(rungs, 2, 4, 6.0)
    assert arrive(rungs, 1, 4, 10.0)
    assert rungs.recorded()[4] == {1: 10.0, 2: 6.0}
    # With 10.0 counted twice the median were 10.0 and this one behind it.
    assert arrive(rungs, 3, 4, 9.0)


def test_nothing_is_decided_before_the_first_rung_and_between_two() -> None:
    rungs = Rungs(spec(max_steps=24, num_evals=6))
    assert list(rungs.recorded()) == [8, 16]
    arrive(rungs, 1, 8, 10.0)
    assert arrive(rungs, 2, 4, 0.0)
    assert rungs.recorded() == {8: {1: 10.0}, 16: {}}
    arrive(rungs, 2, 8, 11.0)
    assert arrive(rungs, 2, 12, 0.0)  # behind trial 1, but its rung is passed
    assert rungs.recorded() == {8: {1: 10.0, 2: 11.0}, 16: {}}


def test_a_report_counts_at_the_highest_rung_it_reaches() -> None:
    rungs = Rungs(spec(max_steps=24, num_evals=6))
    arrive(rungs, 1, 16, 10.0)
    assert rungs.recorded() == {8: {}, 16: {1: 10.0}}


@pytest.mark.parametrize(
    ("grace", "max_steps", "num_evals", "steps"),
    [
        (0.33, 12, 3, [4, 8]),
        (0.33, 300, 6, [100, 200]),
        (0.34, 300, 6, [150]),
        (0.01, 100, 10, [10, 20, 40, 80]),
        (0.6, 12, 4, [9]),
        (1.0, 12, 4, []),
    ],
)
def test_the_first_rung_is_the_first_evaluation_at_or_behind_the_grace_fraction(
    grace: float, max_steps: int, num_evals: int, steps: list[int]
) -> None:
    search = spec(max_steps=max_steps, num_evals=num_evals, grace_fraction=grace)
    assert search.rung_steps() == steps
    assert list(Rungs(search).recorded()) == steps


@pytest.mark.parametrize("reduction_factor", [1.1, 1.5, 3.0, 4.0, 10.0])
@pytest.mark.parametrize("num_evals", [2, 7, 100])
def test_the_rungs_are_those_of_the_plan(reduction_factor: float, num_evals: int) -> None:
    search = spec(max_steps=100, num_evals=num_evals, grace_fraction=0.1, reduction_factor=reduction_factor)
    assert list(Rungs(search).recorded()) == search.rung_steps()


def test_a_trial_whose_report_lies_on_a_rounded_rung_is_judged_there() -> None:
    search = spec(max_steps=42, num_evals=21, grace_fraction=0.2, reduction_factor=1.1)
    rungs = Rungs(search)
    for step in (10, 12):  # 12 lies before 10 * 1.1 ** 2 = 12.1, Ray's own third rung
        arrive(rungs, 1, step, 10.0)
        assert rungs.recorded()[step] == {1: 10.0}


def test_fifo_never_stops_a_trial() -> None:
    search = spec().model_dump()
    search["search"]["scheduler"] = {"name": "fifo"}
    rungs = Rungs(SearchSpec.model_validate(search))
    assert all(arrive(rungs, number, step, -number) for number in range(20) for step in (4, 8))
    assert rungs.recorded() == {}
