"""A stored search gets more trials, a larger budget or another time limit."""

from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec

from ftae.cluster.submission import extended
from ftae.errors import FtaeError
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore


def stored(storage: Path, trials: int, close: str | None = "complete", **settings: Any) -> SearchSpec:
    """The spec of a search of which ``trials`` trials of 12 steps ran to their end."""
    spec = search_spec(
        **{"finetune.num_evals": 3, "finetune.metrics": ["psnr"]},
        search={"scheduler": {"name": "fifo"}, "sampler": "random", "storage": str(storage), **settings},
    )
    (storage / "small").mkdir(parents=True)
    state = SearchState(spec, FolderStore(storage / "small"))
    for number in range(trials + 1):
        state.next_trial()
        state.report(number, eval_report(12 if number else 0, 20.0, checkpoint=None, images=None))
    if close is not None:
        state.close(close)
    return spec


def limits(spec: SearchSpec) -> tuple[float | None, int]:
    return spec.search.budget, spec.search.num_trials


def test_a_budget_grows_and_with_it_the_number_of_trials(tmp_path: Path) -> None:
    spec = stored(tmp_path, 2, budget=2.0)
    assert limits(spec) == (2.0, 6)
    longer = extended(spec, budget=12.0)
    assert limits(longer) == (14.0, 6 + 36)
    assert limits(SearchSpec.trusted(longer.model_dump(mode="json"))) == (14.0, 42)
    assert limits(extended(spec, budget=12.0, trials=5)) == (14.0, 11)


def test_a_search_without_a_budget_gets_what_it_has_used_and_more(tmp_path: Path) -> None:
    spec = stored(tmp_path, 2, num_trials=2)
    assert limits(extended(spec, budget=1.5)) == (3.5, 2 + 5)
    assert limits(extended(spec, trials=3)) == (None, 5)


def test_without_its_journal_nobody_knows_what_a_search_has_used() -> None:
    elsewhere = search_spec(**{"search.storage": "/no/such/place"})
    with pytest.raises(FtaeError, match=r"small has no search\.budget, and its journal, .* give a number of trials"):
        extended(elsewhere, budget=2.0)
    known = search_spec(**{"search.storage": "/no/such/place", "search.budget": 3.0})
    assert extended(known, budget=2.0).search.budget == 5.0


def test_a_used_budget_is_not_extended_by_trials_or_time_alone(tmp_path: Path) -> None:
    spec = stored(tmp_path, 2, budget=2.5)
    for more in ({}, {"trials": 4}, {"max_hours": 2.0}):
        with pytest.raises(FtaeError) as refusal:
            extended(spec, **more)  # type: ignore[arg-type]
        assert str(refusal.value) == (
            "small is complete, and no further trial fits into its budget (2 of 2.5 full trainings used); "
            "to add full trainings: ftae extend small --budget N"
        )


def test_a_number_of_trials_that_ended_a_budget_is_extended_by_either(tmp_path: Path) -> None:
    spec = stored(tmp_path, 2, budget=9.0, num_trials=2)
    with pytest.raises(FtaeError, match="small has finished all its 2 trials; to add trials: ftae extend small --tri"):
        extended(spec, max_hours=2.0)
    assert limits(extended(spec, trials=3)) == (9.0, 5)
    assert limits(extended(spec, budget=1.0)) == (10.0, 5)


def test_an_interrupted_search_goes_on_as_it_is(tmp_path: Path) -> None:
    spec = stored(tmp_path, 1, "interrupted", budget=2.0)
    assert extended(spec) == spec
    assert extended(spec, max_hours=2.0).search.max_hours == 2.0
    assert limits(extended(spec, budget=1.0)) == (3.0, 9)


@pytest.mark.parametrize("budget", [0.5, -2.0, float("nan"), float("inf")])
def test_a_budget_that_holds_no_trial_is_refused(tmp_path: Path, budget: float) -> None:
    spec = stored(tmp_path, 1, "interrupted", budget=2.0)
    with pytest.raises(FtaeError, match="budget must be at least 1 full training more"):
        extended(spec, budget=budget)


def test_trials_that_the_budget_cannot_hold_are_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = stored(tmp_path, 1, "interrupted", budget=2.0)
    with pytest.raises(FtaeError) as refusal:
        extended(spec, trials=4)
    assert str(refusal.value) == (
        "more trials have no effect: search.budget of small (2 full trainings) holds at most 6, and search.num_trials "
        "is 6; to add full trainings: ftae extend small --budget N"
    )
    assert limits(extended(spec, trials=4, budget=1.0)) == (3.0, 10)
