"""Files as other programs write them, around small networks of ftae. The names are theirs, the tensors ftae's."""

import argparse
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftae.engine.models.foreign import rosinality
from ftae.engine.models.gans.stylegan2_discriminator import StyleGan2DiscriminatorNet
from ftae.engine.models.gans.stylegan2_generator import StyleGan2GeneratorNet

SMALL: dict[str, int] = {"channels_in": 3, "resolution": 16, "channel_base": 64, "channel_max": 8}
TAPS = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def small_stylegan2(seed: int) -> StyleGan2GeneratorNet:
    """A generator whose every parameter and buffer matters."""
    torch.manual_seed(seed)
    net = StyleGan2GeneratorNet(**SMALL, latent_dim=6, style_dim=8, mapping_layers=2)
    fill(net)
    return net.eval()


def small_discriminator() -> StyleGan2DiscriminatorNet:
    torch.manual_seed(9)
    net = StyleGan2DiscriminatorNet(**SMALL)
    fill(net)
    return net


def fill(net: nn.Module) -> None:
    """Draw random values for the parameters and buffers that begin at zero, too."""
    for tensor in net.state_dict().values():
        if not tensor.any():
            tensor.normal_()


# ------------------------------------------------------------------------------- NVIDIA, PyTorch

SOURCE = "raise SystemExit('the source text of a pickle ran')"


