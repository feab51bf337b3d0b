"""Running a search once Ray is up: trials through Tune, the journal written, MLflow fed, Ctrl-C honoured."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from ray import tune

from ftae.engine.data.dataset import load_run_dataset
from ftae.engine.training.evaluator import check_images
from ftae.errors import FtaeError
from ftae.results.replay import earlier, replay
from ftae.results.search_record import BY_USER, SearchRecord, search_of
from ftae.search.preflight import ClusterCapacity, accept, preflight
from ftae.search.progress import Progress
from ftae.search.provenance import QUESTION, facts, pinned
from ftae.search.ray.adapters import Coordinator, CoordinatorStopper, FailureCallback, StateScheduler, StateSearcher
from ftae.search.ray.nodes import placement, room
from ftae.search.ray.preflight_tasks import dry_run
from ftae.search.ray.trial import run_trial
from ftae.search.retention import Retention
from ftae.search.sizing import check_search, expected_seconds, search_seconds
from ftae.search.state import SearchState
from ftae.search.tracking_sync import TrackingSync, publish, tracker_of
from ftae.specs.files import dump
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.roles import Means, fields_with
from ftae.specs.search.search import SearchSpec
from ftae.specs.search.settings import SearchSettings
from ftae.storage.retry import with_retries
from ftae.storage.store import Store, open_store

FLUSH_SECONDS = 60.0  # how long the end of a search waits for MLflow

# What may change between the start of a search and its resumption: its means, not its question.
MAY_CHANGE = fields_with(SearchSettings, Means)


def drive(spec: SearchSpec, resume: bool | None, *, own: bool) -> SearchRecord:
    """``run_search`` once Ray is up. ``spec`` has absolute paths; ``own``: the Ray is this machine's own."""
    store = open_store(spec.search.storage, spec.name, "driver")
    before = earlier(spec, resume)
    spec = pinned(spec, before)
    data = load_run_dataset(spec.finetune)
    check_images(spec.finetune, data)
    num_bytes = check_search(spec, data.num_classes).checkpoint_bytes
    found = facts(spec, data)
    if before is not None:
        _same_question(before, spec, found)
    _make_folder(store)
    with Progress(spec) as progress:
        state = SearchState(spec, store, found, progress.notify)
        tracking_sync = TrackingSync(store, lambda: tracker_of(spec, store), progress.notify)
        outcome: tuple[str, str | None] = "failed", "the driver failed"
        try:
            store.write("search.yaml", dump(spec).encode())
            for note in data.notes:
                progress.notify(note)
            tracking_sync.start()
            if state.is_complete:
                outcome = "complete", state.ended_early
            else:
                ground = preflight(spec, store, data, num_bytes, progress.notify, own=own)
                outcome = _run_trials(state, ground, progress)
            if state.is_complete and state.ended_early:
                progress.notify(state.ended_early)
        except (KeyboardInterrupt, SystemExit):
            outcome = "interrupted", BY_USER
            raise
        except FtaeError as error:
            outcome = "failed", str(error)
            raise
        finally:
            try:
                _leave(state, *outcome)
            finally:
                _finish_tracking(store, spec, tracking_sync, progress)
    if outcome[0] == "failed":
        raise FtaeError(f"{spec.name} stopped: {outcome[1]}")
    return replay(store.folder)


def _run_trials(state: SearchState, ground: ClusterCapacity, progress: Progress) -> tuple[str, str | None]:
    """Let Tune run what the state hands out; returns the status of the search and a reason."""
    spec, settings = state.spec, state.spec.search
    fingerprint = state.record.facts["dataset_fingerprint"]
    probe = dry_run(spec, fingerprint, progress.notify)
    accept(probe, spec, ground, progress.notify)
    state.preflight(asdict(probe))
    progress.follow(state.record, search_seconds(probe, spec, ground.at_a_time))
    retention = with_retries(lambda: Retention(state, progress.notify), progress.notify)

    def on_change(number: int) -> None:
        progress.update(number)
        retention.check()
        if state.record.trials[number].status != "running":
            retention.ended(number)

    deadline = None if settings.max_hours is None else time.monotonic() + 3600.0 * settings.max_hours
    coordinator = Coordinator(state, deadline, on_change, progress.notify)
    evals = pairwise([0, *spec.finetune.eval_steps()])
    coordinator.expect(max(expected_seconds(probe, spec, *steps) for steps in evals))
    trainable = tune.with_parameters(run_trial, search=spec.model_dump(mode="json"), fingerprint=fingerprint)
    with (
        closing(retention),
        tempfile.TemporaryDirectory(prefix="ftae-tune-") as scratch,  # Tune's own files; nobody reads them
    ):
        tune.Tuner(
            tune.with_resources(trainable, placement(settings.resources)),
            tune_config=_tune_config(settings, coordinator),
            run_config=_run_config(settings, coordinator, scratch),
        ).fit()
    coordinator.failure = coordinator.failure or retention.failure
    return _outcome(state, coordinator)


