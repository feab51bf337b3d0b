"""Running a search: checks, Ray, preflight, trials, and an end in order whatever happens."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftae.engine.data.dataset import Dataset, load_run_dataset
from ftae.engine.data.files.listing import check_output
from ftae.engine.training.evaluator import check_images
from ftae.errors import FtaeError
from ftae.results.replay import find_existing_search, replay
from ftae.results.search_record import STOPPED_BY_USER, Close, SearchRecord
from ftae.results.stored_spec import search_of
from ftae.search.coordinator import StateCoordinator
from ftae.search.curves.earlier_searches import described, warm_start
from ftae.search.preflight import ClusterCapacity, check_measured, preflight
from ftae.search.progress import Progress
from ftae.search.provenance import SAME_FOR_ALL, as_begun, pinned, provenance
from ftae.search.ray.adapters import run_trials
from ftae.search.ray.preflight_tasks import dry_run
from ftae.search.ray.session import ray_session, start_worker
from ftae.search.retention import Retention
from ftae.search.sizing import check_search, longest_report_seconds, search_seconds
from ftae.search.state import SearchState
from ftae.search.tracking_sync import TrackingSync, publish
from ftae.specs.files import dump
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.schema import Means, fields_with, without_means
from ftae.specs.search.search import SearchSpec
from ftae.specs.search.settings import SearchSettings
from ftae.storage.journal import FILE_NAME, Journal
from ftae.storage.store import Store, open_store, with_retries
from ftae.tracking import tracker_for

FLUSH_SECONDS = 60.0  # how long the end of a search waits for MLflow

# What may change between the start of a search and its resumption: its means, not its question.
MAY_CHANGE = fields_with(SearchSettings, Means)


Notify = Callable[[str], None]
Reporting = Callable[[Store, Notify], AbstractContextManager[object]]  # surrounds what changes the journal of a search


def no_reporting(store: Store, notify: Notify) -> AbstractContextManager[object]:
    """Surrounds a search without a report."""
    return nullcontext()


def run_search(
    spec: SearchSpec,
    *,
    resume: bool | None = False,
    notify: Notify | None = None,
    reporting: Reporting = no_reporting,
) -> SearchRecord:
    """Run a search until all its trials are done, its time is over, or Ctrl-C; returns what the journal holds then.

    The search lives in ``<storage>/<name>/``. ``resume``: True continues a search, False begins one, None does
    either. ``notify`` receives the progress, a line a call; without it the progress is shown on standard error.
    ``reporting`` is entered once the journal is open, and left when it is closed, before MLflow gets the outcome.

    Raises:
        FtaeError: the search exists (``resume`` False) or does not (True), or is not comparable with the one to resume;
            Ray cannot be started or joined; the preflight found a fault; the untuned model cannot be evaluated; the
            storage cannot be written.
    """
    spec = spec.with_absolute_paths()
    if not spec.search.in_object_store:
        check_output(Path(spec.search.storage) / spec.name, spec.finetune.data.image_folders())
    # Before Ray starts, which takes seconds.
    find_existing_search(spec, resume)
    _check_not_running(open_store(spec.search.storage, spec.name, "driver").folder)
    with ray_session() as is_local:
        if is_local and not spec.search.resources.gpus:  # a process that has used a GPU is not used again
            start_worker(spec.search.resources.cpus)
        return drive(spec, resume, is_local=is_local, notify=notify, reporting=reporting)


def _check_not_running(folder: Path) -> None:
    """Refuse a search that another process of this machine runs; ``SearchState`` checks again."""
    if (folder / FILE_NAME).is_file():
        Journal(folder).close()


def _facts(spec: SearchSpec, data: Dataset, before: SearchRecord | None) -> dict[str, Any]:
    """What a search is begun or resumed with. Raises FtaeError where it is not comparable with ``before``."""
    facts = provenance(spec, data)
    if before is None:
        return facts | warm_start(spec)
    _check_comparable(before, spec, facts)
    return facts


def drive(
    spec: SearchSpec,
    resume: bool | None,
    *,
    is_local: bool,
    notify: Notify | None = None,
    reporting: Reporting = no_reporting,
) -> SearchRecord:
    """``run_search`` once Ray is up. ``spec`` has absolute paths. ``is_local``: whether Ray is this machine alone."""
    store = open_store(spec.search.storage, spec.name, "driver")
    before = find_existing_search(spec, resume)
    spec = pinned(as_begun(spec, before), before)
    data = load_run_dataset(spec.finetune)
    check_images(spec.finetune, data)
    checkpoint_bytes = check_search(spec, data.num_classes).checkpoint_bytes
    facts = _facts(spec, data, before)
    _make_folder(store)
    with Progress(spec, notify) as progress:
        state = SearchState(spec, store, facts, progress.notify)
        tracking_sync = TrackingSync(store, lambda: tracker_for(spec, store), progress.notify)
        outcome, reports = Close("failed", "the driver failed"), ExitStack()
        try:
            reports.enter_context(reporting(store, progress.notify))
            store.write("search.yaml", dump(spec).encode())
            for note in [*data.notes, *(f"warm start    {line}" for line in described(state.record.facts))]:
                progress.notify(note)
            tracking_sync.start()
            if state.is_complete:
                outcome = Close("complete", state.ended_early)
            else:
                capacity = preflight(spec, store, data, checkpoint_bytes, progress.notify, is_local=is_local)
                outcome = _run_trials(state, capacity, progress)
            if state.is_complete and state.ended_early:
                progress.notify(state.ended_early)
        except (KeyboardInterrupt, SystemExit):
            outcome = STOPPED_BY_USER
            raise
        except FtaeError as error:
            outcome = Close("failed", str(error))
            raise
        finally:
            try:
                _close(state, outcome)
            finally:
                reports.close()
                _finish_tracking(store, spec, tracking_sync, progress)
    if outcome.status == "failed":
        raise FtaeError(f"{spec.name} stopped: {outcome.reason}")
    return replay(store.folder)


def _run_trials(state: SearchState, capacity: ClusterCapacity, progress: Progress) -> Close:
    spec, settings = state.spec, state.spec.search
    fingerprint = state.record.facts["dataset_fingerprint"]
    probe = dry_run(spec, fingerprint, progress.notify)
    check_measured(probe, spec, capacity, progress.notify)
    state.preflight(asdict(probe))
    if probe.checkpoint_stages:  # no trial need find out anew that memory does not suffice without
        spec = spec.model_copy(update={"finetune": spec.finetune.model_copy(update={"checkpoint_stages": True})})
    progress.follow(state.record, search_seconds(probe, spec, capacity.at_a_time))
    retention = with_retries(lambda: Retention(state, progress.notify), progress.notify)

    def on_change(number: int) -> None:
        progress.update(number)
        retention.check()
        if state.record.trial(number).status != "running":
            retention.trial_ended(number)

    deadline = None if settings.max_hours is None else time.monotonic() + 3600.0 * settings.max_hours
    coordinator = StateCoordinator(state, deadline, on_change, progress.notify)
    with closing(retention):
        run_trials(coordinator, spec, fingerprint, longest_report_seconds(probe, spec))
    coordinator.failure = coordinator.failure or retention.failure
    return _outcome(state, coordinator)


def _outcome(state: SearchState, coordinator: StateCoordinator) -> Close:
    if isinstance(coordinator.failure, OSError):
        raise _unwritable(coordinator.failure) from coordinator.failure
    if coordinator.failure is not None:
        raise coordinator.failure
    if coordinator.baseline_failed():
        return Close("failed", f"the untuned model cannot be evaluated: {state.record.trials[0].reason}")
    if state.is_complete:
        return Close("complete", state.ended_early)
    return Close("interrupted", "max_hours is over") if coordinator.is_overdue() else STOPPED_BY_USER


def _close(state: SearchState, outcome: Close) -> None:
    try:
        state.close(outcome.status, outcome.reason, by_user=outcome.by_user)
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> FtaeError:
    return FtaeError(f"the journal cannot be written: {error}. Make room, then continue with --resume; nothing is lost")


def _finish_tracking(store: Store, spec: SearchSpec, tracking_sync: TrackingSync, progress: Progress) -> None:
    try:
        if tracking_sync.finish(FLUSH_SECONDS):
            publish(store, tracker_for(spec, store))
            return
    except (FtaeError, OSError) as error:
        progress.notify(str(error))
    progress.notify(f"MLflow lacks a part of this search; once it can be reached, run: ftae sync {spec.name}")


def _make_folder(store: Store) -> None:
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FtaeError(f"search.storage: cannot make the folder {store.folder}: {error.strerror}") from error


def _check_comparable(before: SearchRecord, spec: SearchSpec, facts: Mapping[str, Any]) -> None:
    """Refuse to resume a search whose new trials could not be compared with the earlier ones.

    Trials are comparable over the same space, data, weights and seed, on the same kind of machine.

    Raises:
        FtaeError: they are not; the message names the differences.
    """

    def question(search: SearchSpec, facts: Mapping[str, Any]) -> dict[str, Any]:
        settings = search.search.model_dump(mode="json")
        asked = {f"search.{key}": value for key, value in settings.items() if key not in MAY_CHANGE}
        dumped = search.model_dump(mode="json")
        asked |= {key: dumped[key] for key in ("finetune", "search_space", "objective")}
        asked["finetune"] = without_means(FinetuneSpec, asked["finetune"])
        asked |= {f"finetune.{key} (by search.resources)": value for key, value in search.machine().items()}
        return asked | {key.replace("_", " "): facts.get(key) for key in SAME_FOR_ALL if key in before.facts}

    old, new = question(search_of(before), before.facts), question(spec, facts)
    differing = [key for key in new if new[key] != old.get(key)]
    if differing:
        raise FtaeError(
            f"trials would not be comparable with those of the search to resume: {', '.join(differing)} differ. "
            "Give the new search another name, or undo the change"
        )
