"""Train models to their full budget, load them, and convert weights of other programs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftae.api.files import read_training
from ftae.api.unchanged_process import Notify, unchanged_process
from ftae.specs.search.search import ProductionSpec

if TYPE_CHECKING:
    from ftae.engine.models.foreign.convert import Converted
    from ftae.inference.files import Model

MODEL_FOLDER = "model"

logger = logging.getLogger("ftae")


@dataclass(frozen=True)
class TrainedRun:
    """A training run that has ended.

    Attributes:
        folder: the folder of the run.
        model: the folder of its model, for ``load_model``.
        step: the optimizer step of the last report.
        metrics: the metrics of the last report, such as ``val/psnr``.
        latents_compatible: whether the latents are those of the pretrained model; True without one.
    """

    folder: Path
    model: Path
    step: int
    metrics: dict[str, float]
    latents_compatible: bool


def run_training(
    spec: ProductionSpec | Path | str,
    out: Path | str | None = None,
    *,
    storage: Path | str = "searches",
    resume: bool = False,
    register: str | None = None,
    workers: int = 1,
    notify: Notify | None = None,
    allow_code: bool = False,
) -> TrainedRun:
    """Train a model to the full budget of a production file, and write it to a folder.

    Args:
        spec: a production spec, a production file, or the folder of an exported trial.
        out: the folder to write; by default ``runs/<name>``.
        storage: the folder of the embedded MLflow store, if ``tracking.uri`` names no other.
        resume: continue from the newest checkpoint in ``out``.
        register: register the model in MLflow under this name, with the alias ``champion``.
        workers: the number of processes that share each batch; on GPUs, one process a GPU.
        notify: receives a line for each report.
        allow_code: allow code that the spec names.

    Raises:
        FtaeError: the spec cannot be run; ``out`` contains a run (with ``resume`` false) or none (with true); MLflow
            refuses the run, or cannot be reached to register the model.
        TrainingFailed: the training diverged.

    Examples:
        >>> run = ftae.run_training("exports/quickstart", "runs/final")
        >>> run.metrics["val/psnr"]
    """
    from ftae.search.production import train

    if not isinstance(spec, ProductionSpec):
        spec = read_training(spec)
    spec = spec.with_absolute_paths()
    folder = Path("runs") / spec.name if out is None else Path(out)
    with unchanged_process(allow_code):
        report, exported = train(
            spec,
            folder,
            storage=Path(storage),
            resume=resume,
            register=register,
            workers=workers,
            notify=notify or logger.info,
        )
    compatible = spec.finetune.model.pretrained is None or exported.latents_compatible
    return TrainedRun(folder, folder / MODEL_FOLDER, report.step, dict(report.metrics), compatible)


def load_model(
    name: Path | str,
    storage: str = "searches",
    *,
    trial: int | None = None,
    baseline: bool = False,
    overrides: Sequence[str] = (),
    notify: Notify | None = None,
    allow_code: bool = False,
) -> "Model":
    """Load a model for use, on a GPU if its run was made for one and there is one.

    Args:
        name: a folder that ``Search.export`` or ``run_training`` wrote, a checkpoint folder, or a search (its name
            below ``storage``, or its folder). With ``baseline`` also a search or production file.
        storage: the folder or the URL of the object store that holds the searches.
        trial: for a search, the number of the trial; by default the best.
        baseline: load the untuned model that the run or search started from.
        overrides: texts ``path=value`` for ``data``, ``batch_size``, ``device`` or ``num_threads``.
        notify: receives a line for each damaged checkpoint that is passed over.
        allow_code: allow code that the run names.

    Raises:
        FtaeError: there is no such model, or its weights are missing or damaged.

    Examples:
        >>> model = ftae.load_model("exports/quickstart")
        >>> images = model.sample(4)  # float32 (4, H, W, C) in [0, 1]
    """
    from ftae.inference.files import Model
    from ftae.inference.model import load_model
    from ftae.inference.source import find_model, with_settings

    with unchanged_process(allow_code):
        found = find_model(str(name), storage, trial=trial, baseline=baseline, notify=notify or logger.info)
        source = with_settings(found, overrides)
        return Model(load_model(source), source.description, allow_code=allow_code)


def convert(file: Path | str, out: Path | str, *, licence: str | None = None) -> "Converted":
    """Convert weights of another program into a folder that ``model.pretrained`` can name.

    Reads pickles of NVIDIA's StyleGAN2 (PyTorch or TensorFlow), files of rosinality's, and state dicts of generators of
    CycleGAN and Pix2Pix (``.pth`` or ``.safetensors``). Nothing in the file is executed.

    Args:
        file: the file of weights.
        out: the folder to write, which must not exist.
        licence: the terms that the weights are under. They are written beside the weights, and into every export of a
            model that is tuned from them.

    Raises:
        FtaeError: the file is damaged, of another layout, or asks for code; a tensor does not fit the network of ftae;
            ``licence`` is missing; ``out`` exists.

    Examples:
        >>> ftae.convert("ffhq.pkl", "models/ffhq", licence="NVIDIA, research or evaluation only")
    """
    from ftae.engine.models.foreign.convert import convert

    with unchanged_process(allow_code=False):
        return convert(Path(file), Path(out), licence=licence)
