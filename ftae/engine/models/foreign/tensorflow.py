"""The names of NVIDIA's TensorFlow files of StyleGAN2, and how their tensors lie."""

import re

import numpy as np
import torch
from torch import Tensor

from ftae.engine.models.foreign.network import State
from ftae.engine.models.foreign.reading import Kept

_LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}
_OF_DISCRIMINATOR = {"Conv1_down": "conv1", "Conv0": "conv0", "Skip": "skip", "FromRGB": "fromrgb", "Conv": "conv"}
_PARTS = {"mod_weight": "affine.weight", "mod_bias": "affine.bias"}


def variables(network: Kept, prefix: str = "") -> State:
    """All variables of a network and of its components, by their paths."""
    found = {f"{prefix}{name}": torch.from_numpy(np.array(value)) for name, value in network.state["variables"]}
    for name, component in network.state.get("components", {}).items():
        found |= variables(component, f"{prefix}{name}/")
    return found


def generator_state(theirs: State) -> State:
    """A generator in the names of the PyTorch files; a variable that has none keeps its own."""
    return dict(_generator_entry(name, tensor) for name, tensor in theirs.items())


def _generator_entry(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name == "dlatent_avg":
        return "mapping.w_avg", tensor
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", tensor[0]
    if found := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", name):
        return f"mapping.fc{found[1]}.{found[2]}", _turned(tensor)
    if found := re.fullmatch(r"synthesis/noise(\d+)", name):
        number = int(found[1])  # one on side 4, two on each side after it
        conv = 0 if number % 2 else 1
        return f"synthesis.b{4 * 2 ** ((number + 1) // 2)}.conv{conv}.noise_const", tensor[0, 0]
    if (found := re.fullmatch(r"synthesis/(\d+)x\1/(\w+)/(\w+)", name)) and found[2] in _LAYERS:
        tensor = _turned(tensor)
        if found[2] == "Conv0_up" and found[3] == "weight":
            tensor = tensor.flip(2, 3)
        if found[3] == "mod_bias":
            tensor = tensor + 1.0  # it is added when the network runs
        return f"synthesis.b{found[1]}.{_LAYERS[found[2]]}.{_PARTS.get(found[3], found[3])}", tensor
    return name, tensor


def discriminator_state(theirs: State) -> State:
    """A discriminator in the names of the PyTorch files; a variable that has none keeps its own."""
    found = {}
    for name, tensor in theirs.items():
        *layer, part = name.split("/")
        found[_discriminator_layer(layer, part) or name] = _turned(tensor)
    return found


def _discriminator_layer(layer: list[str], part: str) -> str | None:
    if layer == ["Output"]:
        return f"b4.out.{part}"
    if layer == ["4x4", "Dense0"]:
        return f"b4.fc.{part}"
    if len(layer) == 2 and layer[1] in _OF_DISCRIMINATOR:
        return f"b{layer[0].partition('x')[0]}.{_OF_DISCRIMINATOR[layer[1]]}.{part}"
    return None


def _turned(tensor: Tensor) -> Tensor:
    """Weights (k, k, in, out) as (out, in, k, k), and (in, out) as (out, in)."""
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
