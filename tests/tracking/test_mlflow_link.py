"""The addresses of runs in MLflow."""

from pathlib import Path

from made_up_search import MadeUpSearch, runs_of
from mlflow import MlflowClient

from ftae.tracking.mlflow_link import run_link


def test_a_trial_and_a_search_have_an_address(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search = MadeUpSearch(tmp_path, "small")
    search.tracker(uri).send(search.whole())
    runs = runs_of(MlflowClient(uri, registry_uri=uri), "small")
    for trial, name in ((None, "small"), (1, "trial-0001")):
        run = runs[name].info
        assert run_link(uri, "small", "small", trial) == f"{uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert run_link(uri, "small", "small", 17) is None
