"""Reads a file of foreign weights. Nothing in the file is executed.

A pickle is a program that calls what it names. ``_TensorsAlone`` gives it the functions below, which stand for the ones
of the same name that it asks for, and refuses any other name.
"""

import argparse
import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftae.engine.models.pretrained.weights import check_content, read_state
from ftae.engine.process import first_line
from ftae.errors import FtaeError

# How torch.save began a file before torch 1.6: a pickle of its magic number.
_BEFORE_ZIP = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


@dataclass
class Kept:
    """The attributes of an object of another program's class."""

    state: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def read_foreign(path: Path) -> Any:
    """The content of a file: tensors by name, or what a pickle holds, with ``Kept`` in the place of its objects.

    Raises:
        FtaeError: it cannot be read, is damaged, is no file of weights, or names anything that could run code.
    """
    if check_content(path, "FILE") == "safetensors" or not _is_plain_pickle(path):
        # The options of a run, as argparse keeps them, are a plain object; reading it calls nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return read_state(path, "FILE")
    try:
        with path.open("rb") as file:
            return _TensorsAlone(file).load()
    except FtaeError as error:
        raise FtaeError(f"FILE: {path}: {error}") from error
    except Exception as error:  # a broken pickle raises anything
        raise FtaeError(f"FILE: {path} is damaged or cut short ({first_line(error)})") from error


def _is_plain_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(len(_BEFORE_ZIP))
    return head.startswith(b"\x80") and head != _BEFORE_ZIP


def flattened(module: Kept, prefix: str = "") -> dict[str, Tensor]:
    """The parameters and buffers of a kept module of torch, by their dotted names."""
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        tensors = module.state.get(kind, {})
        found |= {f"{prefix}{name}": tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    for name, inner in module.state.get("_modules", {}).items():
        if isinstance(inner, Kept):
            found |= flattened(inner, f"{prefix}{name}.")
    return found


class _TensorsAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise _refusal(f"{module}.{name}")
        if found is dict:
            return dict
        # A pickle may set attributes of what it gets: each time, it gets a new function or class.
        return type("Kept", (Kept,), {}) if found is Kept else lambda *arguments: found(*arguments)


def _refusal(named: str) -> FtaeError:
    return FtaeError(f"it asks for {named}, which could run code; ftae reads tensors and plain values alone")


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Kept:
    """An object of NVIDIA's ``persistence``: the source text in ``meta``, meant to be executed, is left alone."""
    return Kept(dict(meta["state"]))


def _load_from_bytes(content: bytes) -> Tensor:
    """All elements of a storage; the bytes are a file of torch.save, read by its own allow-list."""
    try:
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (named := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise
        raise _refusal(named[1]) from error
    flat: Tensor = torch.empty(0, dtype=storage.dtype)
    return flat.set_(storage)


def _rebuild_tensor_v2(storage: Tensor, offset: int, size: tuple[int], stride: tuple[int], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # refuses what lies outside of the storage


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _reconstruct(kind: Any, shape: Any, code: Any) -> "np.ndarray[Any, Any]":
    """An empty array of numpy, which its state then fills."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _dtype(code: str, *_: Any) -> "np.dtype[Any]":
    return np.dtype(code, False, True)  # a new one: numpy's own is one for the whole process


def _scalar(dtype: "np.dtype[Any]", content: bytes = b"") -> Any:
    return np.frombuffer(content, dtype)[0]


_ALLOWED: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_obj,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "dnnlib.util.EasyDict": dict,
    "dnnlib.tflib.network.Network": Kept,
    "numpy.ndarray": tuple,  # named as an argument alone
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.multiarray.{name}": function
        for core in ("core", "_core")  # before and since numpy 2
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}
