"""The commands that use a tuned model: on images, between two of them, and without any."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftae.cli_options import STORAGE, AllowCode, Json, Storage
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from ftae.tuned.model import TunedModel
    from ftae.tuned.scores import Judged

app = typer.Typer()
PANEL = "Using a model"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder that ftae export or ftae train wrote, a checkpoint, or a search.",
        show_default=False,
    ),
]
Trial = Annotated[int | None, typer.Option(help="Of a search, this trial.", show_default="the best")]
Baseline = Annotated[bool, typer.Option("--baseline", help="The untuned model it began with; also of a search file.")]
ModelSets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a value of its data, batch_size or device."),
]


@app.command(rich_help_panel=PANEL)
def evaluate(
    name: Model,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images to judge by.", show_default="the validation images of its run"),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to measure.", show_default="the metrics of its run")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write scores.csv there, the error of every image.")] = None,
    heatmaps: Annotated[int, typer.Option(min=0, help="With --out: maps of the error of the N worst images.")] = 0,
    trial: Trial = None,
    baseline: Baseline = False,
    overrides: ModelSets = None,
    storage: Storage = STORAGE,
    as_json: Json = False,
    allow_code: AllowCode = False,
) -> None:
    """Measure a model: the metrics of its run on the validation images, or on a folder of others."""
    if heatmaps and out is None:
        raise FtaeError("--heatmaps needs --out, the folder to write them to")
    model, told = _load(name, storage, trial, baseline, overrides)
    from ftae.tuned import scores

    judged = scores.images_to_judge(model, data)
    for note in judged.notes:
        typer.echo(note, err=True)
    chosen = scores.metrics_for(model, judged, None if metrics is None else metrics.split(","))
    values = scores.measure(model, judged, chosen)
    if as_json:
        typer.echo(json.dumps({"model": told, "num_images": len(judged), "metrics": values}))
    else:
        typer.echo("\n".join(f"{metric}: {value:.6g}" for metric, value in values.items()))
    if out is not None:
        _write_scores(model, judged, out, heatmaps)


def _write_scores(model: "TunedModel", judged: "Judged", out: Path, heatmaps: int) -> None:
    from ftae.tuned import scores

    found = scores.score(model, judged)
    scores.write_scores(judged, found, out / "scores.csv")
    typer.echo(f"the error of each of {len(judged)} images is in {out / 'scores.csv'}", err=True)
    if heatmaps:
        worst = found.worst(heatmaps)
        largest = scores.write_heat_maps(model, judged, worst, out / "heatmaps.png")
        typer.echo(
            f"{out / 'heatmaps.png'}: input, reconstruction, error of the {len(worst)} worst, the worst on top; "
            f"the lightest colour is an error of {largest:.3g} of the image range",
            err=True,
        )


def _load(
    name: str, storage: str, trial: int | None, baseline: bool, overrides: list[str] | None = None
) -> "tuple[TunedModel, str]":
    """The model that the arguments name, and what it is."""
    from ftae.tuned.source import find_model, with_settings

    def say(line: str) -> None:
        typer.echo(line, err=True)

    source = with_settings(find_model(name, storage, trial=trial, baseline=baseline, say=say), overrides or [])
    from ftae.tuned.model import load_model

    say(f"model: {source.told}")
    return load_model(source), source.told
