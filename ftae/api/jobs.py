"""Run searches as jobs of a Ray cluster."""

from pathlib import Path
from typing import TYPE_CHECKING

from ftae.api.searches import stored_spec
from ftae.specs.search.search import SearchSpec
from ftae.user_code import code_allowed

if TYPE_CHECKING:
    from ftae.cluster.jobs import Attempt, Client


def submit_search(
    search: SearchSpec | str,
    address: str,
    *,
    storage: str = "searches",
    trials: int | None = None,
    budget: float | None = None,
    max_hours: float | None = None,
    python: str | None = None,
    max_attempts: int | None = None,
    allow_code: bool = False,
) -> str:
    """Run a search as a job of a Ray cluster; returns the name of the job at once.

    Args:
        search: the spec of a new search, or the name of a search to continue.
        address: the dashboard of the cluster, such as ``http://127.0.0.1:8265``.
        storage: where the search to continue is stored, if the cluster does not know it.
        trials: continue for this many trials more.
        budget: continue for this many full trainings more.
        max_hours: stop after this time.
        python: the Python interpreter of the cluster; by default ``python``, or the one used before.
        max_attempts: how often to start a driver that dies; by default 3.
        allow_code: allow code that the spec names.

    Raises:
        FtaeError: no cluster answers; a new search exists already; a search to continue is running or complete.
    """
    from ftae.cluster import jobs, submission

    with code_allowed(allow_code):
        client = jobs.connect(address)
        if isinstance(search, SearchSpec):
            return submission.submit_new(client, search, python=python, max_attempts=max_attempts)
        spec, before = _stopped(client, search, storage)
        spec = submission.extended(spec, trials=trials, budget=budget, max_hours=max_hours)
        return submission.submit_again(client, spec, before, python=python, max_attempts=max_attempts)


def submit_confirmation(
    name: str,
    address: str,
    *,
    storage: str = "searches",
    seeds: int = 3,
    top: int | None = None,
    python: str | None = None,
    max_attempts: int | None = None,
    allow_code: bool = False,
) -> str:
    """Run ``confirm`` as a job of a Ray cluster; returns the name of the job at once.

    Args:
        name: the name of a complete search.
        seeds: as for ``confirm``.
        top: as for ``confirm``.
        address: as for ``submit_search``.
        storage: as for ``submit_search``.
        python: as for ``submit_search``.
        max_attempts: as for ``submit_search``.
        allow_code: as for ``submit_search``.

    Raises:
        FtaeError: no cluster answers; the search is running, or its trials have not all ended.
    """
    from ftae.cluster import jobs, submission

    with code_allowed(allow_code):
        client = jobs.connect(address)
        spec, before = _stopped(client, name, storage)
        spec = submission.confirming(spec, seeds, top)
        return submission.submit_again(client, spec, before, python=python, max_attempts=max_attempts)


def _stopped(client: "Client", name: str, storage: str) -> tuple[SearchSpec, "Attempt | None"]:
    """The spec of a search that no driver runs, and its newest attempt on the cluster."""
    from ftae.cluster import jobs, submission

    before = jobs.newest(client, Path(name).name)
    submission.check_stopped(before)
    return stored_spec(name, storage) if before is None else before.spec(), before
