"""The dry run: one step of the file's own configuration, on a worker, before the first trial."""

import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec

from ftae.engine.data.dataset import load_dataset
from ftae.engine.sizing import Probe
from ftae.errors import FtaeError
from ftae.search.ray import preflight_tasks
from ftae.search.ray.preflight_tasks import dry_run, dry_run_step
from ftae.specs import SearchSpec


def search(max_failures: int = 1, **finetune: Any) -> SearchSpec:
    changes = {f"finetune.{path}": value for path, value in finetune.items()}
    space = {"optimizer.lr": {"low": 1e-6, "high": 1e30, "log": True}}
    return search_spec(**changes, search_space=space, **{"search.max_failures": max_failures})


def fingerprint(spec: SearchSpec) -> str:
    return load_dataset(spec.finetune.data).fingerprint


def dies_once(folder: Path) -> Callable[..., Any]:
    """A step in which the worker is killed the first time, before it has imported anything."""

    def step(given: dict[str, Any], fingerprint: str) -> Any:
        if not (folder / "died").exists():
            (folder / "died").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        from ftae.search.ray.preflight_tasks import dry_run_step

        return dry_run_step(given, fingerprint)

    return step


@pytest.mark.usefixtures("ray_session")
def test_a_worker_measures_a_step() -> None:
    spec = search()
    notes: list[str] = []
    found = dry_run(spec, fingerprint(spec), notes.append)
    assert found.step_seconds > 0.0
    assert found.eval_seconds > 0.0
    assert [line for line in notes if "lost" in line] == []


@pytest.mark.usefixtures("ray_session")
def test_a_step_that_fails_ends_the_search_with_advice() -> None:
    spec = search(optimizer={"name": "sgd", "lr": 1e30}, max_grad_norm=None)
    with pytest.raises(FtaeError, match=r"tried and failed: on .*: non-finite .* at step \d+; lower finetune"):
        dry_run(spec, fingerprint(spec), lambda message: None)


@pytest.mark.parametrize("reason", preflight_tasks.ADVICE)
def test_every_reason_has_its_advice(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftae.errors import TrainingFailed

    def fails(*given: Any, **settings: Any) -> Probe:
        raise TrainingFailed(reason, 3)

    monkeypatch.setattr(preflight_tasks, "probe", fails)
    found = dry_run_step(search().model_dump(mode="json"), "any")
    assert isinstance(found, str)
    assert f"{reason} at step 3; " in found
    assert len(found.partition("; ")[2]) > 20


@pytest.mark.usefixtures("ray_session")
def test_code_that_a_worker_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(given: dict[str, Any], fingerprint: str) -> Probe | str:
        raise ModuleNotFoundError("No module named 'ftae.tomorrow'")

    monkeypatch.setattr(preflight_tasks, "dry_run_step", step)
    with pytest.raises(FtaeError, match=r"tried and failed: ModuleNotFoundError: No module named 'ftae\.tomorrow'"):
        dry_run(search(), "any", lambda message: None)


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
    def encode(self, images):
        if self.training: raise KeyError("scale")
        return self.encoder(images)
    def decode(self, latents): return self.decoder(latents)
"""


def failure(**finetune: Any) -> str:
    """Why a step of a run fails."""
    run = {"model": {"family": "conv_ae", "channels": 4, "depth": 1}, "losses": {"mse": 1.0}, "metrics": ["psnr"]}
    spec = search(**run | finetune)
    found = dry_run_step(spec.model_dump(mode="json"), fingerprint(spec))
    assert isinstance(found, str)
    return found


def test_a_blow_up_of_the_discriminator_ends_the_search_with_advice() -> None:
    why = failure(losses={"mse": 1.0, "adversarial": 0.1}, discriminator={"r1": 1e38, "norm": "group", "depth": 1})
    assert why.startswith(f"on {platform.node()}: adversarial blow-up at step ")
    assert "; lower finetune.discriminator.lr" in why


def test_an_error_in_the_model_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    why = failure(model={"family": "raising_nets:Net", "image_range": [0, 1]})
    assert why == f"on {platform.node()}: raised KeyError: 'scale' (raising_nets.py:9) at step 0"


# Last, because they leave no worker that has imported anything.


@pytest.mark.usefixtures("ray_session")
def test_a_lost_worker_counts_as_one_of_max_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = search(max_failures=1)
    notes: list[str] = []
    monkeypatch.setattr(preflight_tasks, "dry_run_step", dies_once(tmp_path))
    assert isinstance(dry_run(spec, fingerprint(spec), notes.append), Probe)
    [lost] = [line for line in notes if "was lost" in line]
    assert lost.startswith("preflight: the worker that tried a step was lost (")


@pytest.mark.usefixtures("ray_session")
def test_more_lost_workers_than_that_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = search(max_failures=0)
    monkeypatch.setattr(preflight_tasks, "dry_run_step", dies_once(tmp_path))
    with pytest.raises(FtaeError, match=r"tried and failed: its worker was lost \(.*\); a worker that is killed"):
        dry_run(spec, fingerprint(spec), lambda message: None)
