"""Submitting a search to a cluster: its attempts, and the watcher that starts the next one when one dies."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftae.cluster.jobs import Attempt, Client, attempts, connect, newest, submit
from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord
from ftae.results.summary import record_of, state_of
from ftae.specs.search.search import SearchSpec, most_trials
from ftae.specs.search.settings import MOST_SEEDS, Confirm
from ftae.user_code import ALLOW_CODE, check_code_allowed
from ftae.wording import full_trainings

MAX_ATTEMPTS = 3


def submit_new(client: Client, spec: SearchSpec, *, python: str | None, max_attempts: int | None) -> str:
    """Submit a new search; returns the name of the job.

    Raises:
        FtaeError: the name is taken, the user does not allow the code that the search names, or the cluster refuses.
    """
    spec = spec.with_absolute_paths()
    if ":" in spec.finetune.model.family:
        check_code_allowed(spec.finetune.model.family)
    before = newest(client, spec.name)
    _check_new(spec, before)
    return _submit(client, spec, before, python, max_attempts, resume=False)


def check_stopped(before: Attempt | None) -> None:
    """Refuse to continue a search whose newest attempt is not over.

    Raises:
        FtaeError: it is not over.
    """
    if before is not None and not before.is_over:
        raise FtaeError(f"{before.description()}; stop it first (ftae stop {before.search})")


def submit_again(
    client: Client, spec: SearchSpec, before: Attempt | None, *, python: str | None, max_attempts: int | None
) -> str:
    """Submit the attempt after ``before``, which continues the search; returns the name of the job."""
    return _submit(client, spec, before, python, max_attempts, resume=True)


def _submit(
    client: Client, spec: SearchSpec, before: Attempt | None, python: str | None, max_attempts: int | None, resume: bool
) -> str:
    number = 1 if before is None else before.number + 1
    python = python or ("python" if before is None else before.python)
    last = number + (max_attempts or MAX_ATTEMPTS) - 1
    return submit(client, spec, number=number, resume=resume, python=python, last=last)


def extended(
    spec: SearchSpec, *, trials: int | None = None, budget: float | None = None, max_hours: float | None = None
) -> SearchSpec:
    """Return a stored search with more trials, a larger budget, or another time limit.

    ``budget``: full trainings to add, and with them as many trials as they hold, unless ``trials`` says how many. A
    search without a budget gets what it has used so far, and these.

    Raises:
        FtaeError: what is asked for has no effect, or gives a complete search no further trial; ``budget`` holds no
            trial.
    """
    record = record_of(spec.name, spec.search.storage)
    if record is not None and state_of(record) == "complete":
        _check_complete(record, trials, budget)
    if trials is not None and budget is None:
        _check_trials_limit(spec)
    settings: dict[str, float] = {} if max_hours is None else {"max_hours": max_hours}
    if budget is not None:
        if not 1.0 <= budget < math.inf:
            raise FtaeError(f"budget must be at least 1 full training more, or no trial comes to its end; got {budget}")
        before = _used_budget(spec, record) if spec.search.budget is None else spec.search.budget
        settings["budget"] = before + budget
        trials = most_trials(budget, spec.finetune) if trials is None else trials
    if trials is not None:
        settings["num_trials"] = spec.search.num_trials + trials
    return with_settings(spec, **settings)


def _check_complete(record: SearchRecord, trials: int | None, budget: float | None) -> None:
    """Refuse to continue a complete search that gets no room for a further trial."""
    if budget is not None:
        return
    if not record.has_budget:
        used = full_trainings(record.used_budget, record.budget)
        done = f"{record.name} is complete, and no further trial fits into its budget ({used} used)"
        raise FtaeError(f"{done}; to add full trainings: ftae extend {record.name} --budget N")
    if trials is None:
        done = f"{record.name} has finished all its {record.num_trials} trials"
        raise FtaeError(f"{done}; to add trials: ftae extend {record.name} --trials N")


def _check_trials_limit(spec: SearchSpec) -> None:
    """Refuse more trials for a search whose budget alone limits it."""
    budget = spec.search.budget
    if budget is not None and spec.search.num_trials >= (most := most_trials(budget, spec.finetune)):
        raise FtaeError(
            f"more trials have no effect: search.budget of {spec.name} ({full_trainings(budget)}) "
            f"holds at most {most}, and search.num_trials is {spec.search.num_trials}; "
            f"to add full trainings: ftae extend {spec.name} --budget N"
        )


def _used_budget(spec: SearchSpec, record: SearchRecord | None) -> float:
    if record is None:
        raise FtaeError(
            f"{spec.name} has no search.budget, and its journal, which says what is used, cannot be seen from here; "
            "give a number of trials instead"
        )
    return record.used_budget


def confirming(spec: SearchSpec, seeds: int, top: int | None) -> SearchSpec:
    """Return a stored search whose best trials are to be trained again with ``seeds`` further seeds each.

    ``top``: how many; by default 3, or as many as have kept their checkpoints if these are fewer.

    Raises:
        FtaeError: the trials of the search have not all ended, or ``seeds`` or ``top`` is out of range.
    """
    kept = spec.search.keep_checkpoints
    top = min(Confirm().top, kept) if top is None else top
    if not 1 <= seeds <= MOST_SEEDS:
        raise FtaeError(f"seeds: must be 1 .. {MOST_SEEDS}, got {seeds}")
    if not 1 <= top <= kept:
        rule = f"must be 1 .. {kept}, since search.keep_checkpoints keeps the models of so many trials"
        raise FtaeError(f"top: {rule}, got {top}")
    record = record_of(spec.name, spec.search.storage)
    if record is not None and not spec.search.confirm.seeds and state_of(record) != "complete":
        raise FtaeError(
            f"{spec.name} is not complete ({state_of(record)}): confirmations come after its trials; "
            f"to continue it: ftae resume {spec.name}"
        )
    return with_settings(spec, confirm=Confirm(seeds=seeds, top=top))


def with_settings(spec: SearchSpec, **settings: Any) -> SearchSpec:
    """Return ``spec`` with other values of its section ``search``."""
    return spec.model_copy(update={"search": spec.search.model_copy(update=settings)})


def _check_new(spec: SearchSpec, before: Attempt | None) -> None:
    """Refuse a name that is taken, unless the search of that name never came to its first trial."""
    rename = "or give the new search another name (--set name=...)"
    if before is not None and not before.is_over:
        status, stop = f"ftae status {spec.name}", f"ftae stop {spec.name}"
        raise FtaeError(f"{before.description()}. Look at it ({status}), stop it ({stop}), {rename}")
    record = record_of(spec.name, spec.search.storage)
    if record is not None and record.trials:
        found = f"{spec.search.storage} already contains a search {spec.name}"
    elif before is not None and before.may_have_begun:
        found = before.description()
    else:
        return
    resume, more = f"ftae resume {spec.name}", "trials" if spec.search.budget is None else "budget"
    extend = f"ftae extend {spec.name} --{more} N"
    raise FtaeError(f"{found}. Continue it ({resume}), add {more} ({extend}), {rename}")


WATCH_SECONDS = 3.0
START_SECONDS = 60.0


def watch(search: str, notify: Callable[[str], None]) -> None:
    """Make sure that the next attempt is submitted if this one dies; called by the driver of a job.

    There is one watcher per search. It outlives the drivers, and ends when one of them ends by itself.
    """
    # The actor imports this module from where the driver does.
    environment = {name: os.environ[name] for name in ("PYTHONPATH", ALLOW_CODE) if name in os.environ}
    context = ray.init(
        "auto",
        namespace="ftae",
        runtime_env={"env_vars": environment},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        address = f"http://{context.dashboard_url}"
        # The watcher that is found may just be ending.
        if not _is_watched(address, search) and not _is_watched(address, search):
            notify(f"this attempt is not watched; if it dies, run: ftae resume {search}")
    finally:
        ray.shutdown()


def _is_watched(address: str, search: str) -> bool:
    options = ray.remote(Watcher).options(
        name=f"watcher of {search}",
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        # The driver's node, which is the head node; another one, if the head node is restarted.
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
    )
    try:
        watcher: Any = options.remote(address, search)
        ray.get(watcher.ping.remote(), timeout=START_SECONDS)
    except RayError:
        return False
    return True


class Watcher:
    """Submits the next attempt when one has died. It has no state but the cluster's, so Ray can restart it."""

    def __init__(self, address: str, search: str) -> None:
        self._address, self._search = address, search
        self._me = ray.get_runtime_context().current_actor
        self._checking = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ping(self) -> None:
        """Answers only if the watcher stays: the next check then finds the attempt of whoever called."""
        with self._checking:
            return

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            with self._checking:
                try:
                    self._check()
                except (OSError, RuntimeError, FtaeError) as error:  # the dashboard is down, or restarting
                    logging.getLogger(__name__).warning("%s", error)

    def _check(self) -> None:
        client = connect(self._address)
        newest = next(reversed(attempts(client, self._search)), None)
        if newest is not None and newest.has_successor:
            number, python, last = newest.number + 1, newest.python, newest.last
            submit(client, newest.spec(), number=number, resume=True, python=python, last=last)
        elif newest is None or newest.is_over:
            ray.kill(self._me, no_restart=True)
            threading.Event().wait()  # until killed, with the lock held: no driver may rely on this watcher any more
