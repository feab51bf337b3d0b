"""Exports the evaluated weights of a checkpoint as a model that other programs load, with the scale of its latents."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ftae.engine.data.batches import Batch, val_batches
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_model
from ftae.engine.models.model_folder import DISCRIMINATOR, weights_origin, write_origin
from ftae.engine.models.weights import load_state
from ftae.engine.process import device_of
from ftae.engine.training.checkpoint import evaluated_weights
from ftae.errors import FtaeError
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.run import FinetuneSpec

SCALING_IMAGES = 1024  # about as many training images give the scale of the latents
HEAD, CLASSES = "head.safetensors", "classes.json"


@dataclass(frozen=True)
class ExportedModel:
    """What users of an exported model must know.

    ``latents_compatible``: the encoder gives exactly the latents of the pretrained model, so that models trained on
    those latents still fit; also where the model has none. ``scaling_factor``: the new one where the latents have
    changed; None for a family that has none, and where they have not.
    """

    latents_compatible: bool
    scaling_factor: float | None


def export_model(spec: FinetuneSpec, checkpoint: Path, folder: Path) -> ExportedModel:
    """Write the model of a checkpoint to ``folder`` in the format of its family, with its head and its discriminator.

    Where the latents have changed, ``scaling_factor`` becomes one over the standard deviation of the latents of the
    training images (as for the first batch in Rombach et al. 2022, section G), and ``shift_factor`` their mean.
    """
    data = load_dataset(spec.data)
    pretrained, tuned = (build_model(spec, data.num_classes).to(device_of(spec)) for _ in range(2))
    tuned.load_state_dict(tuned.state_dict() | evaluated_weights(checkpoint))
    compatible = not spec.model.has_latents or _same_latents(pretrained, tuned, data, spec)
    scaling_factor = None if compatible else _rescale(tuned, data.train, spec)
    try:
        tuned.save(folder)
        if (checkpoint / DISCRIMINATOR).is_file():
            shutil.copyfile(checkpoint / DISCRIMINATOR, folder / DISCRIMINATOR)
        if tuned.head is not None:
            save_file(tuned.head.state_dict(), folder / HEAD)
        if (origin := weights_origin(spec.model.pretrained)) is not None:
            write_origin(origin, folder)  # the licence of the weights holds for what is tuned from them
    except SafetensorError as error:
        raise FtaeError(f"the model cannot be written to {folder}: {error}") from error
    if data.class_names is not None:
        (folder / CLASSES).write_text(json.dumps(data.class_names))
    return ExportedModel(compatible, scaling_factor)


def load_exported_model(spec: FinetuneSpec, folder: Path, num_classes: int | None) -> Autoencoder:
    """The model that ``export_model`` wrote to ``folder``, with its head. Raises as ``build_model``."""
    model = spec.model.model_copy(update={"pretrained": str(folder.absolute())})
    if isinstance(model, DiffusersModel):
        model = model.model_copy(update={"subfolder": None})  # it named a part of the original pipeline
    autoencoder = build_model(spec.model_copy(update={"model": model}), num_classes)
    if autoencoder.head is not None:
        load_state(autoencoder.head, folder / HEAD)
    return autoencoder


@torch.no_grad()
def _same_latents(a: Autoencoder, b: Autoencoder, data: Dataset, spec: FinetuneSpec) -> bool:
    # On all images: quantised latents of a few may be equal although the encoder has changed.
    batches = val_batches(data.val, spec.data, batch_size=spec.batch_size, device=device_of(spec))
    return all(torch.equal(_mode(a, batch), _mode(b, batch)) for batch in batches)


@torch.no_grad()
def _rescale(autoencoder: Autoencoder, images: ImageSet, spec: FinetuneSpec) -> float | None:
    """Write the scale of the latents of ``images`` into the config; returns it, or None for a family without one."""
    config: Any = getattr(autoencoder.net, "config", None)
    if not isinstance(spec.model, DiffusersModel) or "scaling_factor" not in config:
        return None
    total, squares, count = 0.0, 0.0, 0
    few = images.subset(slice(None, None, max(1, len(images) // SCALING_IMAGES)))
    for batch in val_batches(few, spec.data, batch_size=spec.batch_size, device=device_of(spec)):
        encoding = autoencoder.encode(autoencoder.to_range(batch.inputs), batch.labels)
        mean, posterior = encoding.mode, encoding.posterior
        variance = torch.zeros_like(mean) if posterior is None else posterior.logvar.exp()
        total += float(mean.double().sum())
        squares += float((mean.double().square() + variance.double()).sum())
        count += mean.numel()
    average = total / count
    shift = average if config.get("shift_factor") is not None else None
    scaling_factor = float((squares / count - average**2) ** -0.5)
    changed = {"scaling_factor": scaling_factor} | ({} if shift is None else {"shift_factor": shift})
    autoencoder.net.register_to_config(**changed)  # type: ignore[operator]
    return scaling_factor


def _mode(autoencoder: Autoencoder, batch: Batch) -> Tensor:
    return autoencoder.encode(autoencoder.to_range(batch.inputs), batch.labels).mode
