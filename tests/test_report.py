"""What a search has found, told from a journal that was written by plain calls."""

from pathlib import Path
from typing import Any

import pytest

from ftae import journal
from ftae.errors import FtaeError
from ftae.report import best, find_search, state_of
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage import Store


def spec(direction: str) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": "made-up",
            "finetune": {
                "model": {"family": "conv_ae"},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3},
                "max_steps": 12,
                "num_evals": 3,
                "metrics": ["psnr", "mse"],
            },
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0}, "max_grad_norm": {"choices": [1.0, None]}},
            "objective": {"metric": "val/psnr" if direction == "maximize" else "val/mse", "direction": direction},
            "search": {"num_trials": 3, "scheduler": {"name": "fifo"}},
        }
    )


def make_search(folder: Path, values: dict[int, float | None], direction: str = "maximize") -> SearchState:
    """Trials with the given last values of the objective; None is a trial that diverged."""
    folder.mkdir(parents=True)
    state = SearchState(spec(direction), Store(folder))
    for number, value in values.items():
        state.next_trial()
        if value is None:
            state.end(number, "diverged", "non-finite loss at step 3")
            continue
        for step in (0,) if number == 0 else (0, 12):
            metrics = {"val/psnr": value, "val/mse": value} | ({"train/lr": 1e-3} if step else {})
            report: dict[str, Any] = {"step": step, "metrics": metrics, "timing": {}, "images": f"images/{step}.png"}
            state.report(number, report | {"checkpoint": f"checkpoints/step-{step:08d}" if step else None})
    return state


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_trial_is_one_plain_object(tmp_path: Path, direction: str) -> None:
    folder = tmp_path / "made-up"
    make_search(folder, {0: 20.0, 1: 21.0, 2: 19.0, 3: None}, direction).close("complete")
    number, value = (1, 21.0) if direction == "maximize" else (2, 19.0)
    params = journal.replay(folder).trials[number].params
    assert best(Store(folder)) == {
        "search": "made-up",
        "trial": number,
        "metric": "val/psnr" if direction == "maximize" else "val/mse",
        "value": value,
        "baseline": 20.0,
        "beats_baseline": True,
        "params": params,
        "metrics": {"val/psnr": value, "val/mse": value, "train/lr": 1e-3},
        "checkpoint": str(folder / f"trials/000{number}/checkpoints/step-00000012"),
    }


@pytest.mark.parametrize(("value", "beats"), [(20.0, False), (19.9, False), (20.1, True)])
def test_beating_the_baseline_is_being_strictly_better(tmp_path: Path, value: float, beats: bool) -> None:
    make_search(tmp_path / "made-up", {0: 20.0, 1: value})
    assert best(Store(tmp_path / "made-up"))["beats_baseline"] is beats


def test_a_search_without_a_full_trial_has_no_best(tmp_path: Path) -> None:
    make_search(tmp_path / "made-up", {0: 20.0, 1: None})
    with pytest.raises(FtaeError, match="made-up: no tuned trial ran to its full budget yet"):
        best(Store(tmp_path / "made-up"))


def test_the_leaderboard_has_the_ranked_trials_then_the_baseline_then_the_rest(tmp_path: Path) -> None:
    state = make_search(tmp_path / "made-up", {0: 20.0, 1: 21.0, 2: None, 3: 22.0})
    rows = state.record.leaderboard()
    assert [(row["trial"], row["kind"], row["status"], row["val/psnr"], row["step"]) for row in rows] == [
        (3, "sampled", "finished", 22.0, 12),
        (1, "file", "finished", 21.0, 12),
        (0, "baseline", "finished", 20.0, 0),
        (2, "sampled", "diverged", None, 0),
    ]
    assert rows[1]["params.optimizer.lr"] == 1e-3
    assert rows[1]["params.max_grad_norm"] == 1.0
    assert (rows[2]["params.optimizer.lr"], rows[3]["reason"]) == (None, "non-finite loss at step 3")


def test_a_search_is_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "searches" / "made-up"
    make_search(folder, {0: 20.0})
    monkeypatch.chdir(tmp_path)
    assert find_search("made-up", "searches").folder == folder
    assert find_search("searches/made-up", "elsewhere").folder == folder
    assert find_search(str(folder), "searches").folder == folder


def test_where_there_is_no_such_search_the_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=rf"there is no search 'made-upp' in {tmp_path}; it holds none"):
        find_search("made-upp", str(tmp_path))
    make_search(tmp_path / "made-up", {0: 20.0})
    make_search(tmp_path / "another", {0: 20.0})
    (tmp_path / "no search").mkdir()
    with pytest.raises(FtaeError, match=r"there is no search 'no search' in .*; choose one of another, made-up$"):
        find_search("no search", str(tmp_path))


def test_the_state_of_a_search(tmp_path: Path) -> None:
    state = make_search(tmp_path / "made-up", {0: 20.0})
    assert state_of(journal.replay(tmp_path / "made-up")) == "running or killed"
    state.close("interrupted", "stopped by the user")
    assert state_of(journal.replay(tmp_path / "made-up")) == "interrupted"
