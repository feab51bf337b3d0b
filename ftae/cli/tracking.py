"""The commands about the experiment tracker: sync, ui."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ftae.cli.options import STORAGE, LocalStorage, SearchName, Storage
from ftae.errors import FtaeError

app = typer.Typer()
PANEL = "Results"


@app.command(rich_help_panel=PANEL)
def sync(name: SearchName, storage: Storage = STORAGE) -> None:
    """Send a search to MLflow again: after the server was unreachable or wiped, or the driver was killed."""
    from ftae import api

    search = api.open_search(name, storage)
    typer.echo(f"{search.name}: {api.sync_search(name, storage)} events sent; MLflow has everything the journal holds")


@app.command(rich_help_panel=PANEL)
def ui(
    name: Annotated[
        str | None, typer.Argument(metavar="[SEARCH]", help="A search to show the page of.", show_default=False)
    ] = None,
    storage: LocalStorage = STORAGE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 5000,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve MLflow's user interface on the embedded store of a storage folder.

    With SEARCH, print the address of its page. A search that is tracked on a server has its page there.
    """
    address = f"http://{host}:{port}"
    page = f"{address}/" if name is None else _page(name, storage, address)
    if name is not None:
        typer.echo(page)
    if not page.startswith(f"{address}/"):
        if open_it:
            typer.launch(page)
        return
    database = Path(storage).absolute() / "mlflow.db"
    if not database.is_file():
        raise FtaeError(f"{storage} has no embedded MLflow store (mlflow.db); run a search first, or name --storage")
    if open_it:  # by another process: this one becomes the server
        subprocess.Popen([sys.executable, "-P", "-m", "ftae.cli.browser", host, str(port), page])
    uri = f"sqlite:///{database}"
    os.execv(
        sys.executable,
        [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)],
    )


def _page(name: str, storage: str, address: str) -> str:
    from ftae import api

    return api.tracking_page(name, storage, address)
