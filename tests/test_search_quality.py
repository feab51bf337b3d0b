"""The benchmark of search quality: searches replayed on made-up curves, and what decides about their figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search_quality.__main__ import main
from benchmarks.search_quality.cost import decision_cost
from benchmarks.search_quality.peers import PEERS, RayStock
from benchmarks.search_quality.product import FtaeSearch
from benchmarks.search_quality.record import header_of
from benchmarks.search_quality.recorded_task import RecordedTask, Region, Row
from benchmarks.search_quality.results import interquartile_mean, markdown, read_results
from benchmarks.search_quality.simulation import Simulation
from benchmarks.search_quality.unit_space import Params, UnitSpace
from ftae.specs import SearchSpec
from ftae.specs.files import load_search

STEPS = (10, 20, 30, 60, 90)


def search_spec(direction: str = "maximize") -> SearchSpec:
    """A search of two leaves and a choice, with paths of some machine."""
    content: dict[str, Any] = {
        "name": "made-up",
        "finetune": {
            "model": {"family": "conv_vae", "pretrained": "/some/machine/digits-vae"},
            "data": {"source": "digits", "resolution": 16},
            "losses": {"mse": 1.0, "kl": 1e-4},
            "metrics": ["psnr", "kl"],
            "optimizer": {"lr": 1e-3},
            "max_steps": 90,
        },
        "search_space": {
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "losses.tv": {"low": 1e-4, "high": 1e-2, "log": True, "or_off": True},
            "max_grad_norm": {"choices": [0.1, 1.0, None]},
        },
        "objective": {"metric": "val/psnr", "direction": direction},
        "tracking": {"uri": "sqlite:////some/machine/mlflow.db"},
    }
    return SearchSpec.model_validate(content)


def curve(params: Params, seed: int = 0) -> dict[str, float]:
    off = abs(math.log10(params["optimizer.lr"]) + 2.5) + (params["max_grad_norm"] != 1.0) / 2
    return {str(step): 30 - off - 100 / (10 + step) + seed / 100 for step in STEPS}


def kl(params: Params) -> float:
    """It rises with the learning rate, to 1 at the best one."""
    return 1 + math.log10(params["optimizer.lr"]) + 2.5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ten configurations, one of them trained with four seeds."""
    spec = search_spec()
    params = UnitSpace(spec).random(np.random.default_rng(0), 10)
    rows: list[Row] = [
        {"kind": "random", "params": one, "seed": 0, "curve": curve(one), "metrics": {"val/kl": kl(one)}}
        for one in params
    ]
    rows += [{"kind": "noise", "params": params[0], "seed": seed, "curve": curve(params[0], seed)} for seed in range(4)]
    file = tmp_path_factory.mktemp("curves") / "made-up.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [{"search": header_of(spec)}, *rows]) + "\n")
    return file


@pytest.fixture(scope="module")
def task(recorded: Path) -> RecordedTask:
    return RecordedTask(recorded)


def test_a_file_of_curves_names_no_path_and_leaves_the_means_to_the_product(recorded: Path, task: RecordedTask) -> None:
    assert "/some" not in recorded.read_text()
    assert task.spec.finetune.model.pretrained == "digits-vae"
    assert task.spec.search == type(task.spec.search)()
    assert task.search(["search.sampler=random"]).search.sampler == "random"


def test_searches_are_replayed_and_shown(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    command = ["replay", "--tasks", str(recorded), "--budget", "2", "--workers", "2", "--seeds", "1", "--out", str(out)]
    main([*command, "--methods", "ftae", "ftae:sampler=random;scheduler=fifo", "ray_stock", "optuna_tpe_median"])
    rows = read_results(out)
    assert [row["method"] for row in rows][2:] == ["ray_stock", "optuna_tpe_median"]
    for row in rows:
        assert len(row["regret"]) == 4
        assert all(math.isfinite(regret) for regret in row["regret"])
        assert 1 <= row["finished"] <= row["started"] < 20
    main([*command, "--methods", "ftae"])
    assert read_results(out) == rows  # not replayed again
    capsys.readouterr()
    main(["table", str(out)])
    shown = capsys.readouterr().out.splitlines()
    assert shown == markdown(rows).splitlines()
    assert len(shown) == 2 + len(rows)


def test_an_unknown_method_is_refused_before_anything_is_replayed(recorded: Path) -> None:
    with pytest.raises(SystemExit, match="unknown method bohb; there are ftae"):
        main(["replay", "--tasks", str(recorded), "--methods", "bohb"])


def test_the_stand_in_knows_what_was_recorded(task: RecordedTask) -> None:
    near_the_best: Params = {"optimizer.lr": 3e-3, "losses.tv": 0.0, "max_grad_norm": 1.0}
    poor: Params = near_the_best | {"optimizer.lr": 1e-4}
    assert task.end(near_the_best) > task.end(poor)
    assert task.median < task.best
    assert task.at(task.curve(poor), 90) == task.end(poor)
    noise = task.noise(poor, np.random.default_rng(0))
    assert noise.shape == (len(STEPS),)
    assert 0 < abs(noise[-1]) < 0.03  # of seeds that differ by 0.01 each


def test_trials_that_diverge_free_their_workers(recorded: Path) -> None:
    everywhere = RecordedTask(recorded, Region(["optimizer.lr>1e-3 and max_grad_norm=null", "optimizer.lr<2e-3"]))
    assert everywhere.diverging.contains({"optimizer.lr": 5e-3, "max_grad_norm": None})
    assert not everywhere.diverging.contains({"optimizer.lr": 5e-3, "max_grad_norm": 0.1})
    outcome = Simulation(everywhere, RayStock(everywhere, seed=0), workers=1, budget=2, seed=0).run()
    assert outcome.started > 2  # the file's own diverges


def test_constraints_hold_for_what_a_search_hands_over(recorded: Path, task: RecordedTask, tmp_path: Path) -> None:
    constrained = ["objective.constraints=[val/kl <= 0.7]"]
    kept = RecordedTask(recorded, overrides=constrained)
    assert kept.best < task.best
    search = FtaeSearch(kept, seed=0, budget=6, workers=2, overrides=["search.sampler=random"])
    Simulation(kept, search, workers=2, budget=6, seed=0).run()
    best = search.best()
    search.close()
    assert best is not None
    assert kept.metrics(best)["val/kl"] <= 0.7
    command = ["replay", "--tasks", str(recorded), "--set", *constrained, "--out", str(tmp_path / "none.jsonl")]
    with pytest.raises(SystemExit, match="ray_stock knows no constraints; replay ftae"):
        main([*command, "--methods", "ray_stock"])


def test_the_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 100.0])) == 5.5
    assert "optuna_gp" in PEERS


def test_decisions_are_timed_after_made_up_trials(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps({"search": {"num_trials": 1}, **header_of(search_spec())}))
    assert load_search(file).finetune.max_steps == 90
    row = decision_cost(file, [], 5)
    assert row["trials"] == 5
    assert row["slowest_proposal_ms"] >= row["proposal_ms"] > 0
