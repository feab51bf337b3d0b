"""The commands that use a tuned model: on images, between two of them, and without any."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ftae.cli.options import STORAGE, AllowCode, Json, Storage, local, prints_to_stderr
from ftae.errors import FtaeError

if TYPE_CHECKING:
    from ftae.inference.evaluate import Judged
    from ftae.inference.model import TunedModel


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

Out = Annotated[Path, typer.Option(callback=local, help="Folder to write to.", show_default=False)]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]

Label = Annotated[str | None, typer.Option(metavar="NAME", help="For a model conditioned on labels: the class.")]


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
    out: Annotated[
        Path | None, typer.Option(callback=local, help="Write scores.csv there, the error of every image.")
    ] = None,
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
    with prints_to_stderr():
        model, told = _load(name, storage, trial, baseline, overrides)
        from ftae.engine.data.listing import check_output
        from ftae.inference import evaluate as scores

        if out is not None:
            folders = model.spec.data.image_folders() | ({} if data is None else {"--data": data})
            check_output(out, folders, writes_folders=False)
        judged = scores.images_to_judge(model, data)
        for note in judged.notes:
            typer.echo(note, err=True)
        chosen = scores.metrics_for(model, judged, None if metrics is None else metrics.split(","))
        for reason in scores.left_out(model, judged) if metrics is None else []:
            typer.echo(f"not measured: {reason}", err=True)
        values = scores.measure(model, judged, chosen)
    if as_json:
        typer.echo(json.dumps({"model": told, "num_images": len(judged), "metrics": values}))
    else:
        typer.echo("\n".join(f"{metric}: {value:.6g}" for metric, value in values.items()))
    if out is not None:
        with prints_to_stderr():
            _write_scores(model, judged, out, heatmaps)


@app.command(rich_help_panel=PANEL)
def reconstruct(
    name: Model,
    images: Annotated[Path, typer.Argument(metavar="INPUT_FOLDER", help="Images.", show_default=False)],
    out: Annotated[
        Path,
        typer.Argument(callback=local, metavar="OUTPUT_FOLDER", help="Folder to write to.", show_default=False),
    ],
    overwrite: Overwrite = False,
    trial: Trial = None,
    baseline: Baseline = False,
    overrides: ModelSets = None,
    storage: Storage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Write the reconstruction of every image of a folder, and a sheet of some beside their inputs."""
    model, _ = _load(name, storage, trial, baseline, overrides)
    from ftae.inference.generate import reconstruct_folder

    count = reconstruct_folder(model, images, out, overwrite=overwrite, notify=lambda line: typer.echo(line, err=True))
    typer.echo(f"{count} reconstructions are in {out}; {out / 'sheet.png'} shows inputs and reconstructions")


@app.command(rich_help_panel=PANEL)
def interpolate(
    name: Model,
    first: Annotated[Path, typer.Argument(metavar="A", help="An image.", show_default=False)],
    last: Annotated[Path, typer.Argument(metavar="B", help="Another.", show_default=False)],
    out: Out,
    frames: Annotated[int, typer.Option(min=2, help="How many images, with both ends.")] = 12,
    spherical: Annotated[bool, typer.Option("--spherical", help="Along the sphere, not straight.")] = False,
    label: Label = None,
    overwrite: Overwrite = False,
    trial: Trial = None,
    baseline: Baseline = False,
    overrides: ModelSets = None,
    storage: Storage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Go from one image to another through their latents: sheet.png and frames.gif."""
    model, _ = _load(name, storage, trial, baseline, overrides)
    from ftae.engine.data.listing import check_output
    from ftae.inference.generate import interpolate as between
    from ftae.inference.pictures import pixels_of, prepare_folder, read_given, save_gif, save_sheet

    check_output(out, model.spec.data.image_folders(), writes_folders=False)
    ends = [read_given(model, end, lambda line: typer.echo(line, err=True)) for end in (first, last)]
    index = None if label is None else model.label(label)
    made, told = between(model, ends[0], ends[1], frames, spherical=spherical, label=index)
    prepare_folder(out, overwrite=overwrite)
    save_sheet(pixels_of(made), out / "sheet.png")
    save_gif(pixels_of(made), out / "frames.gif")
    typer.echo(f"{frames} images in {out / 'sheet.png'} and {out / 'frames.gif'}: {told}")


@app.command(rich_help_panel=PANEL)
def sample(
    name: Model,
    out: Out,
    num: Annotated[int, typer.Option(min=1, help="How many images; of each class, where there are.")] = 36,
    label: Label = None,
    fitted: Annotated[
        bool, typer.Option("--fitted", help="From a Gaussian fitted to the latents of the training images.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    overwrite: Overwrite = False,
    trial: Trial = None,
    baseline: Baseline = False,
    overrides: ModelSets = None,
    storage: Storage = STORAGE,
    allow_code: AllowCode = False,
) -> None:
    """Draw new images: one PNG each, and all of them in sheet.png."""
    model, _ = _load(name, storage, trial, baseline, overrides)
    from ftae.engine.data.listing import check_output
    from ftae.inference.generate import sample as draw
    from ftae.inference.pictures import SHEET_COLUMNS, pixels_of, prepare_folder, save_png, save_sheet

    check_output(out, model.spec.data.image_folders(), writes_folders=False)
    labels, names = model.labels_to_sample(num, label)
    images, told = draw(model, labels, len(names), seed=seed, fitted=fitted)
    prepare_folder(out, overwrite=overwrite)
    pixels = pixels_of(images)
    for image, file in zip(pixels, names, strict=True):
        save_png(image, out / f"{file}.png")
    save_sheet(pixels, out / "sheet.png", columns=SHEET_COLUMNS if labels is None or label is not None else num)
    rows = "" if labels is None or label is not None else ", a row for each class"
    typer.echo(f"{len(images)} images in {out}, all in {out / 'sheet.png'}{rows}; latents from {told}")


def _write_scores(model: "TunedModel", judged: "Judged", out: Path, heatmaps: int) -> None:
    from ftae.inference import evaluate as scores

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
    from ftae.inference.source import find_model, with_settings

    def notify(line: str) -> None:
        typer.echo(line, err=True)

    source = with_settings(find_model(name, storage, trial=trial, baseline=baseline, notify=notify), overrides or [])
    from ftae.inference.model import load_model

    notify(f"model: {source.told}")
    return load_model(source), source.told
