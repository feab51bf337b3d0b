"""The ``ftae`` command: where each command is, and how errors become exit statuses.

| module        | commands                                                |
|---------------|---------------------------------------------------------|
| `init.py`     | init                                                    |
| `search.py`   | validate, search, submit, resume, extend, confirm, stop |
| `status.py`   | list, status, logs                                      |
| `results.py`  | best, show, compare, report, export, train              |
| `tracking.py` | sync, ui                                                |
| `cache.py`    | cache                                                   |
| `model.py`    | evaluate, reconstruct, interpolate, sample, convert     |
"""

import os
import sys
from typing import Annotated

import typer

from ftae import __version__
from ftae.cli import cache, init, model, results, search, status, tracking
from ftae.cli.options import to_stderr
from ftae.errors import FtaeError

app = typer.Typer(
    help="Find out how to fine-tune an autoencoder: trials on Ray, results in MLflow, the best model in a folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for module in (init, search, status, results, tracking, model, cache):
    app.add_typer(module.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ftae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["FTAE_DEBUG"] = "1"


def main() -> None:
    """Run the command of ``sys.argv``; an error that the user can fix is one message and exit status 1."""
    try:
        app()
    except (FtaeError, OSError) as error:  # the user can fix files, disks and networks
        if os.environ.get("FTAE_DEBUG"):
            raise
        for line in str(error).splitlines():
            to_stderr(f"error: {line}")
        sys.exit(1)
