"""MLflow as people find it: on a real SQLite store, and behind a real server that goes and comes back."""

import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from ftae.errors import FtaeError
from ftae.specs import SearchSpec
from ftae.tracking import RunTracker, SearchTracker, TrackingUnavailable, store_uri

Event = dict[str, Any]
START = 1_700_000_000.0


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedded store for the module: making its tables takes seconds. Tests use experiments of their own."""
    return tmp_path_factory.mktemp("all searches")


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(store_uri(None, storage), registry_uri=store_uri(None, storage))


class Search:
    """A search folder with a journal, its events made by hand, two minutes apart."""

    def __init__(self, storage: Path, name: str, **settings: Any) -> None:
        self.storage, self.folder = storage, storage / name
        self.folder.mkdir()
        self.spec = SearchSpec.model_validate(
            {
                "name": name,
                "finetune": {
                    "model": {"family": "conv_ae"},
                    "data": {"source": "digits", "resolution": 16},
                    "losses": {"mse": 1.0},
                    "optimizer": {"lr": 1e-3},
                    "max_steps": 100,
                    "metrics": ["psnr"],
                },
                "search_space": {
                    "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
                    "max_grad_norm": {"choices": [1.0, None]},
                },
                "objective": {"metric": "val/psnr", "direction": "maximize"},
                "search": settings,
            }
        )
        self.now = START
        self.events: list[Event] = []
        (self.folder / "search.yaml").write_text(f"name: {name}\n")

    def tracker(self, uri: str | None = None) -> SearchTracker:
        search = self.spec.model_dump(mode="json")
        return SearchTracker(uri, storage=self.storage, search_folder=self.folder, search=search)

    def add(self, event: str, **fields: Any) -> Event:
        self.now += 120.0
        record = {"event": event, "time": self.now, **fields}
        with (self.folder / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(record) + "\n")
        self.events.append(record)
        return record

    def open(self) -> Event:
        return self.add("open", search=self.spec.model_dump(mode="json"), digest=self.spec.digest(), versions={})

    def suggest(self, trial: int, kind: str = "sampled", params: dict[str, Any] | None = None) -> Event:
        return self.add("suggest", trial=trial, params=params or {}, kind=kind)

    def report(self, trial: int, step: int, psnr: float | None = 20.0, image: bool = False) -> Event:
        path = f"trials/{trial:04d}/step-{step}.png"
        if image:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("L", (40, 24), color=step).save(self.folder / path)
        return self.add(
            "report",
            trial=trial,
            step=step,
            value=psnr,
            metrics={"val/psnr": psnr, "train/lr": 1e-3},
            timing={"time/eval": 0.5},
            checkpoint=None,
            images=path if image else None,
        )

    def end(self, trial: int, status: str, reason: str | None = None) -> Event:
        return self.add("end", trial=trial, status=status, reason=reason, value=20.0, step=100)

    def close(self, status: str, reason: str | None = None) -> Event:
        return self.add("close", status=status, reason=reason)

    def whole(self) -> list[Event]:
        """A search of four trials that end in the four ways."""
        self.open()
        self.suggest(0, "baseline")
        self.report(0, 0, 18.5, image=True)
        self.end(0, "finished")
        for trial, status in ((1, "finished"), (2, "pruned"), (3, "diverged")):
            params = {"optimizer.lr": 1e-3, "max_grad_norm": None}
            self.suggest(trial, "file" if trial == 1 else "sampled", params)
            for step in (0, 50, 100):
                self.report(trial, step, 18.5 + step / 100 + trial, image=step > 0)
            self.end(trial, status, "non-finite loss" if status == "diverged" else None)
        self.close("complete")
        return self.events


def runs_of(client: MlflowClient, experiment: str) -> dict[str, Run]:
    """The runs of an experiment, by name; a name that is there twice fails."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def artifacts_of(client: MlflowClient, run: Run, path: str | None = None) -> list[str]:
    found: list[str] = []
    for item in client.list_artifacts(run.info.run_id, path):
        found += artifacts_of(client, run, item.path) if item.is_dir else [item.path]
    return sorted(found)


