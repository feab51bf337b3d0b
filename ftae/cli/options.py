"""The arguments and options that several commands have, and how they print a table."""

import os
import re
import sys
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ftae.user_code import ALLOW_CODE

SearchFile = Annotated[Path, typer.Argument(help="A search file (YAML); - reads it from stdin.", show_default=False)]

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the file; may be given again."),
]

SearchName = Annotated[
    str, typer.Argument(metavar="SEARCH", help="Name of a search, or its folder.", show_default=False)
]


def without_secret(address: str | None) -> str | None:
    from ftae.specs.reading.names import secret_problem

    if address is not None and (reason := secret_problem(address)) is not None:
        raise typer.BadParameter(reason)
    return address


def local(folder: Any) -> Any:
    """For an option that takes a folder of this machine alone: a URL would become the name of one."""
    from ftae.specs.reading.names import redacted

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise typer.BadParameter(f"must be a folder of this machine, got {redacted(str(folder))}")
    return folder


Storage = Annotated[
    str, typer.Option(callback=without_secret, help="Where searches live: a folder, or the URL of an object store.")
]

LocalStorage = Annotated[str, typer.Option(callback=local, help="The folder that the embedded MLflow store is in.")]


def _allow_code(allowed: bool) -> bool:
    if allowed:
        os.environ[ALLOW_CODE] = "1"
    return allowed


# Read where code is imported, here and in the workers: the commands have nothing to do with it.
AllowCode = Annotated[
    bool, typer.Option("--allow-code", callback=_allow_code, help="Run the package.module:attr that a file names.")
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

STORAGE = "searches"


def prints_to_stderr() -> AbstractContextManager[object]:
    """Inside, what a user's own module prints goes to stderr, since stdout is for results."""
    return redirect_stdout(sys.stderr)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows, each of the same keys; columns without any value are left out."""
    from rich.console import Console
    from rich.table import Table

    columns = [c for c in rows[0] if any(row[c] is not None for row in rows)] if rows else []
    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column.removeprefix("params."))
    for row in rows:
        cells = (row[column] for column in columns)
        table.add_row(*("" if c is None else f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
