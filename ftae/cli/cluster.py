"""The commands that look at searches, on a cluster or in a storage, and stop them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftae.cli.options import STORAGE, Json, SearchName, Storage, print_table, without_secret
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from ftae.cluster.jobs import Attempt, Client


app = typer.Typer()

PANEL = "Following searches"

VARIABLES = ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"]

ADDRESS = "http://127.0.0.1:8265"

Address = Annotated[str, typer.Option(metavar="URL", envvar=VARIABLES, help="Dashboard of the cluster.")]

MaybeAddress = Annotated[
    str | None,
    typer.Option(metavar="URL", envvar=VARIABLES, help="Dashboard of the cluster.", show_default="this machine alone"),
]

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the log until the end; Ctrl-C only looks away.")]


@app.command("list", rich_help_panel=PANEL)
def list_searches(
    address: MaybeAddress = None,
    storage: Annotated[
        str | None,
        typer.Option(callback=without_secret, help="List what is stored there instead.", show_default=STORAGE),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print every search of a cluster, or of a storage, and how far it is."""
    from ftae.cluster import jobs
    from ftae.cluster.status import row
    from ftae.storage.store import searches_in

    attempts: dict[str, list[Attempt]] = {}
    if address is not None and storage is None:
        for attempt in jobs.attempts(jobs.connect(address)):
            attempts.setdefault(attempt.search, []).append(attempt)
        where = address
    else:
        where = storage or STORAGE
        attempts = {name: [] for name in searches_in(where)}
    found = [_looked_at(name, tries, tries[-1].storage if tries else where) for name, tries in sorted(attempts.items())]
    if as_json:
        typer.echo(json.dumps({"searches": found}))
    elif found:
        print_table(f"searches in {where}", [row(status) for status in found])
    else:
        typer.echo(f"no searches in {where}", err=True)


@app.command(rich_help_panel=PANEL)
def status(name: SearchName, address: MaybeAddress = None, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Print how far a search is: its attempts on the cluster, its trials, its best."""
    from ftae.cluster import jobs
    from ftae.results.replay import replay
    from ftae.results.summary import find_search

    client = None if address is None else jobs.connect(address)
    attempts = [] if client is None else jobs.attempts(client, Path(name).name)
    if client is not None and attempts:
        found = _described(client, attempts)
    else:
        from ftae.cluster.status import describe

        store = find_search(name, storage)
        found = describe(store.name, [], replay(store.folder))  # raises what is wrong with it
    _print_status(found, as_json)


@app.command(rich_help_panel=PANEL)
def logs(
    name: SearchName,
    address: Address = ADDRESS,
    attempt: Annotated[int | None, typer.Option(help="Number of the attempt.", show_default="the newest")] = None,
    follow: Follow = False,
) -> None:
    """Print what the driver of a search on a cluster has written."""
    from ftae.cluster import jobs

    client = jobs.connect(address)
    found = {a.number: a for a in _attempts(client, name)}
    if attempt is not None and attempt not in found:
        raise FtaeError(f"{name} has no attempt {attempt}; choose one of {', '.join(map(str, found))}")
    chosen = found[max(found) if attempt is None else attempt]
    if follow:
        follow_log(client, chosen, to_stderr=False)
    else:
        typer.echo(jobs.log(client, chosen), nl=False)


@app.command(rich_help_panel=PANEL)
def stop(name: SearchName, address: Address = ADDRESS) -> None:
    """Stop a search on a cluster in order: it can go on later from where it is."""
    from ftae.cluster import jobs

    client = jobs.connect(address)
    newest = jobs.drop_inactive(client, _attempts(client, name)[-1])
    if newest.is_over:
        raise FtaeError(f"{newest.search} is not running: {newest.told()}")
    typer.echo(f"{newest.search}: stopping attempt {newest.number}", err=True)
    _print_status(_described(client, [jobs.stop(client, newest)]))
    typer.echo(f"go on with: ftae resume {newest.search}", err=True)


def follow_log(client: "Client", attempt: "Attempt", *, to_stderr: bool) -> None:
    from ftae.cluster import jobs

    try:
        last = jobs.follow(client, attempt, lambda text: typer.echo(text, nl=False, err=to_stderr))
    except KeyboardInterrupt:
        typer.echo(f"{attempt.search} goes on; ftae stop {attempt.search} ends it", err=True)
        raise typer.Exit(130) from None
    if last.status != "SUCCEEDED":
        raise FtaeError(f"{last.told()}; go on with it by ftae resume {last.search}")


def _attempts(client: "Client", name: str) -> "list[Attempt]":
    """The attempts at a search that the cluster knows."""
    from ftae.cluster import jobs
    from ftae.specs.reading.names import redacted

    if found := jobs.attempts(client, Path(name).name):
        return found
    known = sorted({attempt.search for attempt in jobs.attempts(client)})
    choices = f"choose one of {', '.join(known)}" if known else "it has run none yet"
    raise FtaeError(f"the cluster at {redacted(client.get_address())} knows no search {name!r}; {choices}")


def _described(client: "Client", attempts: "list[Attempt]") -> dict[str, Any]:
    """The status of a search; where its journal cannot be seen, the driver's last word stands for it."""
    from ftae.cluster import jobs

    newest = attempts[-1]
    found = _looked_at(newest.search, attempts, newest.storage)
    said = jobs.log(client, newest).splitlines() if found["progress"] is None else []
    return found | {"last_line": said[-1] if said else None}


def _looked_at(search: str, attempts: "list[Attempt]", storage: str) -> dict[str, Any]:
    """The status of a search; what is wrong with its journal is told and ends nothing."""
    from ftae.cluster.status import UnreadableSearch, describe, look

    found = look(search, storage)
    # A machine that only follows a cluster need not see its storage.
    if isinstance(found, UnreadableSearch) and not (attempts and found.state == "unreadable"):
        typer.echo(f"warning: {search}: {found.error}", err=True)
    return describe(search, attempts, found)


def _print_status(found: dict[str, Any], as_json: bool = False) -> None:
    from ftae.cluster.status import lines

    typer.echo(json.dumps(found) if as_json else "\n".join(lines(found)))
