"""Production runs in MLflow: one run, the same one whenever the run is continued."""

import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from production_runs import model_bytes, reports, silent, spec

from ftae.errors import FtaeError, TrainingFailed
from ftae.results.replay import replay
from ftae.search.production import train
from ftae.search.tracking_sync import sync, unsent
from ftae.storage.backends import FolderStore
from ftae.tracking import store_uri


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedded store for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(store_uri(None, storage), registry_uri=store_uri(None, storage))


@pytest.fixture(scope="module")
def finished(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run that was registered in the end, and its messages."""
    out, said = tmp_path_factory.mktemp("runs") / "digits", list[str]()
    train(spec(uri=None), out, storage=storage, register="digits-vae", notify=said.append)
    return out, said


def only_run(client: MlflowClient, experiment: str) -> Run:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    return run


def points(client: MlflowClient, run: Run, name: str = "val/psnr") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def artifacts(client: MlflowClient, run: Run, folder: str) -> set[str]:
    return {Path(artifact.path).name for artifact in client.list_artifacts(run.info.run_id, folder)}


def logged(client: MlflowClient, run: Run) -> LoggedModel:
    """The only logged model of a run."""
    [output] = run.outputs.model_outputs
    return client.get_logged_model(output.model_id)


def logged_files(client: MlflowClient, run: Run) -> set[str]:
    return {Path(file.path).name for file in client.list_logged_model_artifacts(logged(client, run).model_id, "model")}


def test_mlflow_has_the_run_and_its_model(
    finished: tuple[Path, list[str]], client: MlflowClient, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = finished
    run = only_run(client, "digits")
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    expected = {"ftae.kind": "production", "ftae.search": "small", "ftae.trial": "7", "ftae.status": "complete"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["ftae.run_id"] == f"digits-{run.info.start_time}"
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.params["optimizer.lr"] == "0.003"
    assert points(client, run) == [(r["step"], r["metrics"]["val/psnr"]) for r in reports(out)]
    assert logged_files(client, run) == set(model_bytes(out))
    assert len(artifacts(client, run, "images")) == 2 * 4
    assert said[-1] == "registered as version 1 of 'digits-vae', alias champion"
    version = client.get_model_version_by_alias("digits-vae", "champion")
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    assert version.source == logged(client, run).artifact_location
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the code of a model in front
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(None, storage))
    images = np.zeros((2, 1, 16, 16), np.float32)
    assert mlflow.pyfunc.load_model("models:/digits-vae@champion").predict(images).shape == images.shape
    assert unsent(FolderStore(out)) == 0


def test_a_run_that_is_continued_is_the_same_run_in_mlflow(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    during: list[tuple[str, int]] = []

    def notify(line: str) -> None:
        """Is called before the report is sent, so what is seen are the earlier ones."""
        if line.startswith(("step 8", "step 12")):
            run = only_run(client, "continued")
            during.append((run.info.status, len(points(client, run))))
        if line.startswith("step 8") and len(during) == 1:
            raise KeyboardInterrupt

    run = spec(uri=None, experiment="continued")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, storage=storage, notify=notify)
    killed = only_run(client, "continued")
    assert (killed.info.status, killed.data.tags["ftae.reason"]) == ("KILLED", "stopped by the user")
    assert [step for step, _ in points(client, killed)] == [0, 4, 8]
    train(run, tmp_path, storage=storage, resume=True, notify=notify)
    finished = only_run(client, "continued")
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    written = replay(tmp_path).trials[1].reports
    for name, shown in (("val/psnr", "val/psnr"), ("time/eval_seconds", "system/eval_seconds")):
        history = client.get_metric_history(finished.info.run_id, shown)
        expected = [(r["step"], int(r["time"] * 1000)) for r in written if name in r["metrics"] | r["timing"]]
        assert [(point.step, point.timestamp) for point in history] == expected
    assert during == [("RUNNING", 2), ("KILLED", 3), ("RUNNING", 3)]


def test_a_run_that_fails_is_seen_in_mlflow(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer.name": "sgd", "optimizer.lr": 1e6, "max_grad_norm": None}
    with pytest.raises(TrainingFailed, match="non-finite loss at step"):
        train(spec(uri=None, experiment="fails", **changes), tmp_path / "fails", storage=storage, notify=silent)

    def fail(line: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        train(spec(uri=None, experiment="breaks"), tmp_path / "breaks", storage=storage, notify=fail)
    for name, reason in (("fails", "non-finite loss at step"), ("breaks", "OSError: [Errno 28] No space left")):
        run = only_run(client, name)
        assert run.info.status == "FAILED"
        assert run.data.tags["ftae.reason"].startswith(reason)
        assert points(client, run)[0][0] == 0


def test_what_mlflow_missed_is_sent_when_it_is_back(tmp_path: Path) -> None:
    storage, said = tmp_path / "storage", list[str]()
    storage.write_text("in the way")

    def notify(line: str) -> None:
        said.append(line)
        if line.startswith("step 8"):
            storage.unlink()

    train(spec(uri=None), tmp_path / "run", storage=storage, notify=notify)
    assert [line.split()[0] for line in said] == ["MLflow", "step", "step", "step", "tracking", "step"]
    client = MlflowClient(store_uri(None, storage))
    run = only_run(client, "digits")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(client, run)] == [0, 4, 8, 12]
    assert logged_files(client, run) == set(model_bytes(tmp_path / "run"))


def test_sync_sends_a_run_and_its_model_to_a_store_that_was_wiped(tmp_path: Path) -> None:
    out, storage = tmp_path / "runs" / "digits", tmp_path / "storage"
    train(spec(uri=None), out, storage=storage, notify=silent)
    uri = store_uri(None, storage)
    before = only_run(MlflowClient(uri), "digits")
    (storage / "mlflow.db").unlink()
    assert sync(FolderStore(out)) == 9
    client = MlflowClient(uri)
    run = only_run(client, "digits")
    assert (run.info.status, run.data.params) == ("FINISHED", before.data.params)
    assert points(client, run) == [(r["step"], r["metrics"]["val/psnr"]) for r in reports(out)]
    assert logged_files(client, run) == set(model_bytes(out))
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize("uri", ["nosuch://somewhere", "./mlruns", "http:///nobody"])
def test_a_useless_address_is_refused_before_the_first_step(uri: str, storage: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(FtaeError, match="MLflow at"):
        train(spec(uri=uri), tmp_path, storage=storage, notify=said.append)
    assert (said, (tmp_path / "journal.jsonl").read_text()) == ([], "")


def test_a_deleted_experiment_is_refused_before_the_first_step(tmp_path: Path) -> None:
    uri = store_uri(None, tmp_path)
    client = MlflowClient(uri, registry_uri=uri)
    client.delete_experiment(client.create_experiment("digits"))
    with pytest.raises(FtaeError, match="the MLflow experiment 'digits' is deleted"):
        train(spec(uri=None), tmp_path / "run", storage=tmp_path, notify=silent)
    assert (tmp_path / "run" / "journal.jsonl").read_text() == ""
