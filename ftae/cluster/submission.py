"""Submits searches to a cluster: new ones, and stored ones that continue."""

from typing import Any

from ftae.cluster.jobs import Attempt, Client, newest, submit
from ftae.errors import FtaeError
from ftae.results.summary import record_of, state_of
from ftae.specs.search.search import SearchSpec
from ftae.user_code import check_code_allowed

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


def extended(spec: SearchSpec, trials: int | None, max_hours: float | None) -> SearchSpec:
    """Return a stored search with more trials, or another time limit.

    Raises:
        FtaeError: all its trials are done, and no more are asked for.
    """
    if trials is not None:
        spec = with_settings(spec, num_trials=spec.search.num_trials + trials)
    elif (record := record_of(spec.name, spec.search.storage)) is not None and state_of(record) == "complete":
        done = f"{spec.name} has finished all its {spec.search.num_trials} trials"
        raise FtaeError(f"{done}; to add trials: ftae extend {spec.name} --trials N")
    return spec if max_hours is None else with_settings(spec, max_hours=max_hours)


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
    resume, extend = f"ftae resume {spec.name}", f"ftae extend {spec.name} --trials N"
    raise FtaeError(f"{found}. Continue it ({resume}), add trials ({extend}), {rename}")