def points_of(client: MlflowClient, run: Run, key: str = "val/psnr") -> list[tuple[int, int, float]]:
    history = client.get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.timestamp, point.value) for point in history)


def picture(client: MlflowClient, experiment: str) -> dict[str, Any]:
    """Everything that MLflow shows of an experiment, for comparing before and after."""
    return {
        name: (
            run.info.run_id,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            run.data.tags,
            {key: points_of(client, run, key) for key in run.data.metrics},
            artifacts_of(client, run),
        )
        for name, run in runs_of(client, experiment).items()
    }


# ------------------------------------------------------------------------------------------- one search


def test_who_keeps_the_constraints_is_a_tag(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "constrained")
    constrained = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/psnr >= 20"]}
    search.spec = SearchSpec.model_validate(search.spec.model_dump() | {"objective": constrained})
    search.open()
    for trial, psnr in ((0, 19.0), (1, 21.0), (2, 30.0)):
        search.suggest(trial, "baseline" if trial == 0 else "sampled")
        search.report(trial, 0, psnr)
    search.end(2, "diverged", "non-finite loss")
    search.tracker().ship(search.events)
    tags = {name: run.data.tags for name, run in runs_of(client, "constrained").items()}
    assert tags["baseline"]["ftae.missed"] == "val/psnr >= 20 (it is 19)"
    assert [tags[name].get("ftae.feasible") for name in ("baseline", "trial-0001", "trial-0002", "constrained")] == [
        "false",
        "true",
        "false",
        None,
    ]


def test_a_search_is_a_parent_run_with_a_child_per_trial(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "photos")
    search.tracker().ship(search.whole())
    runs = runs_of(client, "photos")
    assert set(runs) == {"photos", "baseline", "trial-0001", "trial-0002", "trial-0003"}

    parent = runs.pop("photos")
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time == int(search.now * 1000)
    assert parent.data.tags["ftae.kind"] == "search"
    assert parent.data.tags["ftae.cluster.status"] == "complete"
    expected = {
        "objective.metric": "val/psnr",
        "objective.direction": "maximize",
        "search.sampler": "tpe",
        "search.scheduler.name": "asha",
        "search.num_trials": "16",
        "search.seed": "0",
        "search.max_hours": "null",
        "model.family": "conv_ae",
        "model.pretrained": "null",
        "data.source": "digits",
        "data.flip": "false",
        "max_steps": "100",
    }
    assert expected.items() <= parent.data.params.items()
    assert json.loads(parent.data.params["search_space.optimizer.lr"])["log"] is True
    assert artifacts_of(client, parent) == ["search.yaml"]

    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["ftae.search"] == "photos"
        assert run.data.tags["ftae.search_id"] == parent.data.tags["ftae.search_id"]
    assert {name: run.data.tags["ftae.kind"] for name, run in runs.items()} == {
        "baseline": "baseline",
        "trial-0001": "file",
        "trial-0002": "sampled",
        "trial-0003": "sampled",
    }
    assert {name: (run.info.status, run.data.tags["ftae.cluster.status"]) for name, run in runs.items()} == {
        "baseline": ("FINISHED", "finished"),
        "trial-0001": ("FINISHED", "finished"),
        "trial-0002": ("KILLED", "pruned"),
        "trial-0003": ("FAILED", "diverged"),
    }
    assert runs["trial-0003"].data.tags["ftae.reason"] == "non-finite loss"
    assert runs["trial-0001"].data.params == {"optimizer.lr": "0.001", "max_grad_norm": "null"}

    events = [event for event in search.events if event.get("trial") == 2]
    run, reports = runs["trial-0002"], [event for event in events if event["event"] == "report"]
    assert (run.info.start_time, run.info.end_time) == tuple(int(events[i]["time"] * 1000) for i in (0, -1))
    assert points_of(client, run) == [(e["step"], int(e["time"] * 1000), e["value"]) for e in reports]
    assert len(points_of(client, run, "time/eval")) == 3


