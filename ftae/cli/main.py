"""The commands. Results go to stdout, progress to stderr; every heavy import is inside its command."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ftae import __version__
from ftae.cli import cluster as cli_cluster
from ftae.cli import model as cli_model
from ftae.cli import run as cli_run
from ftae.cli.options import (
    STORAGE,
    AllowCode,
    Json,
    LocalStorage,
    SearchName,
    Sets,
    Storage,
    local,
    print_table,
    prints_to_stderr,
)
from ftae.errors import FtaeError

app = typer.Typer(
    help="Search how to fine-tune an autoencoder: trials on Ray, results in MLflow, the winner as a folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_run.app)

app.add_typer(cli_cluster.app)

app.add_typer(cli_model.app)

RESULTS = "Results"

Trial = Annotated[int | None, typer.Option(help="Number of the trial.", show_default="the best")]

Weights = Annotated[
    str | None,
    typer.Option(
        metavar="METRIC=WEIGHT,...", help="What counts how much, of several metrics.", show_default="the first alone"
    ),
]

File = Annotated[Path, typer.Argument(help="A search file, or a production file.", show_default=False)]


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


@app.command()
def validate(file: File, overrides: Sets = None, allow_code: AllowCode = False) -> None:
    """Check a file and print the plan: trials, rungs, stages, checkpoints, where things go."""
    from ftae.search.plan import plan
    from ftae.specs.files import load_any
    from ftae.specs.search.lint import missing_folders

    with prints_to_stderr():
        lines = plan(load_any(file, overrides or [], missing_folders))
    for line in lines:
        typer.echo(line)


@app.command(rich_help_panel=RESULTS)
def best(
    name: SearchName, trial: Trial = None, weights: Weights = None, storage: Storage = STORAGE, as_json: Json = False
) -> None:
    """Print the best trial of a search against the baseline."""
    from ftae.results.summary import best as best_of
    from ftae.results.summary import find_search

    result = best_of(find_search(name, storage), trial, _weights(weights, trial))
    if result["warning"]:
        typer.echo(result["verdict"], err=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, number in value.items():
                typer.echo(f"  {inner}: {number}")
        else:
            typer.echo(f"{key}: {value}")


def _weights(text: str | None, trial: int | None) -> dict[str, float] | None:
    if text is None:
        return None
    if trial is not None:
        raise typer.BadParameter("give --trial or --weights, not both")
    try:
        return {metric.strip(): float(weight) for metric, weight in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise typer.BadParameter("must be like val/psnr=1,val/ssim=0.5", param_hint="--weights") from None


@app.command(rich_help_panel=RESULTS)
def show(name: SearchName, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Print the leaderboard of a search: every trial, its state and its params."""
    from ftae.results.replay import replay
    from ftae.results.summary import find_search, state_of

    record = replay(find_search(name, storage).folder)
    rows = record.leaderboard()
    if as_json:
        typer.echo(json.dumps({"search": record.search["name"], "state": state_of(record), "trials": rows}))
        return
    print_table(f"{record.search['name']}: {state_of(record)}", rows)


@app.command(rich_help_panel=RESULTS)
def export(
    name: SearchName,
    out: Annotated[
        Path | None, typer.Option(callback=local, help="Folder to write.", show_default="exports/SEARCH")
    ] = None,
    trial: Trial = None,
    weights: Weights = None,
    storage: Storage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Write the winner as one folder: production.yaml, model/, provenance.json, README.md."""
    from ftae.results.summary import find_search

    store = find_search(name, storage)
    from ftae.results.export import export as export_to
    from ftae.results.replay import replay

    target = out or Path("exports") / store.name
    with prints_to_stderr():
        winner, released = export_to(store, target, trial, _weights(weights, trial))
    typer.echo(f"trial {winner.number} of {store.name} is in {target}. {replay(store.folder).verdict(winner)}")
    if not released.latents_compatible:
        typer.echo("see README.md there: its latents are not those of the model it started from")


def _registered(name: str | None) -> str | None:
    from ftae.specs.reading.names import registry_name_problem

    if name is not None and (reason := registry_name_problem(name)) is not None:
        raise typer.BadParameter(f"{reason}, got {name!r}")
    return name


@app.command(rich_help_panel=RESULTS)
def train(
    file: Annotated[
        Path, typer.Argument(help="A production file, or the folder ftae export wrote.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(callback=local, help="Folder to write.", show_default="runs/NAME")] = None,
    overrides: Sets = None,
    max_steps: Annotated[int | None, typer.Option(help="Train for this many steps instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    register: Annotated[
        str | None, typer.Option(callback=_registered, help="Put the model into MLflow's registry under this name.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share every batch; on GPUs, one each.")] = 1,
    storage: LocalStorage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Run a production file to its end; the same budget and workers repeat the trial's numbers exactly."""
    from ftae.specs.files import load_production
    from ftae.specs.search.lint import missing_folders

    file = file / "production.yaml" if file.is_dir() else file
    sets = [*(overrides or []), *([] if max_steps is None else [f"finetune.max_steps={max_steps}"])]
    spec = load_production(file, sets, missing_folders).with_absolute_paths()
    from ftae.engine.process import keep_freed_memory
    from ftae.search.production import train as run

    keep_freed_memory()
    target = out or Path("runs") / spec.name

    def notify(line: str) -> None:
        typer.echo(line, err=True)

    try:
        with prints_to_stderr():
            report, released = run(
                spec, target, storage=Path(storage), resume=resume, register=register, workers=workers, notify=notify
            )
    except KeyboardInterrupt:
        typer.echo(f"{spec.name} was stopped; the same command with --resume goes on from its checkpoint", err=True)
        raise typer.Exit(130) from None
    from ftae.specs.finetune.metrics import is_held_out

    values = ", ".join(f"{n} {v:.4f}" for n, v in report.metrics.items() if is_held_out(n))
    typer.echo(f"{spec.name}: {values} at step {report.step}; the model is in {target / 'model'}")
    if spec.finetune.model.pretrained is not None and not released.latents_compatible:
        typer.echo("its latents are no longer compatible with the pretrained model's")


@app.command(rich_help_panel=RESULTS)
def sync(name: SearchName, storage: Storage = STORAGE) -> None:
    """Send to MLflow what it lacks of a search: the server was away or wiped, or the driver was killed."""
    from ftae.results.summary import find_search

    store = find_search(name, storage)
    from ftae.search.tracking_sync import sync as send

    typer.echo(f"{store.name}: {send(store)} events sent; MLflow has everything the journal holds")


@app.command(rich_help_panel=RESULTS)
def ui(
    storage: LocalStorage = STORAGE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Open MLflow's UI on the embedded store of a storage folder."""
    database = Path(storage).absolute() / "mlflow.db"
    if not database.is_file():
        raise FtaeError(f"{storage} has no embedded store yet (mlflow.db); run a search first, or name --storage")
    uri = f"sqlite:///{database}"
    os.execv(
        sys.executable,
        [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)],
    )


def main() -> None:
    """The ``ftae`` script: one message and exit status 1 for what the user can fix."""
    try:
        app()
    except (FtaeError, OSError) as error:  # the user's files, disk and network are theirs to mend
        if os.environ.get("FTAE_DEBUG"):
            raise
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(1)
