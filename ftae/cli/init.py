"""The command that writes a first search file."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from ftae.cli.options import local, prints_to_stderr, to_stderr
from ftae.errors import FtaeError

app = typer.Typer()
Task = Literal["reconstruct", "denoise", "anomaly", "translate", "sample"]


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder or file of weights, a hub id, or a family to train from scratch.", show_default=False
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of images, an archive, shards, an array, or digits, shapes, photos.", show_default=False
        ),
    ],
    targets: Annotated[
        str | None, typer.Argument(help="A second folder: what the model learns to make of DATA.", show_default=False)
    ] = None,
    task: Annotated[Task | None, typer.Option(help="What the model is for.", show_default="what fits")] = None,
    scaling: Annotated[
        str | None,
        typer.Option(help="How the latents of a single file are scaled: sd, sdxl, sd3, flux, or a factor."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=local, help="The file to write.", show_default="NAME.yaml")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Look at a model and at data, and write an annotated search file that fits both."""
    from ftae import api

    with prints_to_stderr():
        draft = api.draft_search(model, data, targets, task=task, file=out, scaling=scaling)
    for note in draft.notes:
        to_stderr(note)
    if dry_run:
        typer.echo(draft.text, nl=False)
        return
    file = out or Path(f"{draft.spec.name}.yaml")
    if file.exists() and not overwrite:
        raise FtaeError(f"{file} exists: choose another by --out, or use --overwrite")
    try:
        file.write_text(draft.text, encoding="utf-8")
    except OSError as error:
        raise FtaeError(f"cannot write {file}: {error.strerror}") from error
    typer.echo(f"{file} is written; next: ftae validate {shlex.quote(str(file))}")
