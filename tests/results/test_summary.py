"""What a search has found, from journals that are written by plain calls."""

from pathlib import Path
from typing import Any

import pytest
from builders import eval_report, search_spec

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.summary import best, find_search, leaderboard, state_of
from ftae.results.verdict import beats_baseline, needs_warning, verdict
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore


def spec(direction: str) -> SearchSpec:
    changes: dict[str, Any] = {
        "finetune.metrics": ["psnr", "mse"],
        "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0}, "max_grad_norm": {"choices": [1.0, None]}},
        "objective": {"metric": "val/psnr" if direction == "maximize" else "val/mse", "direction": direction},
        "search.num_trials": 4,
    }
    return search_spec(name="made-up", **changes)


def make_search(folder: Path, values: dict[int, float | None], direction: str = "maximize") -> SearchState:
    """Trials with the given last values of the objective; None is a trial that diverged."""
    folder.mkdir(parents=True)
    state = SearchState(spec(direction), FolderStore(folder))
    for number, value in values.items():
        state.next_trial()
        if value is None:
            state.end(number, "diverged", "non-finite loss at step 3")
            continue
        for step in (0,) if number == 0 else (0, 12):
            if step:
                FolderStore(folder).write(f"trials/{number:04d}/checkpoints/step-00000012/model.safetensors", b"x")
            metrics = {"val/psnr": value, "val/mse": value} | ({"train/lr": 1e-3} if step else {})
            state.report(number, eval_report(step, value, metrics=metrics))
    return state


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_trial_is_one_plain_object(tmp_path: Path, direction: str) -> None:
    folder = tmp_path / "made-up"
    make_search(folder, {0: 20.0, 1: 21.0, 2: 19.0, 3: None}, direction).close("complete")
    number, value, metric = (1, 21.0, "val/psnr") if direction == "maximize" else (2, 19.0, "val/mse")
    params = replay(folder).trials[number].params
    assert best(FolderStore(folder)) == {
        "search": "made-up",
        "trial": number,
        "metric": metric,
        "value": value,
        "baseline": 20.0,
        "beats_baseline": True,
        "verdict": f"{metric} 20.0000 -> {value:.4f} ({value - 20.0:+.4f})",
        "warning": False,
        "params": params,
        "metrics": {"val/psnr": value, "val/mse": value, "train/lr": 1e-3},
        "checkpoint": str(folder / f"trials/000{number}/checkpoints/step-00000012"),
    }


@pytest.mark.parametrize(("value", "beats"), [(20.0, False), (19.9, False), (20.1, True)])
def test_beating_the_baseline_is_being_strictly_better(tmp_path: Path, value: float, beats: bool) -> None:
    make_search(tmp_path / "made-up", {0: 20.0, 1: value})
    assert best(FolderStore(tmp_path / "made-up"))["beats_baseline"] is beats


def test_a_search_without_a_full_trial_has_no_best(tmp_path: Path) -> None:
    make_search(tmp_path / "made-up", {0: 20.0, 1: None})
    with pytest.raises(FtaeError, match="made-up: no tuned trial ran to its full budget yet"):
        best(FolderStore(tmp_path / "made-up"))


def test_the_leaderboard_has_the_ranked_trials_then_the_baseline_then_the_rest(tmp_path: Path) -> None:
    state = make_search(tmp_path / "made-up", {0: 20.0, 1: 21.0, 2: None, 3: 22.0})
    rows = leaderboard(state.record)
    assert [(row["trial"], row["kind"], row["status"], row["val/psnr"], row["step"]) for row in rows] == [
        (3, "sampled", "finished", 22.0, 12),
        (1, "file", "finished", 21.0, 12),
        (0, "baseline", "finished", 20.0, 0),
        (2, "sampled", "diverged", None, 0),
    ]
    assert rows[1]["params.optimizer.lr"] == 1e-2
    assert rows[1]["params.max_grad_norm"] == 1.0
    assert (rows[2]["params.optimizer.lr"], rows[3]["reason"]) == (None, "non-finite loss at step 3")