def _tune_config(settings: SearchSettings, coordinator: Coordinator) -> tune.TuneConfig:
    return tune.TuneConfig(
        search_alg=StateSearcher(coordinator),
        scheduler=StateScheduler(coordinator),
        num_samples=-1,
        max_concurrent_trials=settings.max_concurrent or room(settings.resources),
        reuse_actors=True,
    )


def _run_config(settings: SearchSettings, coordinator: Coordinator, scratch: str) -> tune.RunConfig:
    return tune.RunConfig(
        name="tune",
        storage_path=scratch,
        stop=CoordinatorStopper(coordinator),
        callbacks=[FailureCallback(coordinator)],
        failure_config=tune.FailureConfig(max_failures=settings.max_failures),
        verbose=0,
    )


def _outcome(state: SearchState, coordinator: Coordinator) -> tuple[str, str | None]:
    if isinstance(coordinator.failure, OSError):
        raise _unwritable(coordinator.failure) from coordinator.failure
    if coordinator.failure is not None:
        raise coordinator.failure
    if coordinator.baseline_failed():
        return "failed", f"the untuned model cannot be evaluated: {state.record.trials[0].reason}"
    if state.is_complete:
        return "complete", state.ended_early
    return "interrupted", "max_hours is over" if coordinator.is_overdue() else BY_USER


def _leave(state: SearchState, status: str, reason: str | None) -> None:
    try:
        state.close(status, reason)
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> FtaeError:
    return FtaeError(f"the journal cannot be written: {error}. Make room, then go on with --resume; nothing is lost")


def _finish_tracking(store: Store, spec: SearchSpec, tracking_sync: TrackingSync, progress: Progress) -> None:
    try:
        if tracking_sync.finish(FLUSH_SECONDS):
            publish(store, tracker_of(spec, store))
            return
    except (FtaeError, OSError) as error:
        progress.notify(str(error))
    progress.notify(f"MLflow lacks a part of this search; once it can be reached, run: ftae sync {spec.name}")


# ----------------------------------------------------------------------------------------- the folder


def _make_folder(store: Store) -> None:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FtaeError(f"search.storage: cannot make the folder {store.folder}: {error.strerror}") from error


def _same_question(before: SearchRecord, spec: SearchSpec, found: Mapping[str, Any]) -> None:
    """Trials are comparable only over the same space, data, weights, seed, and kind of machine."""

    def question(search: SearchSpec, facts: Mapping[str, Any]) -> dict[str, Any]:
        settings = search.search.model_dump(mode="json")
        asked = {f"search.{key}": value for key, value in settings.items() if key not in MAY_CHANGE}
        dumped = search.model_dump(mode="json")
        asked |= {key: dumped[key] for key in ("finetune", "search_space", "objective")}
        for name in fields_with(FinetuneSpec, Means):
            del asked["finetune"][name]
        asked |= {f"finetune.{key} (by search.resources)": value for key, value in search.machine().items()}
        return asked | {key.replace("_", " "): facts.get(key) for key in QUESTION if key in before.facts}

    old, new = question(search_of(before), before.facts), question(spec, found)
    differing = [key for key in new if new[key] != old.get(key)]
    if differing:
        raise FtaeError(
            f"this is another question than that of the search to resume: {', '.join(differing)} differ. "
            "Give the new search another name, or undo the change"
        )
