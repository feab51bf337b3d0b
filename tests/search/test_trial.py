"""What a worker says of its trial. Only Tune's own ``report`` is left out: whole searches go through it elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftae.engine.checkpoint import latest_checkpoint
from ftae.search import trial
from ftae.search.trial import run_trial
from ftae.specs import SearchSpec

SEARCH = SearchSpec.model_validate(
    {
        "name": "small",
        "finetune": {
            "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
            "data": {"source": "digits", "resolution": 16},
            "losses": {"mse": 1.0, "kl": 1e-3},
            "optimizer": {"name": "sgd", "lr": 1e-2},
            "max_grad_norm": None,
            "max_steps": 12,
            "num_evals": 3,
            "metrics": ["psnr"],
        },
        "search_space": {
            "optimizer.lr": {"low": 1e-4, "high": 1e6, "log": True},
            "losses.mse": {"choices": [0.0, 1.0]},
            "freeze_depth": {"choices": [0, 2]},
        },
        "objective": {"metric": "val/psnr", "direction": "maximize"},
    }
)


class Stopped(Exception):
    """Tune ends a trial inside a report."""


class Worker:
    """Runs trials in this process and notes what they say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.said = folder, list[dict[str, Any]]()
        self._stop_at: int | None = None
        monkeypatch.setattr(trial.tune, "report", self._report)

    def _report(self, metrics: dict[str, Any]) -> None:
        message = json.loads(metrics["message"])
        self.said.append(message)
        if "report" in message and message["report"]["step"] == self._stop_at:
            raise Stopped

    def run(self, number: int, stop_at: int | None = None, **params: Any) -> list[dict[str, Any]]:
        self.said, self._stop_at = [], stop_at
        values = {path.replace("__", "."): value for path, value in params.items()}
        config = {"number": number, "kind": "sampled", "params": values}
        try:
            run_trial(config, search=SEARCH.model_dump(mode="json"), folder=str(self.folder))
        except Stopped:
            assert stop_at is not None
        return self.said


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(tmp_path, monkeypatch)


def test_a_trial_reports_what_is_on_disk(worker: Worker) -> None:
    reports = [message["report"] for message in worker.run(7, optimizer__lr=1e-3)]
    assert [report["step"] for report in reports] == [0, 4, 8, 12]
    place = worker.folder / "trials" / "0007"
    assert all((place / report["images"]).is_file() for report in reports)
    assert place / reports[-1]["checkpoint"] == latest_checkpoint(place)
    assert set(reports[-1]) == {"step", "metrics", "timing", "checkpoint", "images"}


def test_a_stopped_trial_repeats_its_last_report_and_goes_on(worker: Worker, tmp_path: Path) -> None:
    whole = [message["report"]["metrics"] for message in worker.run(1, optimizer__lr=1e-2)]
    first = [message["report"]["metrics"] for message in worker.run(2, stop_at=8, optimizer__lr=1e-2)]
    rest = [message["report"]["metrics"] for message in worker.run(2, optimizer__lr=1e-2)]
    assert (first, rest) == (whole[:3], whole[2:])


def test_params_that_cannot_be_trained_have_diverged(worker: Worker) -> None:
    report, end = worker.run(1, optimizer__lr=1e6)
    assert report["report"]["step"] == 0
    assert end == {"diverged": "non-finite loss at step 1"}


def test_a_fault_of_the_user_fails_the_trial(worker: Worker) -> None:
    report, end = worker.run(1, losses__mse=0.0, freeze_depth=2)
    assert report["report"]["step"] == 0
    assert end == {"failed": "freeze leaves nothing to train that losses (kl) depend on"}


def test_files_that_cannot_be_written_are_a_fault_of_the_storage(worker: Worker) -> None:
    (worker.folder / "trials").write_text("a file where the trials should go")
    [end] = worker.run(1)
    assert set(end) == {"storage"}
    assert end["storage"].startswith("trial 1 cannot use its files: [Errno 20] Not a directory")
