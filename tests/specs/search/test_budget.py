"""``search.budget`` in a file: the number of trials that follows from it, and doubts about it."""

import json
from typing import Any

import pytest
from builders import search_spec
from pydantic import ValidationError

from ftae.specs import SearchSpec
from ftae.specs.search.lint import warnings
from ftae.specs.search.settings import SearchSettings

FIFO: dict[str, Any] = {"scheduler": {"name": "fifo"}}


def spec(num_evals: int = 3, objective: Any = None, **settings: Any) -> SearchSpec:
    """Trials of 12 steps, with ``settings`` of the section search."""
    changes: dict[str, Any] = {"finetune.num_evals": num_evals, "finetune.metrics": ["psnr", "mse"]}
    return search_spec(**changes, **({} if objective is None else {"objective": objective}), search=settings)


@pytest.mark.parametrize(("num_evals", "most"), [(1, 3), (2, 5), (3, 8), (12, 30)])
def test_a_budget_holds_so_many_first_evaluations(num_evals: int, most: int) -> None:
    assert spec(num_evals, budget=2.5).search.num_trials == most
    assert spec(num_evals, budget=2.5, **FIFO).search.num_trials == most, "trials of any scheduler may diverge"


def test_a_number_of_trials_beside_a_budget_stays() -> None:
    assert spec(budget=2.5, num_trials=16).search.num_trials == 16
    assert spec(budget=2.5, num_trials=2).search.num_trials == 2
    assert spec().search.num_trials == 16
    assert spec().search.budget is None


def test_settings_made_in_python_get_the_same_number() -> None:
    base = spec().model_dump(mode="json")
    settings = SearchSettings(budget=2.5)
    assert SearchSpec(**base | {"search": settings}).search.num_trials == 8
    assert SearchSpec(**base | {"search": {"budget": 2.5}}).search.num_trials == 8


def test_with_several_metrics_too() -> None:
    goals = [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/mse", "direction": "minimize"}]
    several = spec(objective={"metrics": goals}, budget=2.5)
    assert (several.search.num_trials, several.search.sampler, several.search.scheduler.name) == (8, "tpe", "asha")


def test_a_dumped_search_reads_back_the_same() -> None:
    for search in (spec(budget=2.5), spec(budget=2.5, num_trials=4)):
        dumped = json.loads(json.dumps(search.model_dump(mode="json")))
        for read in (SearchSpec.trusted(dumped), SearchSpec.model_validate(dumped)):
            assert (read.model_dump(), read.digest()) == (search.model_dump(), search.digest())


def test_a_dump_without_a_budget_is_that_of_an_earlier_version() -> None:
    dumped = spec(num_trials=5).model_dump(mode="json")
    del dumped["search"]["budget"]
    assert SearchSpec.trusted(dumped).search.budget is None


@pytest.mark.parametrize("budget", [0.0, 0.99, -3.0])
def test_a_budget_that_holds_no_whole_trial_is_refused(budget: float) -> None:
    written = spec().model_dump(mode="json") | {"search": {"budget": budget}}
    with pytest.raises(ValidationError, match=r"must be greater than or equal to 1, got"):
        SearchSpec(**written)


def test_the_expected_numbers_go_by_the_scheduler() -> None:
    # Of the trials of asha, a third runs from step 4 to step 12: 20/36 of the steps on average.
    asha: dict[str, Any] = {"scheduler": {"name": "asha", "reduction_factor": 3}}
    assert (spec(budget=20.0, **asha).expected_trials(), spec(budget=20.0, **asha).expected_budget()) == (36, 20.0)
    assert (spec(budget=20.0, **FIFO).expected_trials(), spec(budget=20.0, **FIFO).expected_budget()) == (20, 20.0)
    assert (spec(num_trials=9, **asha).expected_trials(), spec(num_trials=9, **FIFO).expected_budget()) == (9, 9.0)
    assert spec(num_trials=9, **asha).expected_budget() == pytest.approx(5.0)
    both = spec(num_trials=9, budget=20.0, **asha)
    assert (both.expected_trials(), both.expected_budget()) == (9, pytest.approx(5.0))


def test_each_running_trial_keeps_a_full_training() -> None:
    limits: list[tuple[dict[str, Any], int]] = [
        ({"num_trials": 5}, 5),
        ({"num_trials": 5, "max_concurrent": 3}, 3),
        ({"budget": 2.5}, 2),
        ({"budget": 2.5, "max_concurrent": 8}, 2),
        ({"budget": 9.0, "max_concurrent": 8, "num_trials": 4}, 4),
    ]
    assert [spec(**settings).search.most_at_a_time for settings, _ in limits] == [most for _, most in limits]


def test_doubts_about_a_budget() -> None:
    few = spec(budget=9.0, **FIFO).model_dump(mode="json")
    few["search_space"] = {"data.flip": {"choices": [False, True]}}
    assert any(
        text.startswith("search.budget (9, about 9 trials) exceeds the 2 configurations of the search space: ")
        for text in warnings(SearchSpec.model_validate(few))
    )
    assert (
        "search.max_concurrent (8) is never reached: search.budget is 4, and each running trial keeps a full training "
        "of it" in warnings(spec(budget=4.0, max_concurrent=8))
    )
    assert not any("search." in text for text in warnings(spec(budget=8.0, max_concurrent=8)))