def test_what_a_trial_had_to_change_is_tagged(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "adapted")
    search.open()
    search.suggest(1, "file", {"optimizer.lr": 1e-3})
    search.add("start", trial=1, node="n", pid=1, step=0)
    search.add("adapt", trial=1, changes={"batch_size": 4}, reason="out of memory at step 6")
    search.add("note", trial=1, text="its worker was lost")
    search.add("preflight", probe={"step_seconds": 0.5})
    search.report(1, 50)
    search.tracker().ship(search.events)
    run = runs_of(client, "adapted")["trial-0001"]
    assert json.loads(run.data.tags["ftae.changes"]) == {"batch_size": 4}
    assert run.data.params == {"optimizer.lr": "0.001"}
    assert points_of(client, run) != []


def test_artifacts_lie_below_the_storage_folder(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "where")
    search.open()
    search.tracker().ship(search.events)
    run_id = runs_of(client, "where")["where"].info.run_id
    assert (storage / "mlartifacts" / run_id / "artifacts" / "search.yaml").read_text() == "name: where\n"


def test_shipping_again_changes_nothing(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "again")
    events = search.whole()
    tracker = search.tracker()
    tracker.ship(events)
    before = picture(client, "again")
    tracker.ship(events)
    assert picture(client, "again") == before
    search.tracker().ship(events)
    assert picture(client, "again") == before
    late = search.tracker()  # another process, whose offset was saved three batches ago
    for start in range(7, len(events), 4):
        late.ship(events[start : start + 4])
    assert picture(client, "again") == before


def test_many_small_batches_end_as_one_large_one(storage: Path, client: MlflowClient) -> None:
    whole, parts = Search(storage, "whole"), Search(storage, "parts")
    whole.tracker().ship(whole.whole())
    for event in parts.whole():
        parts.tracker().ship([event])
    one, many = runs_of(client, "whole"), runs_of(client, "parts")
    one["parts"] = one.pop("whole")
    assert one.keys() == many.keys()
    for name, run in one.items():
        assert run.info.status == many[name].info.status
        assert run.data.params == many[name].data.params
        assert run.data.tags.keys() == many[name].data.tags.keys()
        assert points_of(client, run) == points_of(client, many[name])
        assert len(artifacts_of(client, run)) == len(artifacts_of(client, many[name]))


def test_a_search_goes_on_after_an_interruption(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "resumed", num_trials=4)
    search.open()
    for trial in (1, 2):
        search.suggest(trial)
        search.report(trial, 50)
    search.end(2, "finished")
    search.close("interrupted", "stopped by the user")
    search.tracker().ship(search.events)
    runs = runs_of(client, "resumed")
    assert {name: run.info.status for name, run in runs.items()} == {
        "resumed": "KILLED",
        "trial-0001": "KILLED",
        "trial-0002": "FINISHED",
    }
    assert runs["trial-0001"].data.tags["ftae.cluster.status"] == "interrupted"
    assert runs["resumed"].data.tags["ftae.reason"] == "stopped by the user"
    shipped = len(search.events)

    settings = search.spec.search.model_copy(update={"num_trials": 8})
    search.spec = search.spec.model_copy(update={"search": settings})
    search.open()
    search.report(1, 100)
    tracker = search.tracker()
    tracker.ship(search.events[shipped:])
    runs = runs_of(client, "resumed")
    assert {name: run.info.status for name, run in runs.items()} == {
        "resumed": "RUNNING",
        "trial-0001": "RUNNING",
        "trial-0002": "FINISHED",
    }
    assert runs["resumed"].data.tags["ftae.reason"] == ""
    assert runs["resumed"].data.params["search.num_trials"] == "4"  # a param cannot be changed
    assert runs["resumed"].data.tags["ftae.search.num_trials"] == "8"

    tracker.ship([search.end(1, "finished"), search.close("complete")])
    runs = runs_of(client, "resumed")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["ftae.cluster.status"] for run in runs.values()} == {"complete", "finished"}
    assert [step for step, _, _ in points_of(client, runs["trial-0001"])] == [50, 100]