@pytest.mark.parametrize("status", ["running", "failed", "diverged"])
def test_a_baseline_that_was_not_measured_is_on_the_leaderboard(tmp_path: Path, status: Any) -> None:
    state = make_search(tmp_path / "made-up", {})
    state.next_trial()
    if status != "running":
        state.end(0, status, "RuntimeError: boom")
    [row] = leaderboard(state.record)
    assert (row["trial"], row["kind"], row["status"], row["val/psnr"]) == (0, "baseline", status, None)
    assert row["reason"] == (None if status == "running" else "RuntimeError: boom")


def test_a_search_is_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "searches" / "made-up"
    make_search(folder, {0: 20.0})
    monkeypatch.chdir(tmp_path)
    assert find_search("made-up", "searches").folder == folder
    assert find_search("searches/made-up", "elsewhere").folder == folder
    assert find_search(str(folder), "searches").folder == folder


def test_the_error_for_an_unknown_search_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=rf"there is no search 'made-upp' in {tmp_path}; it holds none"):
        find_search("made-upp", str(tmp_path))
    make_search(tmp_path / "made-up", {0: 20.0})
    make_search(tmp_path / "another", {0: 20.0})
    (tmp_path / "no search").mkdir()
    with pytest.raises(FtaeError, match=r"there is no search 'no search' in .*; choose one of another, made-up$"):
        find_search("no search", str(tmp_path))


def test_the_state_of_a_search(tmp_path: Path) -> None:
    state = make_search(tmp_path / "made-up", {0: 20.0})
    assert state_of(replay(tmp_path / "made-up")) == "running or killed"
    state.close("interrupted", "stopped by the user")
    assert state_of(replay(tmp_path / "made-up")) == "interrupted"


# ----------------------------------------------------------------------- constraints, several metrics

