"""Tune starts no more workers than it needs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftae.search.driver import run_search
from ftae.search.tune_workers import TuneController, _ActorClassCache, ray, registry, spared, tune_trial
from ftae.specs import SearchSpec
from ftae.specs.resources import Resources


def test_a_worker_that_starts_is_not_given_up_for_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reused: list[str] = []
    monkeypatch.setattr(
        TuneController, "_maybe_reuse_cached_actor", lambda controller, trial: reused.append(trial) or True
    )
    controller: Any = SimpleNamespace(_trial_to_actor={"starts": 1, "resets": 2}, _resetting_trials={"resets"})
    with spared(Resources()):
        found = {t: TuneController._maybe_reuse_cached_actor(controller, t) for t in ("starts", "resets", "new")}
    assert found == {"starts": False, "resets": True, "new": True}
    assert reused == ["resets", "new"]
    assert TuneController._maybe_reuse_cached_actor(controller, "starts")


class Trainable:
    def environment(self) -> dict[str, str]:
        return dict(os.environ)


@pytest.mark.usefixtures("ray_cluster")
def test_the_workers_of_an_own_cluster_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with spared(Resources()):
        worker = _ActorClassCache().get(Trainable).remote()
    environment = ray.get(worker.environment.remote())
    ray.kill(worker)
    assert "PL_DISABLE_FORK" not in environment, "Tune asks for it, so that no worker fits"
    assert environment["RAY_CHDIR_TO_TRIAL_DIR"] == "0", "what a trial needs it has from the driver"
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with spared(Resources()):
        worker = _ActorClassCache().get(Trainable).remote()
    assert "PL_DISABLE_FORK" in ray.get(worker.environment.remote())
    ray.kill(worker)


def test_the_function_of_all_trials_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "validate_trainable", asked.append)
    monkeypatch.setattr(registry, "get_trainable_cls", lambda name: asked.append(name) or Trainable)
    for searches in (1, 2):
        with spared(Resources()):
            trials = [tune_trial.Trial("run_trial", stub=False) for _ in range(3)]
            assert [one.get_trainable_cls() for one in trials] == [Trainable] * 3
        assert asked == ["run_trial"] * 2 * searches, "the next search has a function of its own"


def test_no_snapshot_is_made_ready_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, bool]] = []
    monkeypatch.setattr(TuneController, "checkpoint", lambda controller, **how: written.append(how))
    controller: Any = SimpleNamespace()
    with spared(Resources()):
        TuneController.checkpoint(controller)
        assert written == []
        TuneController.checkpoint(controller, force=True, wait=True)
    assert written == [{"force": True, "wait": True}]


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_of_short_trials_has_as_many_workers_as_run_at_a_time(tmp_path: Path) -> None:
    search = {
        "name": "small",
        "finetune": {
            "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
            "data": {"source": "digits", "resolution": 16},
            "losses": {"mse": 1.0},
            "optimizer": {"lr": 1e-3},
            "max_steps": 6,
            "num_evals": 2,
            "metrics": ["psnr"],
        },
        "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "search": {"num_trials": 12, "max_concurrent": 2, "storage": str(tmp_path), "scheduler": {"name": "fifo"}},
    }
    record = run_search(SearchSpec.model_validate(search))
    workers = [start["pid"] for trial in record.trials.values() for start in trial.starts]
    assert len(workers) == 13
    assert len(set(workers)) == 2