def write_nvidia(path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickle ``content`` with its modules as NVIDIA's persistent objects."""
    with monkeypatch.context() as patch:
        persistence, util = _made_up(patch, "torch_utils.persistence"), _made_up(patch, "dnnlib.util")
        rebuild = _placed(lambda meta: None, "_reconstruct_persistent_obj", persistence)
        easy_dict = _placed(type("EasyDict", (dict,), {}), "EasyDict", util)

        def persistent(value: Any) -> Any:
            return _Reduced(rebuild, _meta(value, persistent, easy_dict)) if isinstance(value, nn.Module) else value

        path.write_bytes(pickle.dumps({name: persistent(value) for name, value in content.items()}))


class _Reduced:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments, None

    def __reduce__(self) -> Any:
        return self.reduced


def _meta(module: nn.Module, persistent: Any, easy_dict: Any) -> dict[str, Any]:
    children = OrderedDict((name, persistent(child)) for name, child in module.named_children())
    state = {
        "training": False,
        "_parameters": OrderedDict(module.named_parameters(recurse=False)),
        "_buffers": OrderedDict(module.named_buffers(recurse=False)),
        "_non_persistent_buffers_set": set(),
        "_modules": children,
        "_init_kwargs": easy_dict(resolution=16, gain=np.float64(1.5)),
    }
    return {
        "type": "class",
        "version": 6,
        "module_src": SOURCE,
        "class_name": type(module).__name__,
        "state": state,
    }


# ------------------------------------------------------------------------------- NVIDIA, TensorFlow


def write_tensorflow(path: Path, nets: tuple[nn.Module, nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickle a generator, a discriminator and an averaged generator as networks of dnnlib."""
    with monkeypatch.context() as patch:
        network = _placed(type("Network", (), {}), "Network", _made_up(patch, "dnnlib.tflib.network"))

        def made(name: str, variables: dict[str, Any], components: dict[str, Any]) -> Any:
            found = network()
            found.__dict__ = {
                "version": 4,
                "name": name,
                "static_kwargs": {},
                "components": components,
                "build_module_src": SOURCE,
                "build_func_name": "G_main",
                "variables": list(variables.items()),
            }
            return found

        def generator(net: nn.Module) -> Any:
            state = tensorflow_names(net.state_dict())
            parts = {
                part: made(part, {n.removeprefix(f"{part}/"): t for n, t in state.items() if n.startswith(part)}, {})
                for part in ("mapping", "synthesis")
            }
            return made("G", {"dlatent_avg": state["dlatent_avg"]}, parts)

        g, d, averaged = nets
        discriminator = made("D", tensorflow_discriminator_names(d.state_dict()), {})
        path.write_bytes(pickle.dumps((generator(g), discriminator, generator(averaged))))


def tensorflow_names(state: dict[str, Tensor]) -> dict[str, "np.ndarray[Any, Any]"]:
    found = {"dlatent_avg": state["mapping.w_avg"], "synthesis/4x4/Const/const": state["synthesis.b4.const"][None]}
    numbers = iter(range(100))
    for name, tensor in state.items():
        part, *path, last = name.split(".")
        if part == "mapping" and path:
            found[f"mapping/Dense{path[0].removeprefix('fc')}/{last}"] = _turned(tensor)
        elif last == "noise_const":
            found[f"synthesis/noise{next(numbers)}"] = tensor[None, None]
        elif part == "synthesis" and len(path) > 1 and last != "resample_filter":
            side, layer = path[0].removeprefix("b"), path[1]
            theirs = {"conv0": "Conv0_up", "conv1": "Conv" if side == "4" else "Conv1", "torgb": "ToRGB"}[layer]
            if path[2:] == ["affine"]:
                last, tensor = f"mod_{last}", tensor - 1 if last == "bias" else tensor
            if layer == "conv0" and last == "weight":
                tensor = tensor.flip(2, 3)
            found[f"synthesis/{side}x{side}/{theirs}/{last}"] = _turned(tensor)
    return {name: tensor.numpy() for name, tensor in found.items()}


def tensorflow_discriminator_names(state: dict[str, Tensor]) -> dict[str, "np.ndarray[Any, Any]"]:
    layers = {"conv1": "Conv1_down", "conv0": "Conv0", "skip": "Skip", "fromrgb": "FromRGB", "conv": "Conv"}
    found = {}
    for name, tensor in state.items():
        block, *path, last = name.split(".")
        side = block.removeprefix("b")
        if last != "resample_filter":
            layer = {"fc": "4x4/Dense0", "out": "Output"}.get(path[0]) or f"{side}x{side}/{layers[path[0]]}"
            found[f"{layer}/{last}"] = _turned(tensor).numpy()
    return found


def _turned(tensor: Tensor) -> Tensor:
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


# ------------------------------------------------------------------------------- rosinality


def rosinality_generator(net: StyleGan2GeneratorNet) -> dict[str, Tensor]:
    state = net.state_dict()
    names = rosinality.generator_names(SMALL["resolution"], net.mapping.layers)
    found = {theirs: _with_axes(theirs, state[ours]) for ours, theirs in names.items()}
    filters = [name for name in found if name.startswith("convs.") and int(name.split(".")[1]) % 2 == 0]
    found |= {f"{name.rpartition('.conv.')[0]}.conv.blur.kernel": 4 * TAPS for name in filters if "mod" in name}
    return found | {"to_rgbs.0.upsample.kernel": 4 * TAPS}


def _with_axes(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".noise.weight"):
        return tensor.reshape(1)
    if name.startswith("to_rgb") and tensor.ndim == 1 and "modulation" not in name:
        return tensor[None, :, None, None]
    if name.startswith("noises."):
        return tensor[None, None]
    return tensor[None] if tensor.ndim >= 3 else tensor


def rosinality_discriminator(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    found = {t: state[ours] for ours, t in rosinality.discriminator_names(SMALL["resolution"]).items()}
    return found | {"convs.1.conv2.0.kernel": TAPS, "convs.1.skip.0.kernel": TAPS}


def write_rosinality(path: Path, **content: Any) -> None:
    torch.save({"args": argparse.Namespace(size=16, n_sample=64), **content}, path)


# ------------------------------------------------------------------------------- made-up modules


def _made_up(patch: pytest.MonkeyPatch, name: str) -> ModuleType:
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:i])) or ModuleType(".".join(parts[:i]))
        patch.setitem(sys.modules, ".".join(parts[:i]), module)
    return module


def _placed(found: Any, name: str, module: ModuleType) -> Any:
    found.__module__, found.__name__, found.__qualname__ = module.__name__, name, name
    setattr(module, name, found)
    return found
