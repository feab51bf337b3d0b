"""The commands about results: best, show, compare, report, export, train."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftae.cli.options import (
    STORAGE,
    AllowCode,
    Csv,
    Json,
    LocalStorage,
    SearchName,
    Sets,
    Storage,
    Trial,
    check_one_format,
    local,
    print_csv,
    print_table,
    prints_to_stderr,
    to_stderr,
)
from ftae.wording import duration, full_trainings, plus_minus

if TYPE_CHECKING:
    from ftae.results.candidate import Candidate

app = typer.Typer()
PANEL = "Results"


Weights = Annotated[
    str | None,
    typer.Option(
        metavar="METRIC=WEIGHT,...", help="For several metrics: how much each counts.", show_default="the first alone"
    ),
]


@app.command(rich_help_panel=PANEL)
def best(
    name: SearchName, trial: Trial = None, weights: Weights = None, storage: Storage = STORAGE, as_json: Json = False
) -> None:
    """Print the best trial of a search, compared with the baseline."""
    from ftae import api

    result = api.open_search(name, storage).summary(trial, _weights(weights, trial))
    if result["warning"]:
        to_stderr(result["verdict"])
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, number in value.items():
                typer.echo(f"  {inner}: {number}")
        elif isinstance(value, list):
            typer.echo(f"{key}: {', '.join(map(str, value)) or 'none'}")
        else:
            typer.echo(f"{key}: {value}")


@app.command(rich_help_panel=PANEL)
def show(name: SearchName, storage: Storage = STORAGE, as_json: Json = False, as_csv: Csv = False) -> None:
    """Print the leaderboard of a search: the state, metrics and params of every trial."""
    from ftae import api

    check_one_format(as_json, as_csv)
    search = api.open_search(name, storage)
    if as_csv:
        print_csv(search.rows())
        return
    if as_json:
        found = {
            "search": search.name,
            "state": search.status,
            "budget": search.budget,
            "used_budget": round(search.used_budget, 3),
            "trials": search.rows(),
        }
        noise = {} if search.noise is None else {"noise": search.noise, "within_noise": search.within_noise}
        typer.echo(json.dumps(found | noise))
        return
    used = full_trainings(search.used_budget, search.budget)
    print_table(f"{search.name}: {search.status}, {used}", [_with_spreads(row) for row in search.rows()])
    for line in search.notes():
        typer.echo(line)


def _with_spreads(row: dict[str, Any]) -> dict[str, Any]:
    """A row with each value and its standard deviation in one cell; only what is within noise is marked."""
    result: dict[str, Any] = {}
    spreads = {"forecast": ("expected end", "forecast_sd"), "mean": ("over seeds", "sd")}
    for name, value in row.items():
        if name in spreads:
            title, sd = spreads[name]
            result[title] = value if value is None or row[sd] is None else plus_minus(value, row[sd])
        elif name == "within_noise":
            result["within noise"] = value or None
        elif name not in ("forecast_sd", "sd"):
            result[name] = value
    return result


Side = Annotated[
    str,
    typer.Argument(help="A search, or the folder of ftae export or ftae train.", show_default=False),
]


@app.command(rich_help_panel=PANEL)
def compare(a: Side, b: Side, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Compare two searches, exports or training runs on the same images: metrics, settings, costs."""
    from ftae import api

    found = api.compare(a, b, storage)
    for warning in found.warnings:
        to_stderr(f"warning: {warning}")
    if as_json:
        typer.echo(json.dumps(found.plain()))
        return
    for letter, model in (("A", found.a), ("B", found.b)):
        typer.echo(f"{letter}: {', '.join([model.description, *_costs(model)])}")
    rows = [
        {
            "metric": each.metric,
            "A": each.a,
            "B": each.b,
            "B - A": each.difference,
            "better": each.better and each.better.upper(),
            "within noise": each.within_noise,
        }
        for each in found.metrics
    ]
    print_table("held-out metrics", rows)
    settings = [
        {"setting": path, "A": _setting(ours), "B": _setting(theirs)}
        for path, (ours, theirs) in found.differing.items()
    ]
    if settings:
        print_table("settings that differ", settings)
    else:
        typer.echo("no setting differs")