CONSTRAINED = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/mse <= 0.5"]}
TWO = {"metrics": [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/mse", "direction": "minimize"}]}


def make(folder: Path, objective: Any, values: dict[int, tuple[float, float] | None]) -> SearchState:
    """Trials with these last values of psnr and mse; None is a trial that diverged."""
    folder.mkdir(parents=True)
    search = SearchSpec.model_validate(spec("maximize").model_dump(exclude_unset=True) | {"objective": objective})
    state = SearchState(search, FolderStore(folder))
    for number, pair in values.items():
        state.next_trial()
        if pair is None:
            state.end(number, "diverged", "non-finite loss at step 3")
            continue
        metrics = {"val/psnr": pair[0], "val/mse": pair[1]}
        step = 12 if number else 0
        state.report(number, eval_report(step, 0.0, metrics=metrics, checkpoint="checkpoints/step-00000012"))
    return state


def test_trials_that_keep_the_constraints_come_first(tmp_path: Path) -> None:
    values = {0: (20.0, 0.6), 1: (25.0, 0.9), 2: (21.0, 0.4), 3: (30.0, 0.7)}
    record = make(tmp_path / "made-up", CONSTRAINED, values).record
    assert [trial.number for trial in record.ranked()] == [2, 3, 1]
    rows = leaderboard(record)
    assert [(row["trial"], row["feasible"], row["val/psnr"], row["val/mse"]) for row in rows] == [
        (2, True, 21.0, 0.4),
        (3, False, 30.0, 0.7),
        (1, False, 25.0, 0.9),
        (0, False, 20.0, 0.6),
    ]
    assert "front" not in rows[0]
    result = best(FolderStore(tmp_path / "made-up"))
    assert (result["trial"], result["feasible"], result["baseline_feasible"]) == (2, True, False)
    assert result["beats_baseline"] is True
    assert result["verdict"] == (
        "val/psnr 20.0000 -> 21.0000 (+1.0000). The untuned model misses val/mse <= 0.5 (it is 0.6)"
    )


def test_without_a_feasible_trial_the_nearest_is_best_with_a_warning(tmp_path: Path) -> None:
    record = make(tmp_path / "made-up", CONSTRAINED, {0: (20.0, 0.1), 1: (25.0, 0.9), 2: (21.0, 0.6), 3: None}).record
    result = best(FolderStore(tmp_path / "made-up"))
    assert (result["trial"], result["feasible"], result["beats_baseline"]) == (2, False, False)
    assert result["verdict"].startswith(
        "WARNING: no trial keeps the constraints. This one misses val/mse <= 0.5 (it is 0.6)"
    )
    assert [(row["trial"], row["feasible"]) for row in leaderboard(record)] == [
        (2, False),
        (1, False),
        (0, True),
        (3, False),
    ]
    assert verdict(record, record.trials[1]).startswith("WARNING: no trial keeps")


@pytest.mark.parametrize(
    ("untuned", "tuned", "beats"),
    [
        ((20.0, 0.1), (21.0, 0.4), True),
        ((20.0, 0.1), (19.0, 0.1), False),
        ((20.0, 0.1), (21.0, 0.6), False),  # better, but out of bounds
        ((20.0, 0.9), (19.0, 0.4), True),  # worse, but within them
        ((20.0, 0.9), (21.0, 0.6), False),
    ],
)
def test_only_a_trial_within_bounds_beats_the_baseline(
    tmp_path: Path, untuned: tuple[float, float], tuned: tuple[float, float], beats: bool
) -> None:
    record = make(tmp_path / "made-up", CONSTRAINED, {0: untuned, 1: tuned}).record
    assert beats_baseline(record, record.trials[1]) is beats
    assert needs_warning(record, record.trials[1]) is not beats
    assert verdict(record, record.trials[1]).startswith("WARNING: ") is not beats


def test_with_two_metrics_the_front_is_marked_and_weights_choose_from_it(tmp_path: Path) -> None:
    values = {0: (20.0, 0.2), 1: (24.0, 0.3), 2: (30.0, 0.9), 3: (23.0, 0.4), 4: None}
    state = make(tmp_path / "made-up", TWO, values)
    assert [(row["trial"], row["front"]) for row in leaderboard(state.record)] == [
        (2, True),
        (1, True),
        (3, False),
        (0, False),
        (4, False),
    ]
    store = FolderStore(tmp_path / "made-up")
    result = best(store)
    assert (result["trial"], result["front"], result["checkpoint"]) == (2, [2, 1], None)
    assert result["verdict"] == "val/psnr 20.0000 -> 30.0000 (+10.0000); val/mse 0.2000 -> 0.9000 (+0.7000)"
    assert best(store, weights={"val/psnr": 1.0, "val/mse": 0.9})["trial"] == 2
    assert best(store, weights={"val/psnr": 1.0, "val/mse": 1.1})["trial"] == 1
    assert best(store, number=3)["trial"] == 3
    with pytest.raises(FtaeError, match="made-up: trial 4 did not run to its full budget; choose one of 2, 1, 3"):
        best(store, number=4)
    assert beats_baseline(state.record, state.record.trials[2]) is True


@pytest.mark.parametrize(("tuned", "beats"), [((20.0, 0.2), False), ((19.0, 0.3), False), ((19.0, 0.1), True)])
def test_with_two_metrics_a_trial_beats_the_baseline_if_it_is_better_in_one(
    tmp_path: Path, tuned: tuple[float, float], beats: bool
) -> None:
    record = make(tmp_path / "made-up", TWO, {0: (20.0, 0.2), 1: tuned}).record
    assert beats_baseline(record, record.trials[1]) is beats


def test_two_metrics_and_a_constraint(tmp_path: Path) -> None:
    both = TWO | {"constraints": ["val/mse <= 0.5"]}
    record = make(tmp_path / "made-up", both, {0: (20.0, 0.2), 1: (24.0, 0.3), 2: (30.0, 0.9), 3: (23.0, 0.4)}).record
    assert [(row["trial"], row["front"], row["feasible"]) for row in leaderboard(record)] == [
        (1, True, True),
        (3, False, True),
        (2, False, False),
        (0, False, True),
    ]
