"""Running a search. What it needs is imported while Ray and its first worker start."""

from pathlib import Path

import ray

from ftae.engine.output_folder import check_output
from ftae.journal import Journal
from ftae.record import SearchRecord
from ftae.search.earlier import earlier
from ftae.search.session import ray_session
from ftae.specs.search import SearchSpec
from ftae.storage import JOURNAL, open_store


def run_search(spec: SearchSpec, *, resume: bool | None = False) -> SearchRecord:
    """Run a search to its end, its deadline or Ctrl-C; returns what the journal holds then.

    The search lives in ``<storage>/<name>/``. With ``resume`` an existing one goes on; None takes up an
    existing one and begins it otherwise.

    Raises:
        FtaeError: the search exists (without ``resume``) or does not (with it), or asks another question
            than the one to resume; Ray cannot be had; the preflight found a fault; the baseline cannot be run; no
            space is left.
    """
    spec = spec.located()
    if not spec.search.in_object_store:
        check_output(Path(spec.search.storage) / spec.name, spec.finetune.data.image_folders())
    # Before Ray starts, which takes seconds.
    earlier(spec, resume)
    _check_free(open_store(spec.search.storage, spec.name, "driver").folder)
    with ray_session() as own:
        if own and not spec.search.resources.gpus:  # a process that had a GPU ends with its task
            _start_worker(spec.search.resources.cpus)
        from ftae.search.driver import drive

        return drive(spec, resume, own=own)


def _check_free(folder: Path) -> None:
    """Refuse a search that another process of this machine runs; who takes it up makes sure of that once more."""
    if (folder / JOURNAL).is_file():
        Journal(folder).close()


def _start_worker(cpus: float) -> None:
    """Have a worker import what the rehearsal needs, which it then runs, while the driver imports and checks."""
    ray.remote(_import_rehearsal).options(num_cpus=cpus).remote()


def _import_rehearsal() -> None:
    import ftae.search.rehearsal  # noqa: F401