def test_a_new_search_of_the_same_name_gets_runs_of_its_own(storage: Path, client: MlflowClient) -> None:
    first = Search(storage, "same")
    first.open()
    first.tracker().ship(first.events)
    first.folder.rename(storage / "moved away")
    second = Search(storage, "same")
    second.now += 1000.0
    second.open()
    second.tracker().ship(second.events)
    experiment = client.get_experiment_by_name("same")
    assert experiment is not None
    ids = [run.data.tags["ftae.search_id"] for run in client.search_runs([experiment.experiment_id])]
    assert len(set(ids)) == len(ids) == 2


def test_values_that_spoil_charts_or_break_limits(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "limits")
    search.open()
    glob = "optimizer.lr_multipliers.enc*[0]"
    search.suggest(1, params={glob: 0.5, "freeze": ["x" * 10_000], "nested": {"a": {"b": True}, "c": {}}})
    search.report(1, 0, None)
    report = search.report(1, 50, 20.0)
    report["metrics"] |= {"train/loss": math.inf, "train/grad_norm": math.nan, "train/mse": -math.inf}
    search.end(1, "failed", "y" * 10_000)
    search.tracker().ship(search.events)
    run = runs_of(client, "limits")["trial-0001"]
    assert run.data.metrics == {"val/psnr": 20.0, "train/lr": 1e-3, "time/eval": 0.5}
    assert [step for step, _, _ in points_of(client, run)] == [50]
    freeze = run.data.params.pop("freeze")
    assert run.data.params == {
        "optimizer.lr_multipliers.enc_2a_5b0_5d": "0.5",
        "nested.a.b": "true",
        "nested.c": "{}",
    }
    assert freeze.startswith('["xxx')
    assert freeze.endswith("...")
    assert run.data.tags["ftae.reason"].startswith("yyy")


def test_thousands_of_points_in_one_batch(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "long")
    search.open()
    search.suggest(1)
    for step in range(450):
        search.report(1, step, float(step))
    search.tracker().ship(search.events)
    run = runs_of(client, "long")["trial-0001"]
    assert [value for _, _, value in points_of(client, run)] == [float(step) for step in range(450)]
    assert len(points_of(client, run, "train/lr")) == 450


# ----------------------------------------------------------------------------------------------- images


def grid_name(path: str) -> str:
    """What MLflow's image grid reads of a file name, with what may vary left out."""
    return re.sub(r"timestamp\+\d+\+[0-9a-f-]+", "timestamp+T+ID", path)


def test_images_are_named_as_mlflow_names_them(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "grid")
    search.open()
    search.suggest(1)
    event = search.report(1, 50, image=True)
    search.tracker().ship(search.events)
    ours = runs_of(client, "grid")["trial-0001"]
    theirs = client.create_run(ours.info.experiment_id)
    with PIL.Image.open(search.folder / event["images"]) as image:
        client.log_image(theirs.info.run_id, image, key="reconstruction", step=50)
    theirs = client.get_run(theirs.info.run_id)
    assert list(map(grid_name, artifacts_of(client, ours))) == list(map(grid_name, artifacts_of(client, theirs)))
    assert ours.data.tags["mlflow.loggedImages"] == theirs.data.tags["mlflow.loggedImages"]
    png = next(path for path in artifacts_of(client, ours) if path.endswith(".png"))
    shown = Path(client.download_artifacts(ours.info.run_id, png))
    assert shown.read_bytes() == (search.folder / event["images"]).read_bytes()


def test_a_missing_or_broken_image_does_not_stop_the_rest(
    storage: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    search = Search(storage, "holes")
    search.open()
    search.suggest(1)
    images = [search.folder / search.report(1, step, image=True)["images"] for step in (10, 20, 30)]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:60])
    search.tracker().ship(search.events)
    run = runs_of(client, "holes")["trial-0001"]
    assert {path.split("+")[2] for path in artifacts_of(client, run)} == {"30"}
    assert len(artifacts_of(client, run)) == 2
    assert [step for step, _, _ in points_of(client, run)] == [10, 20, 30]
    assert sum("no image of step" in record.message for record in caplog.records) == 2


# --------------------------------------------------------------------------------------------- outcomes