def _setting(value: Any) -> Any:
    """A setting as the file would have it."""
    return value if isinstance(value, float | str) else json.dumps(value)


def _costs(model: "Candidate") -> list[str]:
    costs = [] if model.full_trainings is None else [full_trainings(model.full_trainings)]
    return costs if model.hours is None else [*costs, f"{duration(3600.0 * model.hours)} of workers' time"]


@app.command(rich_help_panel=PANEL)
def report(
    name: SearchName,
    out: Annotated[
        Path | None, typer.Option(callback=local, help="The file to write.", show_default="report.html of the search")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    storage: Storage = STORAGE,
) -> None:
    """Write a search as one HTML file: verdict, pictures, curves, params, trade-offs, leaderboard, time, facts."""
    from ftae import api

    file = api.report(name, storage, out)
    typer.echo(file)
    if open_it:
        typer.launch(file.as_uri())


@app.command(rich_help_panel=PANEL)
def export(
    name: SearchName,
    out: Annotated[
        Path | None, typer.Option(callback=local, help="The folder to write.", show_default="exports/SEARCH")
    ] = None,
    trial: Trial = None,
    weights: Weights = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write encoder.onnx and decoder.onnx, or translator.onnx.")
    ] = False,
    storage: Storage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Write the best trial to a folder that ftae train, diffusers and MLflow read: production.yaml, model/, MLmodel."""
    from ftae import api

    search = api.open_search(name, storage)
    notes: list[str] = []
    with prints_to_stderr():
        chosen = search.choose(trial, _weights(weights, trial)).number
        folder = search.export(
            out or Path("exports") / search.folder.name,
            chosen,
            notify=notes.append,
            onnx=onnx,
            allow_code=allow_code,
        )
    typer.echo(f"trial {chosen} of {search.name} is in {folder}. {search.verdict(chosen)}")
    for note in notes:
        typer.echo(note)


def _weights(text: str | None, trial: int | None) -> dict[str, float] | None:
    if text is None:
        return None
    if trial is not None:
        raise typer.BadParameter("use --trial or --weights, not both")
    try:
        return {metric.strip(): float(weight) for metric, weight in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise typer.BadParameter("must be like val/psnr=1,val/ssim=0.5", param_hint="--weights") from None


def _registered(name: str | None) -> str | None:
    from ftae.specs.reading.names import registry_name_problem

    if name is not None and (reason := registry_name_problem(name)) is not None:
        raise typer.BadParameter(f"{reason}, got {name!r}")
    return name


@app.command(rich_help_panel="Results")
def train(
    file: Annotated[
        Path, typer.Argument(help="A production file, or a folder written by ftae export.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(callback=local, help="The folder to write.", show_default="runs/NAME")
    ] = None,
    overrides: Sets = None,
    max_steps: Annotated[int | None, typer.Option(help="Train for this many steps instead.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    register: Annotated[
        str | None, typer.Option(callback=_registered, help="Register the model in MLflow under this name.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share every batch; on GPUs, one a GPU.")] = 1,
    storage: LocalStorage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Train from a production file; the same budget and workers reproduce the trial's numbers exactly."""
    from ftae import api
    from ftae.specs.finetune.metrics import is_held_out

    sets = [*(overrides or []), *([] if max_steps is None else [f"finetune.max_steps={max_steps}"])]
    spec = api.read_training(file, sets)
    from ftae.engine.process import keep_freed_memory

    keep_freed_memory()  # this process is ftae's own
    try:
        with prints_to_stderr():
            run = api.run_training(
                spec,
                out,
                storage=storage,
                resume=resume,
                register=register,
                workers=workers,
                notify=to_stderr,
                allow_code=allow_code,
            )
    except KeyboardInterrupt:
        to_stderr(f"{spec.name} was stopped; to continue from its checkpoint, add --resume to the command")
        raise typer.Exit(130) from None
    values = ", ".join(f"{name} {value:.4f}" for name, value in run.metrics.items() if is_held_out(name))
    typer.echo(f"{spec.name}: {values} at step {run.step}; the model is in {run.model}")
    if not run.latents_compatible:
        typer.echo("the latents are no longer compatible with those of the pretrained model")
