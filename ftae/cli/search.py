"""The commands that check, run and stop a search: in this process, or as a job of a Ray cluster."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftae.cli.options import (
    STORAGE,
    AllowCode,
    SearchFile,
    SearchName,
    Sets,
    Storage,
    prints_to_stderr,
    to_stderr,
)
from ftae.cli.status import ADDRESS, Address, Follow, MaybeAddress, follow_log, print_status
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from ftae.results.search import Search


app = typer.Typer()
MAX_ATTEMPTS = 3
File = Annotated[Path, typer.Argument(help="A search file, or a production file.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a search that was interrupted.")]

Python = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The Python interpreter of the cluster.", show_default="python, or as before"),
]

MaxAttempts = Annotated[
    int | None, typer.Option(min=1, help="How often to start a driver that dies.", show_default=str(MAX_ATTEMPTS))
]


@app.command()
def validate(file: File, overrides: Sets = None, allow_code: AllowCode = False) -> None:
    """Check a file and print the plan: trials, rungs, stages, checkpoints, and where results are stored."""
    from ftae import api

    with prints_to_stderr():
        lines = api.validate(file, overrides or [], allow_code=allow_code)
    for line in lines:
        typer.echo(line)


@app.command()
def search(
    file: SearchFile,
    overrides: Sets = None,
    resume: Resume = False,
    attempt: Annotated[int, typer.Option(hidden=True, help="Set for a driver that is a job.")] = 0,
    allow_code: AllowCode = False,
) -> None:
    """Run a search on this machine, or on the cluster that RAY_ADDRESS names."""
    from ftae import api

    if attempt:
        _begin_attempt(attempt)
    spec = api.read_search(file, overrides or [])
    sets = [part for text in overrides or [] for part in ("--set", text)]
    command = ["ftae", "search", str(file), *sets, "--resume", *_code_option(allow_code)]
    if str(file) == "-":
        command = ["ftae", "resume", spec.name, *_code_option(allow_code)]
    # An attempt that died before the search began must not make the next one fail.
    go_on = None if resume and attempt else resume
    with _job_of(spec.name, attempt):
        _run(
            spec.name,
            command,
            lambda: api.run_search(spec, resume=go_on, notify=to_stderr, show_progress=True, allow_code=allow_code),
        )


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
    from ftae import api
    from ftae.specs.files import load_search

    # The folders of a file need to exist on the cluster, not here.
    spec = load_search(file, overrides or [])
    job = api.submit_search(spec, address, python=python, max_attempts=max_attempts, allow_code=allow_code)
    _print_job(job, address, follow)


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
    """Continue a search that was stopped or whose driver died; on this machine unless a cluster is named."""
    from ftae import api

    calls = (api.resume_search, api.submit_search)
    _continue(name, {}, calls, address, storage, follow, python, max_attempts, allow_code)


@app.command()
def extend(
    name: SearchName,
    trials: Annotated[int | None, typer.Option(min=1, help="Run this many trials more.", show_default=False)] = None,
    budget: Annotated[
        float | None, typer.Option(min=1.0, help="Run this many full trainings more.", show_default=False)
    ] = None,
    max_hours: Annotated[float | None, typer.Option(min=0.0, help="Stop after this time.", show_default=False)] = None,
    address: MaybeAddress = None,
    storage: Storage = STORAGE,
    follow: Follow = False,
    python: Python = None,
    max_attempts: MaxAttempts = None,
    allow_code: AllowCode = False,
) -> None:
    """Continue a search, finished or not, for more trials, full trainings or time; it keeps what it has learned."""
    asked = {"trials": trials, "budget": budget, "max_hours": max_hours}
    more = {key: value for key, value in asked.items() if value}
    if not more:
        raise typer.BadParameter("give --trials, --budget or --max-hours")
    from ftae import api

    calls = (api.resume_search, api.submit_search)
    _continue(name, more, calls, address, storage, follow, python, max_attempts, allow_code)


@app.command()
def confirm(
    name: SearchName,
    seeds: Annotated[int, typer.Option(min=1, help="Further seeds for each of the best trials.")] = 3,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many of the best trials.", show_default="3, if so many are kept")
    ] = None,
    address: MaybeAddress = None,
    storage: Storage = STORAGE,
    follow: Follow = False,
    python: Python = None,
    max_attempts: MaxAttempts = None,
    allow_code: AllowCode = False,
) -> None:
    """Train the best trials of a complete search again with other seeds; repeated, it adds what is missing."""
    from ftae import api

    asked = {"seeds": seeds, "top": top}
    calls = (api.confirm, api.submit_confirmation)
    _continue(name, asked, calls, address, storage, follow, python, max_attempts, allow_code)


@app.command()
def stop(name: SearchName, address: Address = ADDRESS) -> None:
    """Stop a search on a cluster in order; ftae resume continues it."""
    from ftae.cluster import jobs
    from ftae.cluster.status import attempts_of, described

    client = jobs.connect(address)
    newest = jobs.wait_for_successor(client, attempts_of(client, name)[-1])
    if newest.is_over:
        raise FtaeError(f"{newest.search} is not running: {newest.description()}")
    to_stderr(f"{newest.search}: stopping attempt {newest.number}")
    print_status(described(client, [jobs.stop(client, newest)], to_stderr))
    to_stderr(f"to continue: ftae resume {newest.search}")


def _continue(
    name: str,
    asked: dict[str, Any],
    calls: "tuple[Callable[..., Search], Callable[..., str]]",
    address: str | None,
    storage: str,
    follow: bool,
    python: str | None,
    max_attempts: int | None,
    allow_code: bool,
) -> None:
    """Continue a search with what is ``asked``, by one of two functions of the API: here, or on a cluster."""
    run, submit = calls
    if address is not None:
        how = {"storage": storage, "python": python, "max_attempts": max_attempts, "allow_code": allow_code}
        _print_job(submit(name, address, **how, **asked), address, follow)
        return
    if follow or python is not None or max_attempts is not None:
        raise FtaeError("--follow, --python and --max-attempts are for a cluster; name it with --address")
    where = [] if storage == STORAGE else ["--storage", storage]
    _run(
        Path(name).name,
        ["ftae", "resume", name, *where, *_code_option(allow_code)],
        lambda: run(name, storage, notify=to_stderr, show_progress=True, allow_code=allow_code, **asked),
    )


def _code_option(allow_code: bool) -> list[str]:
    from ftae.user_code import code_option

    return ["--allow-code"] if allow_code else code_option()


def _print_job(job: str, address: str, follow: bool) -> None:
    from ftae.cluster import jobs
    from ftae.specs.reading.names import redacted

    name = job.rpartition("-a")[0]
    typer.echo(name)
    to_stderr(
        f"job {job} is submitted to the cluster at {redacted(address)}: see ftae status {name}, ftae logs {name} -f, "
        f"ftae stop {name}"
    )
    if follow:
        client = jobs.connect(address)
        follow_log(client, jobs.attempts(client, name)[-1], to_stderr=True)


# ------------------------------------------------------------------------------------------- in this process


def _run(name: str, command: list[str], run: "Callable[[], Search]") -> None:
    """Run a search in this process and print its result; ``command`` continues it.

    Raises:
        FtaeError: see ``ftae.run_search``; or no trial ran to its full budget.
    """
    again = shlex.join(command)
    try:
        with _signals_interrupt(), _stdout_discarded():
            found = run()
    except KeyboardInterrupt:
        to_stderr(f"{name} is not complete (stopped by the user); to continue: {again}")
        raise typer.Exit(130) from None
    trials = found.trials
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed:
        to_stderr(f"{len(failed)} of {len(trials)} trials failed, the last one: {failed[-1].reason}")
    if found.ranked:
        typer.echo(f"{found.name}: best is trial {found.best.number}. {found.verdict()}")
    if found.status != "complete":
        to_stderr(f"{found.name} is not complete ({found.reason}); to continue: {again}")
        raise typer.Exit(130 if found.stopped_by_user else 0)
    if not found.ranked:
        raise FtaeError(f"{found.name}: no trial ran to its full budget; see ftae show {found.name}")


def _begin_attempt(attempt: int) -> None:
    """Mark where the log of a job begins: what precedes the mark was written by Ray."""
    from ftae.cluster.jobs import LOG_BEGINS

    to_stderr(LOG_BEGINS)


@contextmanager
def _job_of(name: str, attempt: int) -> Iterator[None]:
    """For a driver that is a job: have its cluster start the next attempt if this one dies."""
    if attempt:
        to_stderr(f"{name}: attempt {attempt}")
        # The jobs of a cluster that a script started in the background inherit that they ignore this signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from ftae.cluster.submission import watch

        watch(name, to_stderr)
    yield


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Inside, the signals of batch systems and lost terminals end the search as Ctrl-C does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stdout_discarded() -> Iterator[None]:
    """Inside, nothing reaches standard output: models may print, and Ray reports lost workers, as ftae itself does."""
    debug = os.environ.get("FTAE_DEBUG")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stderr if debug else nowhere):
        yield
