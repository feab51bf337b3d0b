"""The Python API: what the commands of ``ftae`` do, as functions.

A short tour:

    import ftae

    spec = ftae.read_search("search_spaces/quickstart.yaml", ["search.num_trials=4"])
    search = ftae.run_search(spec)
    print(search.leaderboard())
    model = ftae.load_model(search.export("exports/quickstart"))
    reconstructions = model.reconstruct(images)  # uint8 or float images (N, H, W, C)

Specs can also be built in Python: ``ftae.SearchSpec(name=..., finetune={...}, ...)`` takes the fields of the file, as
dicts or as objects such as ``ftae.Range(low=1e-4, high=1e-2, log=True)``. A value that is not valid raises pydantic's
``ValidationError``. The functions here raise ``ftae.FtaeError`` for what the user can fix, and ``OSError`` for files
that cannot be read or written.

``notify`` receives progress and notes, one line a call; by default they go to ``logging.getLogger("ftae")`` at level
INFO. ``allow_code=True`` allows the ``package.module:attr`` that a file names to run.

A call leaves the process as it was: environment variables, signal handlers, random generators, log levels and the
settings of torch. Heavy packages are imported by the functions that need them.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ftae.results.search import Search, Trial
from ftae.specs.files import load_any, load_production, load_search
from ftae.specs.search.lint import missing_folders
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.user_code import code_allowed

if TYPE_CHECKING:
    from ftae.inference.arrays import Model

__all__ = [
    "Search",
    "TrainedRun",
    "Trial",
    "confirm",
    "load_model",
    "open_search",
    "read_search",
    "read_training",
    "resume_search",
    "run_search",
    "run_training",
    "submit_search",
    "sync_search",
    "validate",
]

Notify = Callable[[str], None]
PRODUCTION_FILE, MODEL_FOLDER = "production.yaml", "model"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

logger = logging.getLogger("ftae")


# ------------------------------------------------------------------------------------------------ files


def read_search(file: Path | str, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search file.

    Args:
        file: the path of a YAML file; ``-`` reads it from standard input.
        overrides: texts ``path=value`` that replace values of the file, such as ``"search.num_trials=4"``.

    Raises:
        SpecError: the file or an override is not valid; ``problems`` lists every fault with its line.
    """
    return load_search(Path(file), overrides, missing_folders)


def read_training(file: Path | str, overrides: Sequence[str] = ()) -> ProductionSpec:
    """Read a production file, or that of a folder that ``Search.export`` or ``run_training`` wrote.

    Args:
        file: the path of a YAML file, or of the folder with ``production.yaml``.
        overrides: texts ``path=value`` that replace values of the file, such as ``"finetune.max_steps=1000"``.

    Raises:
        SpecError: the file or an override is not valid; ``problems`` lists every fault with its line.
    """
    path = Path(file)
    return load_production(path / PRODUCTION_FILE if path.is_dir() else path, overrides, missing_folders)


