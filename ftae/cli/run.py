"""The commands that run a search: in this process, or as a job of a Ray cluster."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftae.cli.cluster import ADDRESS, Address, Follow, MaybeAddress, follow_log
from ftae.cli.options import STORAGE, AllowCode, SearchFile, SearchName, Sets, Storage
from ftae.errors import FtaeError
from ftae.user_code import check_code_allowed, code_option

if TYPE_CHECKING:
    from ftae.cluster.jobs import Attempt, Client
    from ftae.specs.search.search import SearchSpec


app = typer.Typer()

MAX_ATTEMPTS = 3

Python = Annotated[
    str | None, typer.Option(metavar="PATH", help="The cluster's interpreter.", show_default="python, or as before")
]

MaxAttempts = Annotated[
    int | None, typer.Option(min=1, help="How often to start a driver that dies.", show_default=str(MAX_ATTEMPTS))
]


@dataclass(frozen=True)
class _Options:
    """How to run a search as a job."""

    follow: bool = False
    python: str | None = None
    max_attempts: int | None = None


@app.command()
def search(
    file: SearchFile,
    overrides: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was interrupted.")] = False,
    attempt: Annotated[int, typer.Option(hidden=True, help="Set for a driver that is a job.")] = 0,
    allow_code: AllowCode = False,
) -> None:
    """Run a search on this machine, or on the cluster that RAY_ADDRESS names."""
    from ftae.specs.files import STDIN, load_search
    from ftae.specs.search.lint import missing_folders

    if attempt:
        from ftae.cluster.jobs import LOG_BEGINS

        typer.echo(LOG_BEGINS, err=True)
    spec = load_search(file, overrides or [], missing_folders)
    sets = [part for text in overrides or [] for part in ("--set", text)]
    again = shlex.join(["ftae", "search", str(file), *sets, "--resume", *code_option()])
    if file == STDIN:
        again = shlex.join(["ftae", "resume", spec.name, *code_option()])
    # An attempt that died before the search began is no reason for the next one to fail.
    go_on = None if resume and attempt else resume
    _run_here(spec, resume=go_on, again=again, attempt=attempt)


@app.command()
def submit(
    file: SearchFile,
    overrides: Sets = None,
    address: Address = ADDRESS,
    follow: Follow = False,
    python: Python = None,
    max_attempts: MaxAttempts = None,
    allow_code: AllowCode = False,
) -> None:
    """Run a search on a cluster; prints its name at once."""
    from ftae.specs.files import load_search

    spec = load_search(file, overrides or []).with_absolute_paths()
    if ":" in spec.finetune.model.family:
        check_code_allowed(spec.finetune.model.family)
    from ftae.cluster import jobs

    client = jobs.connect(address)
    before = jobs.newest(client, spec.name)
    _check_new(spec, before)
    _submit(client, spec, before, _Options(follow, python, max_attempts), resume=False)


@app.command()
def resume(
    name: SearchName,
    address: MaybeAddress = None,
    storage: Storage = STORAGE,
    follow: Follow = False,
    python: Python = None,
    max_attempts: MaxAttempts = None,
    allow_code: AllowCode = False,
) -> None:
    """Go on with a search that was stopped, or whose driver died; on this machine if no cluster is named."""
    _go_on(name, {}, address, storage, _Options(follow, python, max_attempts))


@app.command()
def extend(
    name: SearchName,
    trials: Annotated[int | None, typer.Option(min=1, help="Run so many more.", show_default=False)] = None,
    max_hours: Annotated[float | None, typer.Option(min=0.0, help="Stop after so long.", show_default=False)] = None,
    address: MaybeAddress = None,
    storage: Storage = STORAGE,
    follow: Follow = False,
    python: Python = None,
    max_attempts: MaxAttempts = None,
    allow_code: AllowCode = False,
) -> None:
    """Go on with a search, finished or not, for more trials or more time; nothing it has learned is lost."""
    more = {key: value for key, value in (("num_trials", trials), ("max_hours", max_hours)) if value}
    if not more:
        raise typer.BadParameter("give --trials, --max-hours, or both")
    _go_on(name, more, address, storage, _Options(follow, python, max_attempts))


def _run_here(spec: "SearchSpec", *, resume: bool | None, again: str, attempt: int = 0) -> None:
    """Run a search in this process and print its result; ``again`` is the command that goes on with it.

    Raises:
        FtaeError: see ``run_search``; or no trial ran to its full budget.
    """
    number = f"attempt {attempt}, " if attempt else ""
    typer.echo(f"{spec.name}: {number}checking data and model, then starting Ray", err=True)
    try:
        if attempt:
            # A cluster that was started in the background of a script has its jobs ignore it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            from ftae.cluster.watcher import watch

            watch(spec.name, lambda line: typer.echo(line, err=True))
        from ftae.results.search_record import BY_USER
        from ftae.search.driver import run_search

        with _ended_in_order(), _stdout_discarded():
            record = run_search(spec, resume=resume)
    except KeyboardInterrupt:
        typer.echo(f"{spec.name} is not complete (stopped by the user); go on with: {again}", err=True)
        raise typer.Exit(130) from None
    ranked = record.ranked()
    failed = [trial for trial in record.trials.values() if trial.status == "failed"]
    if failed:
        typer.echo(f"{len(failed)} of {len(record.trials)} trials failed, the last one: {failed[-1].reason}", err=True)
    if ranked:
        typer.echo(f"{spec.name}: best is trial {ranked[0].number}. {record.verdict(ranked[0])}")
    assert record.close is not None
    if record.close["status"] != "complete":
        typer.echo(f"{spec.name} is not complete ({record.close['reason']}); go on with: {again}", err=True)
        raise typer.Exit(130 if record.close["reason"] == BY_USER else 0)
    if not ranked:
        raise FtaeError(f"{spec.name}: no trial ran to its full budget; see ftae show {spec.name}")


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Inside, what batch systems and lost terminals send ends the search as Ctrl-C does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stdout_discarded() -> Iterator[None]:
    """Inside, stdout leads nowhere: models may print, and Ray tells of lost workers, of which ftae tells itself."""
    debug = os.environ.get("FTAE_DEBUG")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stderr if debug else nowhere):
        yield


def _check_new(spec: "SearchSpec", before: "Attempt | None") -> None:
    """A search begins once: there is none of its name, or none that got to its first trial."""
    from ftae.cluster.status import record_of

    if before is not None and not before.is_over:
        raise FtaeError(
            f"{before.told()}. Look at it (ftae status {spec.name}), stop it (ftae stop {spec.name}), "
            "or give the new search another name (--set name=...)"
        )
    record = record_of(spec.name, spec.search.storage)
    if record is not None and record.trials:
        found = f"{spec.search.storage} holds a search {spec.name} already"
    elif before is not None and before.may_have_begun:
        found = before.told()
    else:
        return
    raise FtaeError(
        f"{found}. Go on with it (ftae resume {spec.name}), give it more trials (ftae extend {spec.name} --trials N), "
        "or give the new one another name (--set name=...)"
    )


def _go_on(name: str, more: dict[str, Any], address: str | None, storage: str, options: _Options) -> None:
    """Go on with a search that does not run; ``more`` are new settings, num_trials on top of those it has."""
    if address is None:
        if options != _Options():
            raise FtaeError("--follow, --python and --max-attempts are for a cluster; name it by --address")
        spec = _stored(name, storage)
        where = [] if storage == STORAGE else ["--storage", storage]
        again = shlex.join(["ftae", "resume", name, *where, *code_option()])
        _run_here(_with_more(spec, more), resume=True, again=again)
        return
    from ftae.cluster import jobs

    client = jobs.connect(address)
    before = jobs.newest(client, Path(name).name)
    if before is not None and not before.is_over:
        raise FtaeError(f"{before.told()}; stop it first (ftae stop {before.search})")
    spec = _stored(name, storage) if before is None else before.spec()
    _submit(client, _with_more(spec, more), before, options, resume=True)


def _stored(name: str, storage: str) -> "SearchSpec":
    """The search that a journal tells of, where it lies now."""
    from ftae.results.replay import replay
    from ftae.results.search_record import search_of
    from ftae.results.summary import find_search

    store = find_search(name, storage)
    spec = search_of(replay(store.folder))
    return spec if spec.search.in_object_store else _with(spec, storage=str(store.folder.parent))


def _with_more(spec: "SearchSpec", more: dict[str, Any]) -> "SearchSpec":
    """``spec`` with new settings.

    Raises:
        FtaeError: all its trials are done, and no more are given.
    """
    from ftae.cluster.status import record_of, state

    if "num_trials" in more:
        return _with(spec, **more | {"num_trials": spec.search.num_trials + more["num_trials"]})
    record = record_of(spec.name, spec.search.storage)
    if record is not None and state([], record) == "complete":
        done = f"{spec.name} has done all its {spec.search.num_trials} trials"
        raise FtaeError(f"{done}; it goes on with more: ftae extend {spec.name} --trials N")
    return _with(spec, **more)


def _with(spec: "SearchSpec", **settings: Any) -> "SearchSpec":
    return spec.model_copy(update={"search": spec.search.model_copy(update=settings)})


def _submit(client: "Client", spec: "SearchSpec", before: "Attempt | None", options: _Options, *, resume: bool) -> None:
    """Submit the attempt after ``before``, and say so."""
    from ftae.cluster import jobs
    from ftae.specs.reading.names import redacted

    number = 1 if before is None else before.number + 1
    python = options.python or ("python" if before is None else before.python)
    last = number + (options.max_attempts or MAX_ATTEMPTS) - 1
    job = jobs.submit(client, spec, number=number, resume=resume, python=python, last=last)
    typer.echo(spec.name)
    typer.echo(
        f"job {job} is with the cluster at {redacted(client.get_address())}: see ftae status {spec.name}, "
        f"ftae logs {spec.name} -f, ftae stop {spec.name}",
        err=True,
    )
    if options.follow:
        follow_log(client, jobs.attempts(client, spec.name)[-1], to_stderr=True)
