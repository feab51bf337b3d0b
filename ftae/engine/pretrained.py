"""Pretrained models on disk: state dicts in and out."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ftae.engine.fitting import best_fit
from ftae.engine.model_files import WEIGHTS, pretrained_folder, suggested
from ftae.engine.quiet_libraries import first_line
from ftae.engine.weights_file import read_state
from ftae.errors import FtaeError

logger = logging.getLogger(__name__)


def load_state(net: nn.Module, path: Path, setting: str = "model.pretrained") -> None:
    """Load a state dict: ``.safetensors``, ``.pt`` (tensors only), or a folder that ``save_state`` wrote.

    One that lies under a key of the file, or whose names have a prefix, is taken where the rest fits exactly; that
    is said. ``setting``: what names it in the file, for messages.

    Raises:
        FtaeError: there is none, it is damaged, or it is of another model.
    """
    if path.is_dir():
        path = (pretrained_folder(str(path)) or path) / WEIGHTS
    if not path.is_file():
        raise FtaeError(f"{setting}: {path} does not exist; name a .safetensors or .pt state dict{suggested(path)}")
    fill(net, read_state(path, setting), f"{setting}: {path}")


def fill(net: nn.Module, content: Mapping[Any, Any], where: str) -> None:
    """Give ``net`` the tensors that a file holds. ``where``: the setting and the file, for messages.

    Raises:
        FtaeError: they are of another model.
    """
    fit = best_fit(content, net.state_dict())
    if not fit.is_exact:
        raise FtaeError(f"{where} does not hold a state dict of the model: {fit.faults()}")
    try:
        net.load_state_dict(fit.state if fit.how else content)  # which also knows the versions of its layers
    except Exception as error:  # a user's own module may load as it likes
        raise FtaeError(f"{where} cannot be loaded into the model: {first_line(error)}") from error
    if fit.how:
        note(f"{where} is read {fit.how}")


@cache
def note(text: str) -> None:
    """Tell the user, once: the same model is built again and again."""
    logger.warning(text)


def save_state(net: nn.Module, folder: Path) -> None:
    """Write the state dict of ``net`` into ``folder``, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(save(state))  # save_file would tell of a full disk in an error of its own