def test_publish_replaces_what_it_published_before(
    storage: Path, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(None, storage))  # load_table looks nowhere else
    search = Search(storage, "published")
    search.open()
    search.tracker().ship(search.events)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def publish(psnr: float, rows: int) -> Run:
        search.tracker().publish(
            leaderboard=[{"trial": i, "val/psnr": psnr - i, "reason": None} for i in range(rows)] + [{"trial": 99}],
            best_config=f"psnr: {psnr}\n",
            files={"best_checkpoint": model, "report": search.folder / "search.yaml"},
            tags={"ftae.best_trial": str(rows)},
            metrics={"best/val/psnr": psnr, "baseline/val/psnr": 18.0, "best/val/kl": math.inf},
        )
        return runs_of(client, "published")["published"]

    publish(21.0, rows=2)
    run = publish(21.0, rows=2)
    assert [value for _, _, value in points_of(client, run, "best/val/psnr")] == [21.0]
    run = publish(22.0, rows=3)
    assert run.data.metrics == {"best/val/psnr": 22.0, "baseline/val/psnr": 18.0}
    assert len(points_of(client, run, "baseline/val/psnr")) == 1
    assert run.data.tags["ftae.best_trial"] == "3"
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "leaderboard.json", "type": "table"}]
    table = client.load_table(run.info.experiment_id, "leaderboard.json", [run.info.run_id])
    assert table["trial"].tolist() == [0, 1, 2, 99]
    assert table["val/psnr"].tolist()[:3] == [22.0, 21.0, 20.0]
    assert artifacts_of(client, run) == [
        "best_checkpoint/config.json",
        "best_config.yaml",
        "leaderboard.json",
        "report/search.yaml",
        "search.yaml",
    ]
    assert Path(client.download_artifacts(run.info.run_id, "best_config.yaml")).read_text() == "psnr: 22.0\n"


def test_publish_names_a_file_that_is_not_there(storage: Path, tmp_path: Path) -> None:
    search = Search(storage, "nothing")
    search.open()
    with pytest.raises(FtaeError, match=r"gone\.bin.*does not exist") as caught:
        search.tracker().publish(
            leaderboard=[], best_config="", files={"x": tmp_path / "gone.bin"}, tags={}, metrics={}
        )
    assert not isinstance(caught.value, TrackingUnavailable)


