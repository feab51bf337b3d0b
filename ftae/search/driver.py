"""Running a search: Ray up, trials through Tune, the journal written, MLflow fed, Ctrl-C honoured."""

import logging
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ftae import journal
from ftae.engine.build import check_search
from ftae.engine.data import load_dataset
from ftae.errors import FtaeError
from ftae.journal import SearchRecord
from ftae.search import ENVIRONMENT
from ftae.search.adapters import Coordinator, CoordinatorStopper, FailureCallback, StateScheduler, StateSearcher
from ftae.search.progress import Progress
from ftae.search.provenance import QUESTION, facts
from ftae.search.shipper import Shipper, publish, tracker_of
from ftae.search.state import SearchState
from ftae.search.trial import run_trial
from ftae.specs.search import Resources, SearchSpec
from ftae.specs.yamlfile import dump

FLUSH_SECONDS = 60.0  # how long the end of a search waits for MLflow
# What may change between the start of a search and its resumption: its means, not its question.
MAY_CHANGE = ("num_trials", "max_hours", "max_concurrent", "resources", "keep_checkpoints", "max_failures", "storage")


def run_search(spec: SearchSpec, *, resume: bool = False) -> SearchRecord:
    """Run a search to its end, its deadline or Ctrl-C; returns what the journal holds then.

    The search lives in ``<storage>/<name>/``. With ``resume`` an existing one goes on.

    Raises:
        FtaeError: the search exists (without ``resume``) or does not (with it), or asks another question
            than the one to resume; the cluster is too small; the baseline cannot be run; no space is left.
    """
    folder = Path(spec.search.storage).expanduser().absolute() / spec.name
    _check_folder(folder, spec, resume)
    # Here, so that what is wrong with data or model is said before anything starts.
    data = load_dataset(spec.finetune.data)
    check_search(spec, None if data.class_names is None else len(data.class_names))
    found = facts(spec, data)
    if resume:
        _same_question(journal.replay(folder), spec, found)
    _make_folder(folder)
    with _ray(spec.search.resources):
        state = SearchState(spec, folder, found)
        (folder / "search.yaml").write_text(dump(spec))
        with Progress(spec, state.record) as progress:
            if data.skipped:
                progress.say(data.skipped_message())
            shipper = Shipper(folder, lambda: tracker_of(spec, folder), progress.say)
            shipper.start()
            outcome: tuple[str, str | None] = "failed", "the driver failed"
            try:
                outcome = _run_trials(state, progress)
            except (KeyboardInterrupt, SystemExit):
                outcome = "interrupted", "stopped by the user"
                raise
            finally:
                try:
                    _leave(state, *outcome)
                finally:
                    _finish_tracking(folder, spec, shipper, progress)
    if outcome[0] == "failed":
        raise FtaeError(f"{spec.name} stopped: {outcome[1]}")
    return journal.replay(folder)


def _run_trials(state: SearchState, progress: Progress) -> tuple[str, str | None]:
    """Let Tune run what the state hands out; returns the status of the search and a reason."""
    spec, settings = state.spec, state.spec.search
    if state.is_complete:
        return "complete", None

    def on_change(number: int) -> None:
        progress.update(number)
        _remove_checkpoints(state)

    deadline = None if settings.max_hours is None else time.monotonic() + 3600.0 * settings.max_hours
    coordinator = Coordinator(state, deadline, on_change)
    resources = {"cpu": settings.resources.cpus, "gpu": settings.resources.gpus}
    trainable = tune.with_parameters(run_trial, search=spec.model_dump(mode="json"), folder=str(state.folder))
    tune_config = tune.TuneConfig(
        search_alg=StateSearcher(coordinator),
        scheduler=StateScheduler(coordinator),
        num_samples=-1,
        max_concurrent_trials=settings.max_concurrent or _room(settings.resources),
        reuse_actors=True,
    )
    with tempfile.TemporaryDirectory(prefix="ftae-tune-") as scratch:  # Tune's own files; nobody reads them
        run_config = tune.RunConfig(
            name="tune",
            storage_path=scratch,
            stop=CoordinatorStopper(coordinator),
            callbacks=[FailureCallback(coordinator)],
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            verbose=0,
        )
        tune.Tuner(tune.with_resources(trainable, resources), tune_config=tune_config, run_config=run_config).fit()
    return _outcome(state, coordinator)


