"""Exports the evaluated weights of a checkpoint as a model that other programs load, with the scale of its latents."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ftae.engine.data.batches import Batch, val_batches
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.source_base import ImageSet, Values
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_model
from ftae.engine.models.pretrained.compvis import GROUPS, from_diffusers
from ftae.engine.models.pretrained.latent_statistics import statistics_of
from ftae.engine.models.pretrained.model_folder import weights_origin, write_origin
from ftae.engine.models.pretrained.weights import load_state
from ftae.engine.process import device_of
from ftae.engine.tasks.discriminator import export_discriminator
from ftae.engine.training.checkpoint import evaluated_weights
from ftae.errors import FtaeError
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.run import FinetuneSpec

STATISTICS_IMAGES = 1024  # about as many training images give the statistics of the latents
HEAD, CLASSES, SCALE = "head.safetensors", "classes.json", "scale.npy"
SINGLE_FILE = "vae.safetensors"  # beside the folder of the model


@dataclass(frozen=True)
class ExportedModel:
    """What users of an exported model must know.

    ``latents_compatible``: the encoder gives exactly the latents of the pretrained model, so that models trained on
    those latents still fit; also where the model has none. ``scaling_factor``: the new one where the latents have
    changed; None for a family that has none, and where they have not. ``recomputed``: the names of the statistics of
    the latents that are new.
    """

    latents_compatible: bool
    scaling_factor: float | None
    recomputed: tuple[str, ...] = ()


def export_model(spec: FinetuneSpec, checkpoint: Path, folder: Path) -> ExportedModel:
    """Write the model of a checkpoint to ``folder`` in the format of its family, with its head and its discriminator.

    Beside ``folder``, ``vae.safetensors`` holds the weights of a VAE for programs that build it as CompVis' code does.

    Where the latents have changed, the statistics that the model records of them (see ``statistics_of``) become those
    of the training images.
    """
    data = load_dataset(spec.data)
    pretrained, tuned = (build_model(spec, data.num_classes).to(device_of(spec)) for _ in range(2))
    tuned.load_state_dict(tuned.state_dict() | evaluated_weights(checkpoint))
    compatible = not spec.model.has_latents or _same_latents(pretrained, tuned, data, spec)
    statistics = {} if compatible else _record_latents(tuned, data.train, spec)
    try:
        tuned.save(folder)
        if spec.model.family in ("autoencoder_kl", "autoencoder_kl_flux2"):
            _save_single_file(tuned.net, folder.with_name(SINGLE_FILE), flux2=spec.model.family.endswith("flux2"))
        export_discriminator(spec, checkpoint, folder)
        if tuned.head is not None:
            save_file(tuned.head.state_dict(), folder / HEAD)
        if (origin := weights_origin(spec.model.pretrained)) is not None:
            write_origin(origin, folder)  # the licence of the weights holds for what is tuned from them
    except SafetensorError as error:
        raise FtaeError(f"the model cannot be written to {folder}: {error}") from error
    if data.class_names is not None:
        (folder / CLASSES).write_text(json.dumps(data.class_names))
    if data.train.scale is not None:
        np.save(folder / SCALE, data.train.scale)
    return ExportedModel(compatible, statistics.get("scaling_factor"), tuple(statistics))


def _save_single_file(net: Any, file: Path, *, flux2: bool) -> None:
    if net.config.norm_num_groups == GROUPS:  # with any other number, those programs would compute something else
        state = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
        save_file(from_diffusers(state, flux2=flux2), file, {"format": "pt"})


def exported_scale(folder: Path) -> Values | None:
    """The values that are 0 and 1 for a model of arrays (see ``ImageSet.scale``); None for any other model.

    Raises:
        FtaeError: the file that holds them is damaged.
    """
    if not (file := folder / SCALE).is_file():
        return None
    try:
        scale: Values = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FtaeError(f"{file} cannot be read: {error}") from error
    if scale.dtype != np.float64 or scale.ndim != 4 or len(scale) != 2 or not np.isfinite(scale).all():
        raise FtaeError(f"{file} is damaged: it must hold two sets of finite numbers")
    return scale


def load_exported_model(spec: FinetuneSpec, folder: Path, num_classes: int | None) -> Autoencoder:
    """The model that ``export_model`` wrote to ``folder``, with its head. Raises as ``build_model``."""
    model = spec.model.model_copy(update={"pretrained": str(folder.absolute())})
    if isinstance(model, DiffusersModel):
        # The folder says what these did of the original: the part of a pipeline, how the latents are scaled.
        model = model.model_copy(update={name: None for name in ("subfolder", "scaling") if hasattr(model, name)})
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
def _record_latents(autoencoder: Autoencoder, images: ImageSet, spec: FinetuneSpec) -> dict[str, Any]:
    """Record the statistics of the latents of ``images`` in the network; returns them by name."""
    statistics = statistics_of(autoencoder.net) if isinstance(spec.model, DiffusersModel) else None
    if statistics is None:
        return {}
    few = images.subset(slice(None, None, max(1, len(images) // STATISTICS_IMAGES)))
    for batch in val_batches(few, spec.data, batch_size=spec.batch_size, device=device_of(spec)):
        encoding = autoencoder.encode(autoencoder.to_range(batch.inputs), batch.labels)
        mean, posterior = encoding.mode, encoding.posterior
        statistics.update(mean, torch.zeros_like(mean) if posterior is None else posterior.logvar.exp())
    statistics.write()
    return statistics.read()


def _mode(autoencoder: Autoencoder, batch: Batch) -> Tensor:
    return autoencoder.encode(autoencoder.to_range(batch.inputs), batch.labels).mode