def test_a_production_run_and_its_champion(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    versions = []
    for number, text in enumerate(("first", "second")):
        (tmp_path / "model" / "weights.txt").write_text(text)
        params, tags = {"optimizer": {"lr": 0.1}}, {"ftae.kind": "production"}
        run = RunTracker(None, storage, "production", text, START + number, params, tags)
        run.log(0, {"val/psnr": 18.0}, START + 10)
        run.log(10, {"val/psnr": 19.0, "val/kl": math.nan}, START + 20, tmp_path / "image.png")
        run.log_folder(tmp_path / "model", "model")
        versions.append(run.register("digits-ae", "model"))
        run.end("FINISHED")
    assert versions == ["1", "2"]
    champion = client.get_model_version_by_alias("digits-ae", "champion")
    assert str(champion.version) == "2"
    assert champion.run_id is not None
    logged = client.get_run(champion.run_id)
    assert logged.info.run_name == "second"
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {"optimizer.lr": "0.1"}
    assert logged.data.tags["ftae.kind"] == "production"
    assert [value for _, _, value in points_of(client, logged)] == [18.0, 19.0]
    assert logged.info.start_time == (START + 1) * 1000
    assert "val/kl" not in logged.data.metrics
    assert len([path for path in artifacts_of(client, logged) if path.startswith("images/reconstruction+step+10")]) == 2
    folder = Path(client.get_model_version_download_uri("digits-ae", "2").removeprefix("file://").replace("%20", " "))
    assert (folder / "weights.txt").read_text() == "second"


def test_a_production_run_goes_on_in_the_same_run(storage: Path, client: MlflowClient, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")

    def go(steps: int, end: Literal["KILLED", "FINISHED"]) -> Run:
        run = RunTracker(None, storage, "goes-on", "run", START, {"max_steps": steps, "lr": 0.1}, {})
        assert client.get_run(run.run_id).info.status == "RUNNING"
        for step in range(steps):
            run.log(step, {"val/psnr": 18.0 + step}, START + step, tmp_path / "image.png")
        run.end(end)
        return runs_of(client, "goes-on")["run"]

    first = go(1, "KILLED")
    second = go(3, "FINISHED")
    assert second.info.run_id == first.info.run_id
    assert (first.info.status, second.info.status) == ("KILLED", "FINISHED")
    assert second.data.params == {"max_steps": "1", "lr": "0.1"}
    assert second.data.tags["ftae.max_steps"] == "3"
    points = client.get_metric_history(second.info.run_id, "val/psnr")
    assert [(p.step, p.timestamp) for p in points] == [(step, int(START + step) * 1000) for step in range(3)]
    assert len(artifacts_of(client, second)) == 6
    client.delete_run(second.info.run_id)
    assert go(1, "FINISHED").info.run_id != second.info.run_id


# ----------------------------------------------------------------------------------------------- faults


def test_a_trial_deleted_in_the_ui_does_not_stop_the_rest(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "deleted-run")
    search.open()
    search.suggest(1)
    search.suggest(2)
    tracker = search.tracker()
    tracker.ship(search.events)
    client.delete_run(runs_of(client, "deleted-run")["trial-0001"].info.run_id)
    more = [search.report(1, 50), search.report(2, 50)]
    tracker.ship(more)
    assert len(points_of(client, runs_of(client, "deleted-run")["trial-0001"])) == 1
    assert len(points_of(client, runs_of(client, "deleted-run")["trial-0002"])) == 1


def test_a_run_that_was_made_twice_is_one_again(storage: Path, client: MlflowClient) -> None:
    search = Search(storage, "twice")
    search.open()
    search.suggest(1, params={"lr": 0.1})
    search.tracker().ship(search.events)
    run = runs_of(client, "twice")["trial-0001"]
    client.create_run(run.info.experiment_id, run.info.start_time - 1, dict(run.data.tags))
    search.tracker().ship([search.report(1, 50)])
    assert runs_of(client, "twice")["trial-0001"].info.run_id == run.info.run_id


def test_a_deleted_experiment_is_refused_for_good(storage: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    search = Search(storage, "gone")
    search.open()
    with pytest.raises(TrackingUnavailable, match=r"'gone' is deleted.*tracking\.experiment") as caught:
        search.tracker().ship(search.events)
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("uri", "permanent"),
    [
        ("http://jane:s3cret-%40x@127.0.0.1:{port}", False),
        ("postgresql+nodriver://jane:s3cret-@x@127.0.0.1:{port}/mlflow?password=s3cret-2", True),
        ("http://jane:s3cret-{long}@127.0.0.1:{port}", False),
        ("sqlite:///{folder}", False),
        ("ftp://jane:s3cret-%40x@127.0.0.1:{port}", True),
        ("runs/mlflow", True),
    ],
)
def test_what_cannot_be_reached_says_so_and_keeps_secrets(tmp_path: Path, uri: str, permanent: bool) -> None:
    search = Search(tmp_path, "away")
    search.open()
    with pytest.raises(TrackingUnavailable) as caught:
        search.tracker(uri.format(port=free_port(), folder=tmp_path, long="x" * 600)).ship(search.events)
    assert caught.value.permanent is permanent
    assert str(caught.value).startswith("MLflow at ")
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert len(str(caught.value)) <= 500


def test_first_runs_on_a_new_store_are_silent_and_may_be_several_at_once(tmp_path: Path) -> None:
    """In processes of their own: no chatter, nothing in the current folder, no half-made tables."""
    code = (
        "import os, sys; from pathlib import Path; from ftae.tracking import RunTracker\n"
        "print('ready', flush=True); input()\n"
        "run = RunTracker(None, Path(sys.argv[1]), 'e', f'r{os.getpid()}', 0.0, {'lr': 1}, {})\n"
        "run.log(0, {'val/psnr': 1.0}, 0.0); run.end('FINISHED')"
    )
    here, storage = tmp_path / "here", tmp_path / "new" / "storage"
    here.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(storage)],
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=120) for process in processes] == [("", "")] * 3
    assert list(here.iterdir()) == []
    client = MlflowClient(store_uri(None, storage))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3