def validate(
    spec: SearchSpec | ProductionSpec | Path | str, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> list[str]:
    """Check a spec, or a search or production file, as far as possible without training.

    Lists the images, builds the model, and adds up what the search would store.

    Args:
        spec: a spec or the path of a file.
        overrides: for a file: texts ``path=value``.
        allow_code: allow code that the spec names.

    Returns:
        The lines of the plan: trials, rungs, stages, checkpoints, storage, and warnings.

    Raises:
        FtaeError: the spec cannot be run; the message says why.

    Examples:
        >>> print("\\n".join(ftae.validate(ftae.read_search("search.yaml"))))
    """
    from ftae.search.plan import plan

    if not isinstance(spec, SearchSpec | ProductionSpec):
        spec = load_any(Path(spec), overrides, missing_folders)
    with _unchanged_process(allow_code):
        return plan(spec)


# ----------------------------------------------------------------------------------------------- searches


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
    ``<search.storage>/<name>/``. Ctrl-C ends it in order, and ``resume_search`` continues it: once trials run, the
    interrupted search is returned, before that KeyboardInterrupt is raised.

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
    with _unchanged_process(allow_code):
        from ftae.search.driver import run_search

        run_search(spec, resume=resume, notify=None if show_progress else notify)
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
        notify, show_progress, allow_code: as for ``run_search``.

    Raises:
        FtaeError: there is no such search; it is complete, and neither ``trials`` nor ``budget`` gives it a further
            trial; or as ``run_search``.
    """
    from ftae.cluster.submission import extended

    spec = extended(_stored_spec(name, storage), trials=trials, budget=budget, max_hours=max_hours)
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
        name, storage: as for ``resume_search``.
        seeds: so many further seeds for each trial.
        top: so many of the best trials; by default 3, or ``search.keep_checkpoints`` if that is less.
        notify, show_progress, allow_code: as for ``run_search``.

    Returns:
        The search. ``confirmed`` has mean and spread of each trial, and ``best`` is the one with the best mean.

    Raises:
        FtaeError: there is no such search, its trials have not all ended, or as ``run_search``.
    """
    from ftae.cluster.submission import confirming

    spec = confirming(_stored_spec(name, storage), seeds, top)
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
        before = jobs.newest(client, Path(search).name)
        submission.check_stopped(before)
        spec = _stored_spec(search, storage) if before is None else before.spec()
        spec = submission.extended(spec, trials=trials, budget=budget, max_hours=max_hours)
        return submission.submit_again(client, spec, before, python=python, max_attempts=max_attempts)


# --------------------------------------------------------------------------------------- training, models


@dataclass(frozen=True)
class TrainedRun:
    """A training run that has ended.

    Attributes:
        folder: the folder of the run.
        model: the folder of its model, for ``load_model``.
        step: the optimizer step of the last report.
        metrics: the metrics of the last report, such as ``val/psnr``.
        latents_compatible: whether the latents are those of the pretrained model; True without one.
    """

    folder: Path
    model: Path
    step: int
    metrics: dict[str, float]
    latents_compatible: bool


def run_training(
    spec: ProductionSpec | Path | str,
    out: Path | str | None = None,
    *,
    storage: Path | str = "searches",
    resume: bool = False,
    register: str | None = None,
    workers: int = 1,
    notify: Notify | None = None,
    allow_code: bool = False,
) -> TrainedRun:
    """Train a model to the full budget of a production file, and write it to a folder.

    Args:
        spec: a production spec, a production file, or the folder of an exported trial.
        out: the folder to write; by default ``runs/<name>``.
        storage: the folder of the embedded MLflow store, if ``tracking.uri`` names no other.
        resume: continue from the newest checkpoint in ``out``.
        register: register the model in MLflow under this name, with the alias ``champion``.
        workers: the number of processes that share each batch; on GPUs, one process a GPU.
        notify: receives a line for each report.
        allow_code: allow code that the spec names.

    Raises:
        FtaeError: the spec cannot be run; ``out`` contains a run (with ``resume`` false) or none (with true); MLflow
            refuses the run, or cannot be reached to register the model.
        TrainingFailed: the training diverged.

    Examples:
        >>> run = ftae.run_training("exports/quickstart", "runs/final")
        >>> run.metrics["val/psnr"]
    """
    from ftae.search.production import train

    if not isinstance(spec, ProductionSpec):
        spec = read_training(spec)
    spec = spec.with_absolute_paths()
    folder = Path("runs") / spec.name if out is None else Path(out)
    with _unchanged_process(allow_code):
        report, exported = train(
            spec,
            folder,
            storage=Path(storage),
            resume=resume,
            register=register,
            workers=workers,
            notify=notify or logger.info,
        )
    compatible = spec.finetune.model.pretrained is None or exported.latents_compatible
    return TrainedRun(folder, folder / MODEL_FOLDER, report.step, dict(report.metrics), compatible)


def load_model(
    name: Path | str,
    storage: str = "searches",
    *,
    trial: int | None = None,
    baseline: bool = False,
    overrides: Sequence[str] = (),
    notify: Notify | None = None,
    allow_code: bool = False,
) -> "Model":
    """Load a model for use, on a GPU if its run was made for one and there is one.

    Args:
        name: a folder that ``Search.export`` or ``run_training`` wrote, a checkpoint folder, or a search (its name
            below ``storage``, or its folder). With ``baseline`` also a search or production file.
        storage: the folder or the URL of the object store that holds the searches.
        trial: for a search, the number of the trial; by default the best.
        baseline: load the untuned model that the run or search started from.
        overrides: texts ``path=value`` for ``data``, ``batch_size``, ``device`` or ``num_threads``.
        notify: receives a line for each damaged checkpoint that is passed over.
        allow_code: allow code that the run names.

    Raises:
        FtaeError: there is no such model, or its weights are missing or damaged.

    Examples:
        >>> model = ftae.load_model("exports/quickstart")
        >>> images = model.sample(4)  # float32 (4, H, W, C) in [0, 1]
    """
    from ftae.inference.arrays import Model
    from ftae.inference.model import load_model
    from ftae.inference.source import find_model, with_settings

    with _unchanged_process(allow_code):
        found = find_model(str(name), storage, trial=trial, baseline=baseline, notify=notify or logger.info)
        source = with_settings(found, overrides)
        return Model(load_model(source), source.description, allow_code=allow_code)


# ------------------------------------------------------------------------------------------------ private


@contextmanager
def _unchanged_process(allow_code: bool) -> Iterator[None]:
    """Inside, code is allowed if asked for; afterwards the settings of the process are restored."""
    if find_spec("torch") is None:  # a plan does without
        with code_allowed(allow_code):
            yield
        return
    from ftae.engine.training.loop import process_state_kept

    with code_allowed(allow_code), _keep_hooks(), process_state_kept():
        yield


@contextmanager
def _keep_hooks() -> Iterator[None]:
    """Restores what Ray and Tune replace: signal handlers, the exception hook, the debugger of ``breakpoint()``."""
    hook, debugger = sys.excepthook, os.environ.get("PYTHONBREAKPOINT")
    only_main = threading.current_thread() is threading.main_thread()  # may set handlers
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if only_main else {}
    try:
        yield
    finally:
        sys.excepthook = hook
        if debugger is None:
            os.environ.pop("PYTHONBREAKPOINT", None)
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)


def _stored_spec(name: str, storage: str) -> SearchSpec:
    """Return the spec of a stored search, which may have been moved since it began."""
    from ftae.cluster.submission import with_settings

    search = open_search(name, storage)
    spec = search.spec
    return spec if spec.search.in_object_store else with_settings(spec, storage=str(search.folder.parent))