def _outcome(state: SearchState, coordinator: Coordinator) -> tuple[str, str | None]:
    if isinstance(coordinator.failure, OSError):
        raise _unwritable(coordinator.failure) from coordinator.failure
    if coordinator.failure is not None:
        raise coordinator.failure
    if coordinator.baseline_failed():
        return "failed", f"the untuned model cannot be evaluated: {state.record.trials[0].reason}"
    if state.is_complete:
        return "complete", None
    return "interrupted", "max_hours is over" if coordinator.is_overdue() else "stopped by the user"


def _leave(state: SearchState, status: str, reason: str | None) -> None:
    try:
        state.close(status, reason)
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> FtaeError:
    return FtaeError(f"the journal cannot be written: {error}. Make room, then go on with --resume; nothing is lost")


def _remove_checkpoints(state: SearchState) -> None:
    """Keep the best K of the whole search, and those of running trials."""
    for trial in state.expendable():
        shutil.rmtree(state.folder / "trials" / f"{trial.number:04d}" / "checkpoints", ignore_errors=True)


def _finish_tracking(folder: Path, spec: SearchSpec, shipper: Shipper, progress: Progress) -> None:
    try:
        if shipper.finish(FLUSH_SECONDS):
            publish(folder, tracker_of(spec, folder))
            return
    except FtaeError as error:
        progress.say(str(error))
    progress.say(f"MLflow lacks a part of this search; once it can be reached, run: ftae sync {spec.name}")


# ----------------------------------------------------------------------------------------- the folder


def _check_folder(folder: Path, spec: SearchSpec, resume: bool) -> None:
    exists = (folder / journal.FILE_NAME).is_file()
    if resume and not exists:
        raise FtaeError(f"there is nothing to resume in {folder}; start the search without --resume")
    if exists and not resume:
        record = journal.replay(folder)
        ended = sum(t.status != "running" for t in record.trials.values() if t.kind != "baseline")
        raise FtaeError(
            f"{folder} holds a search already ({ended} of {record.search['search']['num_trials']} trials done). "
            "Go on with it by --resume, or give the new one another name (--set name=...)"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FtaeError(f"search.storage: cannot make the folder {folder}: {error.strerror}") from error


def _same_question(before: SearchRecord, spec: SearchSpec, found: Mapping[str, Any]) -> None:
    """Trials are comparable only over the same space, data, weights, seed, and kind of machine."""

    def question(search: SearchSpec, facts: Mapping[str, Any]) -> dict[str, Any]:
        settings = search.search.model_dump(mode="json")
        asked = {f"search.{key}": value for key, value in settings.items() if key not in MAY_CHANGE}
        dumped = search.model_dump(mode="json")
        asked |= {key: dumped[key] for key in ("finetune", "search_space", "objective")}
        asked |= {f"finetune.{key} (by search.resources)": value for key, value in search.machine().items()}
        return asked | {key.replace("_", " "): facts.get(key) for key in QUESTION if key in before.facts}

    old, new = question(SearchSpec.model_validate(before.search), before.facts), question(spec, found)
    differing = [key for key in new if new[key] != old.get(key)]
    if differing:
        raise FtaeError(
            f"this is another question than that of the search to resume: {', '.join(differing)} differ. "
            "Give the new search another name, or undo the change"
        )


# -------------------------------------------------------------------------------------------- the cluster


@contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """A cluster: the one already joined, the one ``RAY_ADDRESS`` names, or one of this machine's own."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong is in the journal and the progress
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS", "local")
        # The workers of a cluster that runs already have not inherited this process's environment.
        workers = {name: os.environ[name] for name in (*ENVIRONMENT, "PYTHONPATH") if name in os.environ}
        ray.init(
            address=address,
            runtime_env=None if address == "local" else {"env_vars": workers},
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        if threading.current_thread() is threading.main_thread():
            # What batch systems send: ends the search as Ctrl-C does. Ray has set its own by now.
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        _check_room(resources)
        yield
    finally:
        if started:
            ray.shutdown()


def _check_room(resources: Resources) -> None:
    for wanted, key, leaf in ((resources.cpus, "CPU", "cpus"), (resources.gpus, "GPU", "gpus")):
        most = max((node.get(key, 0.0) for node in _nodes()), default=0.0)
        if wanted > most:
            has = f"the largest node of the cluster has {most:g} {key}s"
            raise FtaeError(f"search.resources.{leaf}: a trial asks for {wanted:g}, {has}")


def _room(resources: Resources) -> int:
    """How many trials fit at once."""
    wanted = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    return max(1, sum(min(math.floor(node.get(k, 0.0) / v) for k, v in wanted.items()) for node in _nodes()))


def _nodes() -> list[dict[str, float]]:
    """What each live node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
