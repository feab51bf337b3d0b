"""The commands. Results go to stdout, progress to stderr; every heavy import is inside its command."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ftae.errors import FtaeError

app = typer.Typer(
    help="Search how to fine-tune an autoencoder: trials on Ray, results in MLflow, the winner as a folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="A search file, or a production file.", show_default=False)]
SearchFile = Annotated[Path, typer.Argument(help="A search file (YAML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of the file; may be given again."),
]
SearchName = Annotated[
    str, typer.Argument(metavar="SEARCH", help="Name of a search, or its folder.", show_default=False)
]
Storage = Annotated[Path, typer.Option(help="The folder searches live in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
STORAGE = Path("searches")


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    if debug:
        os.environ["FTAE_DEBUG"] = "1"


@app.command()
def validate(file: File, overrides: Sets = None) -> None:
    """Check a file and print the plan: trials, rungs, stages, checkpoints, where things go."""
    from ftae.plan import plan
    from ftae.specs.yamlfile import load_any

    for line in plan(load_any(file, overrides or [])):
        typer.echo(line)


@app.command()
def search(
    file: SearchFile,
    overrides: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was interrupted.")] = False,
) -> None:
    """Run a search on this machine, or on the cluster that RAY_ADDRESS names."""
    from ftae.specs.yamlfile import load_search

    spec = load_search(file, overrides or [])
    typer.echo(f"{spec.name}: checking data and model, then starting Ray", err=True)
    from ftae.search.driver import run_search

    sets = [part for text in overrides or [] for part in ("--set", text)]
    command = shlex.join(["ftae", "search", str(file), *sets, "--resume"])
    try:
        record = run_search(spec.located(), resume=resume)
    except KeyboardInterrupt:
        typer.echo(f"{spec.name} is not complete (stopped by the user); go on with: {command}", err=True)
        raise typer.Exit(130) from None
    ranked = record.ranked()
    failed = [trial for trial in record.trials.values() if trial.status == "failed"]
    if failed:
        typer.echo(f"{len(failed)} of {len(record.trials)} trials failed, the last one: {failed[-1].reason}", err=True)
    if ranked:
        typer.echo(f"{spec.name}: best is trial {ranked[0].number}. {record.verdict(ranked[0])}")
    assert record.close is not None
    if record.close["status"] != "complete":
        typer.echo(f"{spec.name} is not complete ({record.close['reason']}); go on with: {command}", err=True)
        raise typer.Exit(130 if "user" in record.close["reason"] else 0)
    if not ranked:
        raise FtaeError(f"{spec.name}: no trial ran to its full budget; see ftae show {spec.name}")


@app.command()
def best(name: SearchName, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Print the best trial of a search against the baseline."""
    from ftae.report import best as best_of
    from ftae.report import find_search

    result = best_of(find_search(name, storage))
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


@app.command()
def show(name: SearchName, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Print the leaderboard of a search: every trial, its state and its params."""
    from ftae import journal
    from ftae.report import find_search, state_of

    record = journal.replay(find_search(name, storage))
    rows = record.leaderboard()
    if as_json:
        typer.echo(json.dumps({"search": record.search["name"], "state": state_of(record), "trials": rows}))
        return
    _print_table(f"{record.search['name']}: {state_of(record)}", rows)


@app.command()
def export(
    name: SearchName,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.  [default: exports/SEARCH]", show_default=False)
    ] = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial.  [default: the best]", show_default=False)
    ] = None,
    storage: Storage = STORAGE,
) -> None:
    """Write the winner as one folder: production.yaml, model/, provenance.json, README.md."""
    from ftae.report import find_search

    folder = find_search(name, storage)
    from ftae import journal
    from ftae.export import export as export_to

    target = out or Path("exports") / folder.name
    winner, released = export_to(folder, target, trial)
    typer.echo(f"trial {winner.number} of {folder.name} is in {target}. {journal.replay(folder).verdict(winner)}")
    if not released.latents_compatible:
        typer.echo("see README.md there: its latents are not those of the model it started from")


@app.command()
def train(
    file: Annotated[
        Path, typer.Argument(help="A production file, or the folder ftae export wrote.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write.  [default: runs/NAME]", show_default=False)] = None,
    overrides: Sets = None,
    max_steps: Annotated[int | None, typer.Option(help="Train for this many steps instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    register: Annotated[str | None, typer.Option(help="Put the model into MLflow's registry under this name.")] = None,
    storage: Storage = STORAGE,
) -> None:
    """Run a production file to its end; the same budget repeats the trial's numbers exactly."""
    from ftae.specs.yamlfile import load_production

    file = file / "production.yaml" if file.is_dir() else file
    sets = [*(overrides or []), *([] if max_steps is None else [f"finetune.max_steps={max_steps}"])]
    spec = load_production(file, sets).located()
    from ftae.production import train as run

    target = out or Path("runs") / spec.name

    def say(line: str) -> None:
        typer.echo(line, err=True)

    try:
        report, released = run(spec, target, storage=storage, resume=resume, register=register, say=say)
    except KeyboardInterrupt:
        typer.echo(f"{spec.name} was stopped; the same command with --resume goes on from its checkpoint", err=True)
        raise typer.Exit(130) from None
    values = ", ".join(f"{n} {v:.4f}" for n, v in report.metrics.items() if n.startswith("val/"))
    typer.echo(f"{spec.name}: {values} at step {report.step}; the model is in {target / 'model'}")
    if spec.finetune.model.pretrained is not None and not released.latents_compatible:
        typer.echo("its latents are no longer compatible with the pretrained model's")


@app.command()
def sync(name: SearchName, storage: Storage = STORAGE) -> None:
    """Send to MLflow what it lacks of a search: the server was away or wiped, or the driver was killed."""
    from ftae.report import find_search

    folder = find_search(name, storage)
    from ftae.search.shipper import sync as send

    typer.echo(f"{folder.name}: {send(folder)} events sent; MLflow has everything the journal holds")


@app.command()
def ui(
    storage: Storage = STORAGE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Open MLflow's UI on the embedded store of a storage folder."""
    database = storage.absolute() / "mlflow.db"
    if not database.is_file():
        raise FtaeError(f"{storage} has no embedded store yet (mlflow.db); run a search first, or name --storage")
    uri = f"sqlite:///{database}"
    os.execv(
        sys.executable,
        [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)],
    )


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
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
