"""The models of searches and production runs in MLflow: logged once, with their metrics, and registered."""

from pathlib import Path
from typing import Any

import pytest
from made_up_search import MadeUpRun, MadeUpSearch, points_of, runs_of
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus

from ftae.errors import FtaeError
from ftae.tracking import Outcome, OutcomeModel, TrackingUnavailable


def logged(client: MlflowClient, experiment: str) -> list[LoggedModel]:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_logged_models([found.experiment_id]))


def test_the_best_model_is_logged_once(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "best.model")
    search.tracker().send(search.whole())
    for text in ("first", "second"):
        search.tracker().publish(search.with_model(1, text))
        [model] = logged(client, "best.model")
        trial, parent = (runs_of(client, "best.model")[name] for name in ("trial-0001", "best.model"))
        assert (model.name, model.status) == ("best_model-trial-1", LoggedModelStatus.READY)
        assert model.source_run_id == trial.info.run_id
        assert model.params == {"optimizer.lr": "0.001"}
        assert {(metric.key, metric.step): metric.value for metric in model.metrics} == {
            ("val/psnr", 100): 20.5,
            ("train/lr", 100): 1e-3,
        }
        assert [step for step, _, _ in points_of(client, trial)] == [0, 50, 100]  # none is there twice
        for run in (trial, parent):
            assert [(each.model_id, each.step) for each in run.outputs.model_outputs] == [(model.model_id, 100)]
        assert parent.data.tags["ftae.model"] == f"models:/{model.model_id}"
        [file] = Path(model.artifact_location.removeprefix("file://").replace("%20", " ")).iterdir()
        assert file.read_text() == "first"
    search.tracker().publish(search.with_model(2))  # the search went on, and another trial is the best
    assert {model.name for model in logged(client, "best.model")} == {"best_model-trial-1", "best_model-trial-2"}
    assert list(search.folder.glob(".model-*")) == []


def test_what_could_not_be_uploaded_is_uploaded_the_next_time(
    storage: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = MadeUpSearch(storage, "interrupted")
    search.tracker().send(search.whole())

    def lost(*arguments: Any) -> None:
        raise ConnectionError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", lost)
        with pytest.raises(TrackingUnavailable, match="the line is cut"):
            search.tracker().publish(search.with_model(1))
    assert [model.status for model in logged(client, "interrupted")] == [LoggedModelStatus.PENDING]
    search.tracker().publish(search.with_model(1))
    [model] = logged(client, "interrupted")
    assert model.status == LoggedModelStatus.READY


def test_a_model_that_cannot_be_written_leaves_the_reason(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "without-images")
    search.tracker().send(search.whole())

    def write(folder: Path) -> None:
        raise FtaeError("the images are gone")

    search.tracker().publish(Outcome(model=OutcomeModel(search.events[-1] | {"trial": 1, "step": 100}, {}, write)))
    assert logged(client, "without-images") == []
    parent = runs_of(client, "without-images")["without-images"]
    assert parent.data.tags["ftae.model"] == "not logged: the images are gone"


def test_the_newest_registered_model_is_the_champion(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    versions = []
    for text in ("first", "second", "second"):  # registered again, a model is the same version
        run = MadeUpRun(storage, text, tmp_path / f"{text}-{len(versions)}")
        run.open()
        run.report(1, 12)
        tracker = run.tracker()
        tracker.send(run.events)
        tracker.publish(run.with_model(1, text))
        versions.append(tracker.register("digits-ae"))
    assert versions == ["1", "2", "2"]
    champion = client.get_model_version_by_alias("digits-ae", "champion")
    assert str(champion.version) == "2"
    assert champion.run_id == runs_of(client, "second")["second"].info.run_id
    [model] = logged(client, "second")
    assert champion.source == model.artifact_location
    assert model.tags["mlflow.modelVersions"] == '[{"name": "digits-ae", "version": "2"}]'


def test_without_a_published_model_none_is_registered(storage: Path, tmp_path: Path) -> None:
    run = MadeUpRun(storage, "nothing", tmp_path / "run")
    run.open()
    run.tracker().send(run.events)
    with pytest.raises(FtaeError, match="the run has no model yet"):
        run.tracker().register("digits-ae")
