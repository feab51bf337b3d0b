"""Pretrained models on disk: state dicts in and out."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from ftae.engine.model_files import WEIGHTS, pretrained_folder
from ftae.errors import FtaeError


def load_state(net: nn.Module, path: Path, setting: str = "model.pretrained") -> None:
    """Load a state dict: ``.safetensors``, ``.pt`` (tensors only), or a folder that ``save_state`` wrote.

    ``setting``: what names it in the file, for messages.

    Raises:
        FtaeError: there is none, it is damaged, or it is of another model.
    """
    if path.is_dir():
        path = (pretrained_folder(str(path)) or path) / WEIGHTS
    if not path.is_file():
        raise FtaeError(f"{setting}: {path} does not exist; name a .safetensors or .pt state dict")
    try:
        is_safetensors = path.suffix == ".safetensors"
        state = load_file(path) if is_safetensors else torch.load(path, weights_only=True, map_location="cpu")
        net.load_state_dict(state)
    except Exception as error:  # whatever a broken or foreign file makes the readers raise
        raise FtaeError(f"{setting}: {path} does not hold a state dict of the model: {error}") from error


def save_state(net: nn.Module, folder: Path) -> None:
    """Write the state dict of ``net`` into ``folder``, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(save(state))  # save_file would tell of a full disk in an error of its own
