"""A search in MLflow: the journal's events, folded into one parent run and a child run per trial."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run

from ftae.specs.search.objective import read_objective
from ftae.tracking.mlflow_server import (
    MAX_TAG,
    Server,
    TrackingUnavailable,
    clip,
    flatten,
    milliseconds,
    now,
    points,
    table_json,
)

LEADERBOARD = "leaderboard.json"

RUN_STATUS = {
    "finished": "FINISHED",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


class SearchTracker:
    """Writes one search to MLflow. Nothing is contacted before the first ``ship`` or ``publish``.

    ``uri`` None: a SQLite store in ``storage``, the folder of all searches. ``search`` is the dumped
    spec. What tells this search from another of the same name is read from its journal's first line.
    """

    def __init__(self, uri: str | None, *, storage: Path, search_folder: Path, search: dict[str, Any]) -> None:
        self._server = Server(uri, storage)
        self._folder, self._search = search_folder, search
        self._objective = read_objective(search["objective"])
        self._experiment = ""
        self._runs: dict[int | None, _Run] | None = None  # by trial, the parent at None; None: not looked up yet

    @property
    def destination(self) -> dict[str, str]:
        """The server and the experiment it writes to."""
        return {"uri": self._server.uri, "experiment": self._experiment_name}

    @property
    def _experiment_name(self) -> str:
        name: str = self._search["tracking"]["experiment"] or self._search["name"]
        return name

    def ship(self, events: list[dict[str, Any]]) -> None:
        """Write journal events, in order. Writing them again changes nothing.

        Raises:
            TrackingUnavailable: not all could be written; ship the same events again later.
        """
        looked_up_before = self._runs is not None
        try:
            self._ship(events)
        except TrackingUnavailable as error:
            if not (looked_up_before and error.permanent):
                raise
            self._ship(events)  # somebody may have deleted a run since: look again

    def _ship(self, events: list[dict[str, Any]]) -> None:
        with self._known_runs() as runs:
            for event in events:
                self._fold(runs, event)
            touched = {event.get("trial") for event in events}  # None: the parent
            closed = any(event["event"] == "close" for event in events)  # ends all that run
            for number, run in runs.items():
                if closed or number in touched:
                    self._write(run)

    def publish(
        self,
        *,
        leaderboard: list[dict[str, Any]],
        best_config: str | None,
        files: dict[str, Path],
        tags: dict[str, str],
        metrics: dict[str, float],
    ) -> None:
        """Put the outcome on the parent run, replacing an earlier one.

        ``leaderboard`` has a dict per row; ``best_config`` is None if there is no best trial; ``files``
        maps artifact folders to local files or folders.

        Raises:
            TrackingUnavailable: not all could be written; publish again later.
        """
        with self._known_runs() as runs:
            run_id = runs[None].run_id
            with self._server.client() as client:
                there = client.get_run(run_id).data
                client.log_text(run_id, table_json(leaderboard), LEADERBOARD)
                if best_config is not None:
                    client.log_text(run_id, best_config, "best_config.yaml")
            for artifact_path, path in files.items():
                self._server.upload(run_id, path, artifact_path)
            tables = json.loads(there.tags.get("mlflow.loggedArtifacts", "[]"))
            table = {"path": LEADERBOARD, "type": "table"}
            tags = tags | {"mlflow.loggedArtifacts": json.dumps(tables if table in tables else [*tables, table])}
            # A point has a time, so the same value sent twice would be two points.
            changed = {key: value for key, value in metrics.items() if there.metrics.get(key) != value}
            self._server.log(run_id, points(changed, now(), 0), {}, tags)

    # -------------------------------------------------------------------------------------- events

    def _fold(self, runs: "dict[int | None, _Run]", event: dict[str, Any]) -> None:
        """Note what an event changes."""
        kind, at, parent = event["event"], milliseconds(event), runs[None]
        if kind == "open":
            parent.go_on()
            parent.set_params(_search_params(event["search"]))
            parent.files.append(self._folder / "search.yaml")
        elif kind == "suggest":
            run = self._trial_run(runs, event)
            run.go_on()
            run.set_tags({"ftae.kind": event["kind"]})
            run.set_params(flatten(event["params"]))
        elif kind == "adapt":
            self._trial_run(runs, event).set_tags({"ftae.changes": json.dumps(event["changes"])})
        elif kind == "report":
            run = self._trial_run(runs, event)
            run.go_on()
            run.metrics += points({**event["metrics"], **event["timing"]}, at, event["step"])
            if self._objective.constraints:
                missed = self._objective.missed(event["metrics"])
                run.set_tags({"ftae.feasible": json.dumps(not missed), "ftae.missed": clip(", ".join(missed), MAX_TAG)})
            if event["images"]:
                run.images[event["step"]] = self._folder / event["images"]
        elif kind == "end":
            run = self._trial_run(runs, event)
            run.end(event["status"], at, event["reason"])
            if event["status"] == "diverged" and self._objective.constraints:
                run.set_tags({"ftae.feasible": "false"})
        elif kind == "close":
            for run in runs.values():
                if run is not parent and run.status == "RUNNING":
                    run.end("interrupted", at)
            parent.end(event["status"], at, event["reason"])

    def _trial_run(self, runs: "dict[int | None, _Run]", event: dict[str, Any]) -> "_Run":
        trial = event["trial"]
        if trial not in runs:
            name = "baseline" if event.get("kind") == "baseline" else f"trial-{trial:04d}"
            tags = {"ftae.trial": str(trial), "mlflow.parentRunId": runs[None].run_id}
            runs[trial] = _Run(name, milliseconds(event), self._tags() | tags)
        return runs[trial]

    def _write(self, run: "_Run") -> None:
        """Send what is noted for a run, making the run first if need be."""
        if not run.run_id:
            self._create(run)
        for path in filter(Path.is_file, run.files):
            self._server.upload(run.run_id, path)
        if self._server.upload_images(run.run_id, run.images, run.started):
            run.set_tags({"mlflow.loggedImages": "True"})
        self._server.log(run.run_id, run.metrics, run.new_params, run.new_tags)
        if run.status != run.written_status:
            self._server.set_status(run.run_id, run.status, run.ended)
        run.written()

    # ---------------------------------------------------------------------------------------- runs

    @contextmanager
    def _known_runs(self) -> "Iterator[dict[int | None, _Run]]":
        """The runs of this search, looked up at the first use and again after a failure."""
        try:
            if self._runs is None:
                self._runs = self._look_up()
            yield self._runs
        except BaseException:
            self._runs = None  # what arrived is uncertain, and the server may come back as another
            raise

    def _look_up(self) -> "dict[int | None, _Run]":
        """What the server has of this search; the parent is made if missing."""
        self._experiment = self._server.experiment(self._experiment_name)
        runs: dict[int | None, _Run] = {}
        for found in self._server.runs(self._experiment, f"tags.`ftae.search_id` = '{self._search_id()}'"):
            trial = found.data.tags.get("ftae.trial")
            key = None if trial is None else int(trial)
            if key not in runs:
                runs[key] = _Run.of(found)
            elif not (found.data.params or found.data.metrics):
                # A request that was answered too late was made twice, and so was its run.
                with self._server.client() as client:
                    client.delete_run(found.info.run_id)
        if None not in runs:
            tags = self._tags() | {"ftae.kind": "search"}
            runs[None] = _Run(self._search["name"], milliseconds(self._first_event), tags)
            self._create(runs[None])
        return runs

    def _create(self, run: "_Run") -> None:
        with self._server.client() as client:
            run.run_id = client.create_run(self._experiment, run.started, run.tags, run.name).info.run_id
        run.new_tags.clear()

    def _tags(self) -> dict[str, str]:
        return {
            "ftae.search": self._search["name"],
            "ftae.search_id": self._search_id(),
            "ftae.cluster.status": "running",
        }

    def _search_id(self) -> str:
        return f"{self._first_event['digest']}-{milliseconds(self._first_event)}"

    @cached_property
    def _first_event(self) -> dict[str, Any]:
        with (self._folder / "journal.jsonl").open() as journal:
            first: dict[str, Any] = json.loads(journal.readline())
        assert first["event"] == "open"
        return first


@dataclass
class _Run:
    """One run as it shall be, and which part of that is still to be written.

    ``params``, ``tags`` and ``status`` are what the server will have in the end. Times in ms.
    """

    name: str
    started: int
    tags: dict[str, str]
    run_id: str = ""  # empty: to be made
    params: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    written_status: str = "RUNNING"
    ended: int = 0
    new_params: dict[str, str] = field(default_factory=dict)
    new_tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    images: dict[int, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, found: Run) -> "_Run":
        info, data = found.info, found.data
        run = cls(info.run_name, info.start_time, data.tags, info.run_id, data.params)
        run.status = run.written_status = info.status
        return run

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            if self.tags.get(name) != value:
                self.tags[name] = self.new_tags[name] = value

    def set_params(self, params: Mapping[str, str]) -> None:
        """MLflow refuses to change a param, so a changed one (an extended search) is told by a tag."""
        for name, value in params.items():
            if name not in self.params:
                self.params[name] = self.new_params[name] = value
            elif self.params[name] != value:
                self.set_tags({f"ftae.{name}": value})

    def go_on(self) -> None:
        if self.status != "RUNNING":
            self.status = "RUNNING"
            self.set_tags(
                {"ftae.cluster.status": "running"} | ({"ftae.reason": ""} if "ftae.reason" in self.tags else {})
            )

    def end(self, status: str, at: int, reason: str | None = None) -> None:
        self.status, self.ended = RUN_STATUS.get(status, "KILLED"), at  # another: of a later version of ftae
        self.set_tags({"ftae.cluster.status": status} | ({"ftae.reason": clip(reason, MAX_TAG)} if reason else {}))

    def written(self) -> None:
        self.written_status = self.status
        for pending in (self.new_params, self.new_tags, self.metrics, self.images, self.files):
            pending.clear()


def _search_params(search: dict[str, Any]) -> dict[str, str]:
    """What a search asks and with what means; its whole file is an artifact."""
    finetune = search["finetune"]
    return flatten(
        {
            "objective": search["objective"],
            "search": {key: value for key, value in search["search"].items() if key != "storage"},
            "search_space": {path: json.dumps(distribution) for path, distribution in search["search_space"].items()},
            "model": finetune["model"],
            "data": finetune["data"],
            "max_steps": finetune["max_steps"],
            "batch_size": finetune["batch_size"],
        }
    )
