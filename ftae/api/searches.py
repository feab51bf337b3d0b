"""Run searches in this process, and open them."""

import logging

from ftae.api.unchanged_process import Notify, unchanged_process
from ftae.results.search import Search
from ftae.specs.search.search import SearchSpec

logger = logging.getLogger("ftae")


def run_search(
    spec: SearchSpec,
    *,
    resume: bool | None = False,
    notify: Notify | None = None,
    show_progress: bool = False,
    allow_code: bool = False,
) -> Search:
    """Run a search to its end on this machine, or on the cluster that the variable ``RAY_ADDRESS`` names.

    A Ray that this process has joined before is used, and left running. The search is stored in
    ``<search.storage>/<name>/``, keeps its ``report`` up to date there, and posts to the webhooks of ``search.notify``.
    Ctrl-C ends it in order, and ``resume_search`` continues it: once trials run, the interrupted search is returned,
    before that KeyboardInterrupt is raised.

    Args:
        spec: the search.
        resume: True continues a stored search; None continues it if it exists, and starts it otherwise.
        notify: receives progress, one line a call.
        show_progress: show the progress of the trials on standard error instead, as a live table on a terminal.
        allow_code: allow code that the spec names.

    Returns:
        The search, with its trials. ``status`` is ``interrupted`` after Ctrl-C, and if ``search.max_hours`` is over.

    Raises:
        FtaeError: the search exists (with ``resume`` false) or does not exist (with true), or differs from the stored
            one; Ray cannot start; the checks before the first trial fail; the baseline cannot be evaluated.

    Examples:
        >>> search = ftae.run_search(ftae.read_search("search.yaml"))
        >>> search.best.value
    """
    notify = notify or logger.info
    notify(f"{spec.name}: checking data and model, then starting Ray")
    with unchanged_process(allow_code):
        from ftae.reporting.keep_up import kept_up_to_date
        from ftae.search.driver import run_search

        run_search(spec, resume=resume, notify=None if show_progress else notify, reporting=kept_up_to_date)
    return open_search(spec.name, spec.search.with_absolute_paths().storage)


def resume_search(
    name: str,
    storage: str = "searches",
    *,
    trials: int | None = None,
    budget: float | None = None,
    max_hours: float | None = None,
    notify: Notify | None = None,
    show_progress: bool = False,
    allow_code: bool = False,
) -> Search:
    """Continue a search that was stopped, or whose process died; or extend one, finished or not.

    Args:
        name: the name of a search below ``storage``, or its folder.
        storage: the folder or object store that holds the searches.
        trials: run this many trials more.
        budget: run this many full trainings more; a trial that is stopped counts with the share of its steps.
        max_hours: stop after this time.
        notify: as for ``run_search``.
        show_progress: as for ``run_search``.
        allow_code: as for ``run_search``.

    Raises:
        FtaeError: there is no such search; it is complete, and neither ``trials`` nor ``budget`` gives it a further
            trial; or as ``run_search``.
    """
    from ftae.cluster.submission import extended

    spec = extended(stored_spec(name, storage), trials=trials, budget=budget, max_hours=max_hours)
    return run_search(spec, resume=True, notify=notify, show_progress=show_progress, allow_code=allow_code)


def confirm(
    name: str,
    storage: str = "searches",
    *,
    seeds: int = 3,
    top: int | None = None,
    notify: Notify | None = None,
    show_progress: bool = False,
    allow_code: bool = False,
) -> Search:
    """Train the best trials of a complete search again with other seeds: how much of their lead was luck?

    What is missing is run; asking again for more seeds only adds those. A call that was interrupted is continued by
    ``resume_search``, or by the same call.

    Args:
        name: as for ``resume_search``.
        storage: as for ``resume_search``.
        seeds: so many further seeds for each trial.
        top: so many of the best trials; by default 3, or ``search.keep_checkpoints`` if that is less.
        notify: as for ``run_search``.
        show_progress: as for ``run_search``.
        allow_code: as for ``run_search``.

    Returns:
        The search. ``confirmed`` has mean and spread of each trial, and ``best`` is the one with the best mean.

    Raises:
        FtaeError: there is no such search, its trials have not all ended, or as ``run_search``.
    """
    from ftae.cluster.submission import confirming

    spec = confirming(stored_spec(name, storage), seeds, top)
    return run_search(spec, resume=True, notify=notify, show_progress=show_progress, allow_code=allow_code)


def open_search(name: str, storage: str = "searches") -> Search:
    """Open a stored search, running or not.

    Args:
        name: the name of a search below ``storage``, or the path of its folder.
        storage: the folder or the URL of the object store that holds the searches.

    Raises:
        FtaeError: there is no such search, or its journal cannot be read.
    """
    return Search.find(name, storage)


def sync_search(name: str, storage: str = "searches") -> int:
    """Send a search to MLflow again, for example after its server was wiped; returns the number of events sent.

    Sending twice changes nothing.

    Raises:
        FtaeError: there is no such search, or MLflow cannot be reached.
    """
    from ftae.results.summary import find_search
    from ftae.search.tracking_sync import sync

    return sync(find_search(name, storage))


def stored_spec(name: str, storage: str) -> SearchSpec:
    """Return the spec of a stored search, which may have been moved since it began."""
    from ftae.cluster.submission import with_settings

    search = open_search(name, storage)
    spec = search.spec
    return spec if spec.search.in_object_store else with_settings(spec, storage=str(search.folder.parent))
