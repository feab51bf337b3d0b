"""The commands that follow searches, on a cluster or in a storage."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftae.cli.options import (
    STORAGE,
    Csv,
    Json,
    SearchName,
    Storage,
    check_one_format,
    print_csv,
    print_table,
    to_stderr,
    without_secret,
)
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from ftae.cluster.jobs import Attempt, Client


app = typer.Typer()
PANEL = "Following searches"
VARIABLES = ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"]
ADDRESS = "http://127.0.0.1:8265"
Address = Annotated[str, typer.Option(metavar="URL", envvar=VARIABLES, help="The dashboard of the cluster.")]

MaybeAddress = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar=VARIABLES, help="The dashboard of the cluster.", show_default="no cluster, this machine"
    ),
]

Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Show the log until the search ends; Ctrl-C does not stop the search.")
]


@app.command("list", rich_help_panel=PANEL)
def list_searches(
    address: MaybeAddress = None,
    storage: Annotated[
        str | None,
        typer.Option(callback=without_secret, help="List the searches of this storage.", show_default=STORAGE),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Print every search of a cluster, or of a storage, and its progress."""
    from ftae.cluster.status import flat, row, statuses

    check_one_format(as_json, as_csv)
    on_cluster = address is not None and storage is None
    where = str(address) if on_cluster else storage or STORAGE
    found = statuses(where, on_cluster=on_cluster, notify=to_stderr)
    if as_json:
        typer.echo(json.dumps({"searches": found}))
    elif as_csv:
        print_csv([flat(status) for status in found])
    elif found:
        print_table(f"searches in {where}", [row(status) for status in found])
    else:
        to_stderr(f"no searches in {where}")


@app.command(rich_help_panel=PANEL)
def status(
    name: SearchName,
    address: MaybeAddress = None,
    storage: Storage = STORAGE,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Print the progress of a search: its attempts on the cluster, its trials, its best trial."""
    from ftae.cluster import jobs
    from ftae.cluster.status import describe, described, flat
    from ftae.results.replay import replay
    from ftae.results.summary import find_search

    check_one_format(as_json, as_csv)
    client = None if address is None else jobs.connect(address)
    attempts = [] if client is None else jobs.attempts(client, Path(name).name)
    if client is not None and attempts:
        found = described(client, attempts, to_stderr)
    else:
        store = find_search(name, storage)
        found = describe(store.name, [], replay(store.folder))
    if as_csv:
        print_csv([flat(found)])
    else:
        print_status(found, as_json)


@app.command(rich_help_panel=PANEL)
def logs(
    name: SearchName,
    address: Address = ADDRESS,
    attempt: Annotated[int | None, typer.Option(help="The number of an attempt.", show_default="the newest")] = None,
    follow: Follow = False,
) -> None:
    """Print what the driver of a search on a cluster has written."""
    from ftae.cluster import jobs
    from ftae.cluster.status import attempts_of

    client = jobs.connect(address)
    found = {a.number: a for a in attempts_of(client, name)}
    if attempt is not None and attempt not in found:
        raise FtaeError(f"{name} has no attempt {attempt}; choose one of {', '.join(map(str, found))}")
    chosen = found[max(found) if attempt is None else attempt]
    if follow:
        follow_log(client, chosen, to_stderr=False)
    else:
        typer.echo(jobs.log(client, chosen), nl=False)


def follow_log(client: "Client", attempt: "Attempt", *, to_stderr: bool) -> None:
    """Print the log of an attempt, and of those after it, until the search ends.

    Raises:
        FtaeError: the search did not end in order.
    """
    from ftae.cluster import jobs

    try:
        last = jobs.follow(client, attempt, lambda text: typer.echo(text, nl=False, err=to_stderr))
    except KeyboardInterrupt:
        typer.echo(f"{attempt.search} is still running; to stop it: ftae stop {attempt.search}", err=True)
        raise typer.Exit(130) from None
    if last.status != "SUCCEEDED":
        raise FtaeError(f"{last.description()}; to continue: ftae resume {last.search}")


def print_status(found: dict[str, Any], as_json: bool = False) -> None:
    from ftae.cluster.status import lines

    typer.echo(json.dumps(found) if as_json else "\n".join(lines(found)))
