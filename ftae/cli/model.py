"""The commands that use a model: on images, between two images, to sample new ones; and one that converts its file."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from ftae.cli.options import Json, ModelRef, Overwrite, local, prints_to_stderr, takes_model, to_stderr

app = typer.Typer()
PANEL = "Using a model"
Images = Annotated[
    str,
    typer.Argument(
        metavar="INPUT_FOLDER",
        help="The images: a folder, an archive, shards; or a file of arrays.",
        show_default=False,
    ),
]
OutputFolder = Annotated[
    Path, typer.Argument(callback=local, metavar="OUTPUT_FOLDER", help="The folder to write.", show_default=False)
]
Out = Annotated[Path, typer.Option(callback=local, help="The folder to write.", show_default=False)]
Label = Annotated[str | None, typer.Option(metavar="NAME", help="For a model conditioned on labels: the class.")]
Truncation = Annotated[
    float | None, typer.Option(help="For StyleGAN2: draws styles towards their mean, by a factor such as 0.7.")
]


@app.command(rich_help_panel=PANEL)
@takes_model
def evaluate(
    model: ModelRef,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Images to measure on: a folder, an archive, or shards.",
            show_default="the run's validation images",
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B", help="Metrics to measure.", show_default="the metrics of the run")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=local, help="Write scores.csv here: the scores of every image.")
    ] = None,
    heatmaps: Annotated[int, typer.Option(min=0, help="With --out: draw the errors of the N worst images.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure a model: the metrics of its run on the validation images, or on a folder of other images."""
    loaded = model.load()
    names = None if metrics is None else metrics.split(",")
    with prints_to_stderr():
        found = loaded.evaluate(data, names, out=out, heatmaps=heatmaps, notify=to_stderr)
    if as_json:
        typer.echo(json.dumps({"model": loaded.description, "num_images": found.num_images, "metrics": found.metrics}))
    else:
        typer.echo("\n".join(f"{metric}: {value:.6g}" for metric, value in found.metrics.items()))


@app.command(rich_help_panel=PANEL)
@takes_model
def reconstruct(
    model: ModelRef,
    images: Images,
    out: OutputFolder,
    overwrite: Overwrite = False,
) -> None:
    """Write the reconstruction of every image of a folder, and a sheet of some of them; or of an array, as .npy.

    Files are PNG, or TIFF with values as in the files; volumes are NIfTI. Where the model was trained on pages, slices
    or tiles, all those of a file are run, and are one file again.
    """
    loaded = model.load()
    with prints_to_stderr():
        count = loaded.reconstruct_folder(images, out, overwrite=overwrite, notify=to_stderr)
    sheet = out / "sheet.png"
    shown = f"; {sheet} shows inputs and reconstructions" if sheet.exists() else ""
    typer.echo(f"{count} reconstructions are in {out}{shown}")


@app.command(rich_help_panel=PANEL)
@takes_model
def translate(
    model: ModelRef,
    images: Images,
    out: OutputFolder,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Make A of B, with a model that has learned both ways.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write what a translator makes of every image of a folder, and a sheet of some beside their inputs."""
    loaded = model.load()
    with prints_to_stderr():
        count = loaded.translate_folder(images, out, reverse=reverse, overwrite=overwrite, notify=to_stderr)
    typer.echo(f"{count} translations are in {out}; {out / 'sheet.png'} shows inputs and translations")


@app.command(rich_help_panel=PANEL)
@takes_model
def interpolate(
    model: ModelRef,
    out: Out,
    first: Annotated[Path | None, typer.Argument(metavar="A", help="An image.", show_default=False)] = None,
    last: Annotated[Path | None, typer.Argument(metavar="B", help="Another image.", show_default=False)] = None,
    seeds: Annotated[
        tuple[int, int] | None, typer.Option(metavar="A B", min=0, help="Two samples of a generator instead of images.")
    ] = None,
    truncation: Truncation = None,
    frames: Annotated[int, typer.Option(min=2, help="The number of images, both ends included.")] = 12,
    spherical: Annotated[bool, typer.Option("--spherical", help="Interpolate on a sphere, not linearly.")] = False,
    label: Label = None,
    overwrite: Overwrite = False,
) -> None:
    """Interpolate between the latents of two images, or between two seeds: writes sheet.png and frames.gif."""
    if (first is None or last is None) == (seeds is None):
        raise typer.BadParameter("name two images A and B, or --seeds of a generator")
    if seeds is None and truncation is not None:
        raise typer.BadParameter("--truncation has no effect on two images, it needs --seeds")
    if seeds is not None and label is not None:
        raise typer.BadParameter("--label has no effect on --seeds")
    loaded = model.load()
    with prints_to_stderr():
        if seeds is not None:
            description = loaded.interpolate_seeds(
                *seeds, out, frames=frames, spherical=spherical, truncation=truncation, overwrite=overwrite
            )
        else:
            assert first is not None
            assert last is not None
            description = loaded.interpolate_files(
                first,
                last,
                out,
                frames=frames,
                spherical=spherical,
                label=label,
                overwrite=overwrite,
                notify=to_stderr,
            )
    typer.echo(f"{frames} images are in {out / 'sheet.png'} and {out / 'frames.gif'}: {description}")


@app.command(rich_help_panel=PANEL)
@takes_model
def sample(
    model: ModelRef,
    out: Out,
    num: Annotated[int, typer.Option(min=1, help="The number of images, of each class if there are classes.")] = 36,
    label: Label = None,
    fitted: Annotated[
        bool, typer.Option("--fitted", help="Draw from a Gaussian fitted to the latents of the training images.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B-C", help="For a generator: the seeds of the images, such as 3,8,20-29.")
    ] = None,
    truncation: Truncation = None,
    overwrite: Overwrite = False,
) -> None:
    """Sample new images: writes one file each, or samples.npy of arrays, and all of them in sheet.png."""
    loaded = model.load()
    with prints_to_stderr():
        count, description = loaded.sample_files(
            num,
            out,
            seed=seed,
            seeds=None if seeds is None else _numbers(seeds),
            truncation=truncation,
            label=label,
            fitted=fitted,
            overwrite=overwrite,
        )
    typer.echo(f"{count} images are in {out}, all of them in {out / 'sheet.png'}; latents from {description}")


@app.command(rich_help_panel=PANEL)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of another program.", show_default=False)],
    out: OutputFolder,
    licence: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The terms that the weights are under; required.", show_default=False),
    ] = None,
) -> None:
    """Convert weights of StyleGAN2, CycleGAN or Pix2Pix into a folder for model.pretrained, without running code."""
    from ftae import api

    found = api.convert(file, out, licence=licence)
    typer.echo(f"{out} holds a {found.family}, from {found.layout}: {', '.join(found.networks)}")
    if "discriminator" not in found.networks:
        typer.echo("the file has no discriminator: tuning begins with a new one")


def _numbers(text: str) -> list[int]:
    """The numbers of ``3,8,20-29``."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise typer.BadParameter(f"--seeds must be numbers and ranges such as 3,8,20-29, got {text!r}")
    ends = [part.partition("-") for part in text.split(",")]
    ranges = [range(int(first), int(last or first) + 1) for first, _, last in ends]
    if not all(ranges):
        raise typer.BadParameter(f"--seeds: a range must not end before it begins, got {text!r}")
    return [number for numbers in ranges for number in numbers]
