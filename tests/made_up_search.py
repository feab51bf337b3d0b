"""Searches and production runs whose journals are made up, and what MLflow shows of them."""

import json
import socket
from pathlib import Path
from typing import Any

import PIL.Image
from builders import production_spec, search_spec
from mlflow import MlflowClient
from mlflow.entities import Run

from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME as JOURNAL
from ftae.storage.journal import Event
from ftae.tracking import Outcome, OutcomeModel, Tracker, tracker_for

START = 1_700_000_000.0


class MadeUp:
    """A folder with a journal, its events two minutes apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.now = START
        self.events: list[Event] = []

    def add(self, event: str, **fields: Any) -> Event:
        self.now += 120.0
        record = {"event": event, "time": self.now, **fields}
        with (self.folder / JOURNAL).open("a") as journal:
            journal.write(json.dumps(record) + "\n")
        self.events.append(record)
        return record

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

    def with_model(self, trial: int, text: str = "weights") -> Outcome:
        """The outcome whose model is that of a trial at its last report; its only file holds ``text``."""
        report = [each for each in self.events if each["event"] == "report" and each["trial"] == trial][-1]

        def write(folder: Path) -> None:
            folder.mkdir()
            (folder / "weights.txt").write_text(text)

        return Outcome(model=OutcomeModel(report, {"optimizer.lr": 1e-3}, write))

    def close(self, status: str, reason: str | None = None) -> Event:
        return self.add("close", status=status, reason=reason)


class MadeUpSearch(MadeUp):
    def __init__(self, storage: Path, name: str, **settings: Any) -> None:
        super().__init__(storage / name)
        space = {
            "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "max_grad_norm": {"choices": [1.0, None]},
        }
        changes: dict[str, Any] = {"finetune.max_steps": 100, "finetune.metrics": ["psnr"], "search_space": space}
        self.spec = search_spec(name=name, search=settings, **changes)
        (self.folder / "search.yaml").write_text(f"name: {name}\n")

    def tracker(self, uri: str | None = None) -> Tracker:
        tracking = self.spec.tracking.model_copy(update={"uri": uri})
        return tracker_for(self.spec.model_copy(update={"tracking": tracking}), FolderStore(self.folder))

    def open(self, **more: Any) -> Event:
        search, digest = self.spec.model_dump(mode="json"), self.spec.digest()
        return self.add("open", **{"search": search, "digest": digest, "facts": {}, **more})

    def suggest(self, trial: int, kind: str = "sampled", params: dict[str, Any] | None = None, **more: Any) -> Event:
        return self.add("suggest", trial=trial, params=params or {}, kind=kind, **more)

    def end(self, trial: int, status: str, reason: str | None = None) -> Event:
        return self.add("end", trial=trial, status=status, reason=reason, value=20.0, step=100)

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


class MadeUpRun(MadeUp):
    """A production run, tracked in the store of ``storage``; its own folder is elsewhere."""

    def __init__(self, storage: Path, name: str, folder: Path) -> None:
        super().__init__(folder)
        self.storage, self.spec = storage, production_spec(name)

    def tracker(self, uri: str | None = None) -> Tracker:
        tracking = self.spec.tracking.model_copy(update={"uri": uri})
        return tracker_for(self.spec.model_copy(update={"tracking": tracking}), FolderStore(self.folder), self.storage)

    def open(self) -> Event:
        search = self.spec.model_dump(mode="json") | {"search_space": {}, "search": {"num_trials": 1}}
        return self.add("open", kind="production", search=search, digest=self.spec.digest(), facts={})


def runs_of(client: MlflowClient, experiment: str) -> dict[str, Run]:
    """The runs of an experiment, by name without its result: "trial-0001". A name that is there twice fails."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    by_name = {run.info.run_name.partition(": ")[0]: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def shown_values(report: Event) -> dict[str, float]:
    """The values of a report by the names that MLflow has for them."""
    timing = {key.replace("time/", "system/"): value for key, value in report["timing"].items()}
    return {**report["metrics"], **timing}


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
            run.info.run_name,
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
