"""Searches and production runs in MLflow.

A search is a parent run with a child run per trial; a production run is one run. All of it is a projection of the
journal. Sending events again changes nothing, because a metric point is identified by its values, runs are found by
their tags before they are made, and the name of an image depends on nothing but its run and step.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from ftae.errors import FtaeError
from ftae.specs.finetune.metrics import in_unit
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.storage import journal
from ftae.storage.journal import Event
from ftae.storage.store import Store
from ftae.tracking import Outcome, OutcomeModel, Tracker, TrackingUnavailable
from ftae.tracking.mlflow_models import log_model, register_model
from ftae.tracking.mlflow_origin import dataset_input, origin_tags
from ftae.tracking.mlflow_outcome import publish
from ftae.tracking.mlflow_run import RunState, flatten, milliseconds
from ftae.tracking.mlflow_server import MAX_TAG, Server, clip

MODEL_TAG, MODEL_URI = "ftae.model", "models:/"
Runs = dict[int | None, RunState]  # by trial; the main run, of the search or the production run, at None
S = TypeVar("S", SearchSpec, ProductionSpec)


def make_tracker(spec: SearchSpec | ProductionSpec, store: Store, storage: Path) -> Tracker:
    """See ``tracker_for``."""
    if isinstance(spec, ProductionSpec):
        return ProductionTracker(spec, store.folder, storage)
    return SearchTracker(spec, store.folder, storage)


class MlflowTracker(ABC, Generic[S]):
    """What both kinds of searches have in common. Nothing is contacted before the first call of a method.

    ``folder`` holds the journal, whose first event tells this search from another of the same name.
    """

    _has_children: bool  # a run per trial

    def __init__(self, spec: S, folder: Path, storage: Path) -> None:
        self._spec: S = spec
        self._folder = folder
        self._server = Server(spec.tracking.uri, storage)
        self._experiment_name = spec.tracking.experiment or spec.name
        self._experiment = ""  # its id
        self._runs: Runs | None = None  # None: not looked up yet

    @property
    def destination(self) -> dict[str, str]:
        return {"uri": self._server.uri, "experiment": self._experiment_name}

    def check(self) -> None:
        self._server.experiment(self._experiment_name)

    def send(self, events: Sequence[Event]) -> None:
        looked_up_before = self._runs is not None
        try:
            self._send(events)
        except TrackingUnavailable as error:
            if not (looked_up_before and error.permanent):
                raise
            self._send(events)  # somebody may have deleted a run: find the runs again

    def _send(self, events: Sequence[Event]) -> None:
        with self._known_runs() as runs:
            for event in events:
                self._fold(runs, event)
            for run in runs.values():
                if not run.run_id:
                    self._create(run)
                if not run.is_written:
                    run.write(self._server)

    def publish(self, outcome: Outcome) -> None:
        with self._known_runs() as runs:
            run_id = runs[None].run_id
            publish(self._server, run_id, outcome)
            if outcome.model is not None:
                self._server.log(run_id, [], {}, {MODEL_TAG: self._log_model(runs, outcome.model)})

    def _log_model(self, runs: Runs, model: OutcomeModel) -> str:
        """Log the model; returns its URI, or why it cannot be logged."""
        trial, step = model.report["trial"], model.report["step"]
        tags = dict([self._identity()]) | {"ftae.trial": str(trial), "ftae.step": str(step)}
        shown_in = [runs[key] for key in (trial, None) if key in runs]  # a person may have deleted the trial's
        try:
            model_id = log_model(
                self._server,
                self._experiment,
                model,
                name=f"{self._spec.name}-trial-{trial}" if self._has_children else self._spec.name,
                tags=tags,
                runs=[run.run_id for run in shown_in],
                folder=self._folder,
            )
        except TrackingUnavailable:
            raise
        except FtaeError as error:
            return clip(f"not logged: {error}", MAX_TAG)
        return f"{MODEL_URI}{model_id}"

    def register(self, name: str) -> str:
        with self._known_runs() as runs:
            run_id = runs[None].run_id
            with self._server.client() as client:
                published = client.get_run(run_id).data.tags.get(MODEL_TAG, "the run has no model yet")
            if not published.startswith(MODEL_URI):
                raise FtaeError(published)
            return register_model(self._server, run_id, published.removeprefix(MODEL_URI), name)

    def page(self, trial: int | None = None) -> str:
        run = self._find_runs().get(trial)
        if run is None:
            what = self._spec.name if trial is None else f"trial {trial} of {self._spec.name}"
            raise FtaeError(f"MLflow has no run of {what}; send it with: ftae sync {self._spec.name}")
        # The parameter opens "Model training": MLflow shows "GenAI" otherwise, whatever kind the experiment has.
        return f"#/experiments/{self._experiment}/runs/{run.run_id}?workflowType=machine_learning"

    # ------------------------------------------------------------------------- what differs by the kind

    @abstractmethod
    def _identity(self) -> tuple[str, str]:
        """The tag, as name and value, that all runs of this search have and no other run has."""

    @abstractmethod
    def _main_tags(self) -> dict[str, str]:
        """The other tags of the main run."""

    @abstractmethod
    def _fold(self, runs: Runs, event: Event) -> None:
        """Note what an event changes."""

    # --------------------------------------------------------------------------------------------- runs

    @contextmanager
    def _known_runs(self) -> Iterator[Runs]:
        """The runs of this search, looked up at the first use and again after a failure."""
        try:
            if self._runs is None:
                self._runs = self._look_up()
            yield self._runs
        except BaseException:
            self._runs = None  # what arrived is uncertain, and the server may come back as another one
            raise

    def _look_up(self) -> Runs:
        """Find the runs that the server has of this search; creates the main run if it is missing."""
        runs = self._find_runs()
        if None not in runs:
            tags = dict([self._identity()]) | {"ftae.status": "running"} | self._main_tags()
            runs[None] = RunState(self._spec.name, milliseconds(self._first_event), tags)
            self._create(runs[None])
        return runs

    def _find_runs(self) -> Runs:
        self._experiment = self._server.experiment(self._experiment_name)
        runs: Runs = {}
        tag, value = self._identity()
        for found in self._server.runs(self._experiment, f"tags.`{tag}` = '{value}'"):
            tags = found.data.tags
            trial = tags.get("ftae.trial", tags.get("ftae.confirmation")) if self._has_children else None
            key = None if trial is None else int(trial)
            if key not in runs:
                runs[key] = RunState.of(found)
            elif not (found.data.params or found.data.metrics):
                # A request that was answered too late was repeated, and made the run twice.
                with self._server.client() as client:
                    client.delete_run(found.info.run_id)
        return runs

    def _create(self, run: RunState) -> None:
        with self._server.client() as client:
            tags = origin_tags(self._first_event) | run.tags
            run.run_id = client.create_run(self._experiment, run.started, tags, run.name).info.run_id
        run.new_tags.clear()
        run.new_name = ""

    @cached_property
    def _first_event(self) -> Event:
        first, _ = next(journal.read(self._folder))
        assert first["event"] == "open"
        return first


class SearchTracker(MlflowTracker[SearchSpec]):
    """A search: its trials are child runs of the main run."""

    _has_children = True

    def _identity(self) -> tuple[str, str]:
        return "ftae.search_id", f"{self._first_event['digest']}-{milliseconds(self._first_event)}"

    def _main_tags(self) -> dict[str, str]:
        return {"ftae.search": self._spec.name, "ftae.kind": "search"}

    def _fold(self, runs: Runs, event: Event) -> None:
        kind, at, main = event["event"], milliseconds(event), runs[None]
        if kind == "open":
            main.resume()
            main.set_params(_search_params(event["search"]))
            main.files.append(self._folder / "search.yaml")
            _set_origin(main, event)
        elif kind == "suggest":
            run = self._trial_run(runs, event)
            run.resume()
            run.set_tags({"ftae.kind": event["kind"]})
            run.set_params(flatten(event["params"] | event.get("changes", {})))
        elif kind == "adapt":
            self._trial_run(runs, event).set_tags({"ftae.changes": json.dumps(event["changes"])})
        elif kind == "report":
            run = self._trial_run(runs, event)
            run.resume()
            run.add_report(event, self._folder)
            if event["value"] is not None:
                run.show(in_unit(event["value"], self._spec.objective.first.metric))
            run.set_tags(self._feasibility(event["metrics"]))
        elif kind == "end":
            run = self._trial_run(runs, event)
            run.end(event["status"], at, event["reason"])
            if event["status"] in ("diverged", "failed"):
                run.show(event["status"])
            if event["status"] == "diverged" and self._spec.objective.constraints:
                run.set_tags({"ftae.feasible": "false"})
        elif kind == "close":
            for run in runs.values():
                if run is not main and run.status == "RUNNING":
                    run.end("interrupted", at)
            main.end(event["status"], at, event["reason"])

    def _feasibility(self, metrics: Mapping[str, float]) -> dict[str, str]:
        if not self._spec.objective.constraints:
            return {}
        missed = self._spec.objective.missed(metrics)
        return {"ftae.feasible": json.dumps(not missed), "ftae.missed": clip(", ".join(missed), MAX_TAG)}

    def _trial_run(self, runs: Runs, event: Event) -> RunState:
        trial = event["trial"]
        if trial not in runs:
            name, own_tags = _named(event)
            tags = {"ftae.search": self._spec.name, "ftae.status": "running"} | own_tags
            tags |= dict([self._identity()]) | {"mlflow.parentRunId": runs[None].run_id}
            runs[trial] = RunState(name, milliseconds(event), tags)
        return runs[trial]


class ProductionTracker(MlflowTracker[ProductionSpec]):
    """A production run: one run, with the metrics of its only trial."""

    _has_children = False

    def _identity(self) -> tuple[str, str]:
        return "ftae.run_id", f"{self._spec.name}-{milliseconds(self._first_event)}"

    def _main_tags(self) -> dict[str, str]:
        """The search that the run came from, as far as that are single values: search, trial, dataset_fingerprint."""
        facts = {key: value for key, value in (self._spec.from_search or {}).items() if not isinstance(value, dict)}
        return {"ftae.kind": "production"} | {f"ftae.{key}": str(value) for key, value in facts.items()}

    def _fold(self, runs: Runs, event: Event) -> None:
        kind, run = event["event"], runs[None]
        if kind == "open":
            run.resume()
            run.set_params(flatten(event["search"]["finetune"]))
            _set_origin(run, event)
        elif kind == "report":
            run.add_report(event, self._folder)
        elif kind == "close":
            run.end(event["status"], milliseconds(event), event["reason"])


def _set_origin(run: RunState, opened: Event) -> None:
    run.set_tags(origin_tags(opened))
    if (dataset := dataset_input(opened)) is not None:
        run.datasets.append(dataset)


def _named(event: Event) -> tuple[str, dict[str, str]]:
    """The name of a trial's run, and the tags that tell it from others. A confirmation has no tag ``ftae.trial``."""
    trial = event["trial"]
    if event.get("kind") == "confirmation":
        of, seed = event["of"], event["changes"]["seed"]
        return f"trial-{of:04d}-seed-{seed}", {"ftae.confirmation": str(trial), "ftae.confirms": str(of)}
    return "baseline" if event.get("kind") == "baseline" else f"trial-{trial:04d}", {"ftae.trial": str(trial)}


def _search_params(search: Mapping[str, Any]) -> dict[str, str]:
    """The question that a search asks, and its means; the whole file is an artifact."""
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
