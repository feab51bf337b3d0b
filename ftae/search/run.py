"""Running a search. What it needs is imported while Ray and its first worker start."""

from pathlib import Path

from ftae.engine.data.listing import check_output
from ftae.results.replay import earlier
from ftae.results.search_record import SearchRecord
from ftae.search.ray.session import ray_session, start_worker
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import Journal
from ftae.storage.store import JOURNAL, open_store


def run_search(spec: SearchSpec, *, resume: bool | None = False) -> SearchRecord:
    """Run a search to its end, its deadline or Ctrl-C; returns what the journal holds then.

    The search lives in ``<storage>/<name>/``. With ``resume`` an existing one goes on; None takes up an
    existing one and begins it otherwise.

    Raises:
        FtaeError: the search exists (without ``resume``) or does not (with it), or asks another question
            than the one to resume; Ray cannot be had; the preflight found a fault; the baseline cannot be run; no
            space is left.
    """
    spec = spec.with_absolute_paths()
    if not spec.search.in_object_store:
        check_output(Path(spec.search.storage) / spec.name, spec.finetune.data.image_folders())
    # Before Ray starts, which takes seconds.
    earlier(spec, resume)
    _check_free(open_store(spec.search.storage, spec.name, "driver").folder)
    with ray_session() as own:
        if own and not spec.search.resources.gpus:  # a process that had a GPU ends with its task
            start_worker(spec.search.resources.cpus)
        from ftae.search.driver import drive

        return drive(spec, resume, own=own)


def _check_free(folder: Path) -> None:
    """Refuse a search that another process of this machine runs; who takes it up makes sure of that once more."""
    if (folder / JOURNAL).is_file():
        Journal(folder).close()
