"""Arguments and options that several commands share, and how commands print."""

import csv
import inspect
import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ftae.inference.files import Model

STORAGE = "searches"
_FORMULA = re.compile(r"[=+\-@\t\r]")  # how a text begins that a spreadsheet runs; the report's page has the same rule


def without_secret(address: str | None) -> str | None:
    """Refuse an address that contains a password or a token."""
    from ftae.specs.reading.names import secret_problem

    if address is not None and (reason := secret_problem(address)) is not None:
        raise typer.BadParameter(reason)
    return address


def local(folder: Any) -> Any:
    """Refuse a URL for an option that takes a folder of this machine."""
    from ftae.specs.reading.names import redacted

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise typer.BadParameter(f"must be a folder of this machine, got {redacted(str(folder))}")
    return folder


SearchFile = Annotated[Path, typer.Argument(help="A search file (YAML); - reads standard input.", show_default=False)]

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the file; can be repeated."),
]

SearchName = Annotated[
    str, typer.Argument(metavar="SEARCH", help="The name of a search, or its folder.", show_default=False)
]

Storage = Annotated[
    str, typer.Option(callback=without_secret, help="Where searches are stored: a folder or an object store's URL.")
]

LocalStorage = Annotated[str, typer.Option(callback=local, help="The folder of the embedded MLflow store.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the package.module:attr that a file names.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV, numbers with all their digits.")]
Trial = Annotated[int | None, typer.Option(help="The number of a trial.", show_default="the best")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]


@dataclass(frozen=True)
class ModelRef:
    """The arguments and options that name a model; ``takes_model`` gives them to a command."""

    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder written by ftae export or ftae train, a checkpoint folder, or a search.",
            show_default=False,
        ),
    ]
    trial: Annotated[int | None, typer.Option(help="For a search: the number of a trial.", show_default="the best")] = (
        None
    )
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Use the untuned model; MODEL can also be a search file.")
    ] = False
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a value of data, batch_size or device."),
    ] = None
    storage: Storage = STORAGE
    allow_code: AllowCode = False

    def load(self) -> "Model":
        """Load the model, and print on standard error which one it is. Raises as ``ftae.load_model``."""
        from ftae import api

        with prints_to_stderr():
            model = api.load_model(
                self.name,
                self.storage,
                trial=self.trial,
                baseline=self.baseline,
                overrides=self.overrides or (),
                notify=to_stderr,
                allow_code=self.allow_code,
            )
        to_stderr(f"model: {model.description}")
        return model


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument MODEL and its options; the command receives them as its first parameter."""
    named, *own = inspect.signature(command).parameters.values()
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(ModelRef)
    ]

    def run(**given: Any) -> None:
        model = ModelRef(**{option.name: given.pop(option.name) for option in options})
        command(model, **given)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([options[0], *own, *options[1:]])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    assert named.annotation is ModelRef
    return run


def prints_to_stderr() -> AbstractContextManager[object]:
    """Inside, what a user's own module prints goes to standard error; standard output is for results."""
    return redirect_stdout(sys.stderr)


def to_stderr(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line, err=True)


def check_one_format(as_json: bool, as_csv: bool) -> None:
    """Refuse two formats at once."""
    if as_json and as_csv:
        raise typer.BadParameter("use --json or --csv, not both")


def print_csv(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as CSV (RFC 4180), all columns; nothing where there are no rows.

    None is an empty cell, a truth value ``true`` or ``false``, a list JSON; numbers have all their digits. A text that
    a spreadsheet would take for a formula gets a ``'`` in front.
    """
    text = io.StringIO(newline="")
    if rows:
        csv.writer(text).writerows([map(_csv_cell, line) for line in (rows[0], *(row.values() for row in rows))])
    typer.echo(text.getvalue(), nl=False)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys; columns without any value are left out."""
    from rich.console import Console
    from rich.table import Table

    columns = [c for c in rows[0] if any(row[c] is not None for row in rows)] if rows else []
    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column.removeprefix("params."))
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
