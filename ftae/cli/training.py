"""The command that trains a model to its full budget."""

from pathlib import Path
from typing import Annotated

import typer

from ftae.cli.options import STORAGE, AllowCode, LocalStorage, Sets, local, prints_to_stderr, to_stderr

app = typer.Typer()


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
