"""Files of weights: safetensors, or what ``torch.save`` wrote. Their content tells which, not their suffix."""

import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from ftae.engine.quiet_libraries import first_line
from ftae.errors import FtaeError


def read_state(path: Path, setting: str = "model.pretrained") -> Mapping[Any, Any]:
    """What the file holds: tensors by name, maybe among other things. No code of the file runs.

    ``setting``: what names the file, for messages.

    Raises:
        FtaeError: it is no such file, or is damaged.
    """
    try:
        state = load_file(path) if check_content(path, setting) == "safetensors" else _unpickled(path, setting)
    except FtaeError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
        raise FtaeError(f"{setting}: {path} is damaged or cut short ({first_line(error)})") from error
    if not isinstance(state, Mapping):
        raise FtaeError(
            f"{setting}: {path} holds no state dict (tensors by name), but an object: {type(state).__name__}"
        )
    return state


def check_content(path: Path, setting: str = "model.pretrained") -> Literal["safetensors", "pickle"]:
    """The format of a file of weights, by its first bytes.

    Raises:
        FtaeError: it cannot be read, or holds no weights.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise FtaeError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    if not head:
        raise FtaeError(f"{setting}: {path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise FtaeError(f"{setting}: {path} is a git-lfs pointer: run 'git lfs pull' in its repository")
    begins = ascii(head.decode("latin-1").strip()[:20])
    raise FtaeError(f"{setting}: {path} is no file of weights: it begins with {begins}")


def _unpickled(path: Path, setting: str) -> Any:
    try:
        with path.open("rb") as file:  # by its name, torch would take it for what the suffix says
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        if (found := _foreign_content(path, error)) is None:
            raise
        raise FtaeError(
            f"{setting}: {path} holds {found}; ftae reads tensors alone, since all else could run code: "
            "save net.state_dict() by itself"
        ) from error


def _foreign_content(path: Path, error: Exception) -> str | None:
    """What a file holds besides tensors, as far as it can be told without running it; None if it is damaged."""
    if not zipfile.is_zipfile(path):  # the format of torch before 1.6, or plain pickle
        return "a whole module or other objects" if isinstance(error, pickle.UnpicklingError) else None
    with zipfile.ZipFile(path) as archive:
        files = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in files:
        return "a TorchScript program"
    if "data.pkl" not in files:
        return "an archive that torch.save did not write"
    kinds: list[str] = []
    with suppress(Exception):  # it is damaged
        kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        kinds.sort(key=lambda kind: (kind.startswith("torch."), kind))
    return f"a whole module or other objects ({', '.join(kinds[:3])})" if kinds else None