# ----------------------------------------------------------------------------------------------- server


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A server on ``folder``; gone, with its workers, at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--allowed-hosts", "127.0.0.1:*"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 600
        while not is_healthy(uri):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a group of its own: the server and the workers it started
        process.wait()


def is_healthy(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=2).ok
    except requests.ConnectionError:
        return False


@pytest.mark.slow  # tests/faults has more of it
def test_a_server_that_goes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    requested: list[str] = []
    loss, chance = 0.0, random.Random(0)
    request = requests.Session.request

    def watched(self: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
        requested.append(f"{method} {url}")
        response = request(self, method, url, **kwargs)
        if chance.random() < loss:
            raise requests.ConnectionError("the request arrived, its answer did not")
        return response

    monkeypatch.setattr(requests.Session, "request", watched)
    search = Search(tmp_path, "outage")
    search.open()
    for trial in range(4):
        search.suggest(trial)
    early = list(search.events)
    for step in range(20):
        for trial in range(4):
            search.report(trial, step, float(step), image=step % 10 == 0)
    for trial in range(4):
        search.end(trial, "finished")
    late = search.events[len(early) :]
    port = free_port()

    with mlflow_server(tmp_path, port) as uri:
        with pytest.raises(TrackingUnavailable, match="Host") as caught:
            search.tracker(uri.replace("127.0.0.1", "localhost")).ship(early)
        assert caught.value.permanent
        tracker = search.tracker(uri)
        requested.clear()
        tracker.ship(early)
        assert len(requested) <= 4 + 4 + 2 * 4  # experiment and look-up; the parent and its file; two a trial
        requested.clear()
        tracker.ship(late[:32])
        assert len(requested) <= 4 * (1 + 1 + 2), requested  # a trial: points, where artifacts go, one image twice

    with pytest.raises(TrackingUnavailable) as caught:
        tracker.ship(late[32:])
    assert not caught.value.permanent

    with mlflow_server(tmp_path, port) as uri:
        tracker.ship(late)  # from the last saved offset: a part is there already
        search.tracker(uri.replace("//", "//jane:secret@")).ship(search.events)
        client = MlflowClient(uri)
        runs = runs_of(client, "outage")
        assert set(runs) == {"outage", "trial-0000", "trial-0001", "trial-0002", "trial-0003"}
        for name, run in runs.items():
            if name != "outage":
                assert run.info.status == "FINISHED"
                assert [value for _, _, value in points_of(client, run)] == [float(step) for step in range(20)]
                steps = [path.split("+")[2] for path in artifacts_of(client, run, "images")]
                assert steps == ["0", "0", "10", "10"]
        production = RunTracker(uri, tmp_path, "production", "run", START, {}, {})
        production.log_folder(search.folder / "trials" / "0000", "model")
        assert production.register("ae", "model") == "1"
        source = client.get_model_version_by_alias("ae", "champion").source
        assert source == f"{client.get_run(production.run_id).info.artifact_uri}/model"
        search.tracker(uri).publish(leaderboard=[{"a": 1}], best_config="", files={}, tags={}, metrics={"m": 1.0})
        assert "leaderboard.json" in artifacts_of(client, runs["outage"])

        before, failures, loss = picture(client, "outage"), 0, 0.1
        search.spec = search.spec.model_copy(update={"name": "lossy"})
        lossy = search.tracker(uri)
        for start in range(0, len(search.events), 10):
            while True:
                try:
                    lossy.ship(search.events[start : start + 10])
                    break
                except TrackingUnavailable:
                    failures += 1
        loss = 0.0
        assert failures > 5
        after = picture(client, "lossy")
        assert after.pop("lossy")
        for name, (_, *run) in after.items():
            assert run[:4] == list(before[name][1:5])
            assert run[5] == before[name][6]
            assert len(run[6]) == len(before[name][7])
    assert list((tmp_path / "artifacts").rglob("search.yaml"))  # where the server keeps them, not the client
    assert capfd.readouterr() == ("", "")
