"""The names of rosinality's StyleGAN2 files. They differ from NVIDIA's by names and axes of length 1 alone."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ftae.engine.models.foreign.network import State
from ftae.engine.models.foreign.stylegan2 import check_filter
from ftae.engine.models.gans.layers import sides


def generator_names(resolution: int, mapping_layers: int) -> dict[str, str]:
    """NVIDIA's name of each parameter and buffer of the generator, but for filters and ``w_avg`` -> rosinality's."""
    found = {
        f"mapping.fc{i}.{part}": f"style.{i + 1}.{part}" for i in range(mapping_layers) for part in ("weight", "bias")
    }
    found["synthesis.b4.const"] = "input.input"
    for ours, theirs, noise in _layers(resolution):
        found |= _styled(f"synthesis.{ours}", theirs) | {
            f"synthesis.{ours}.bias": f"{theirs}.activate.bias",
            f"synthesis.{ours}.noise_strength": f"{theirs}.noise.weight",
            f"synthesis.{ours}.noise_const": f"noises.noise_{noise}",
        }
    for i, side in enumerate(sides(resolution)):
        ours, theirs = f"synthesis.b{side}.torgb", f"to_rgbs.{i - 1}" if i else "to_rgb1"
        found |= _styled(ours, theirs) | {f"{ours}.bias": f"{theirs}.bias"}
    return found


def _layers(resolution: int) -> Iterator[tuple[str, str, int]]:
    """Each layer with noise, coarse to fine: NVIDIA's name, rosinality's, and the number of its noise."""
    yield "b4.conv1", "conv1", 0
    for i, side in enumerate(sides(resolution)[1:]):
        for conv in (0, 1):
            yield f"b{side}.conv{conv}", f"convs.{2 * i + conv}", 2 * i + conv + 1


def _styled(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.weight": f"{theirs}.conv.weight",
        f"{ours}.affine.weight": f"{theirs}.conv.modulation.weight",
        f"{ours}.affine.bias": f"{theirs}.conv.modulation.bias",
    }


def discriminator_names(resolution: int) -> dict[str, str]:
    """NVIDIA's name of each parameter of the discriminator -> rosinality's."""
    found = {f"b{resolution}.fromrgb.weight": "convs.0.0.weight", f"b{resolution}.fromrgb.bias": "convs.0.1.bias"}
    for i, side in enumerate(reversed(sides(resolution)[1:]), start=1):
        found |= {
            f"b{side}.conv0.weight": f"convs.{i}.conv1.0.weight",
            f"b{side}.conv0.bias": f"convs.{i}.conv1.1.bias",
            f"b{side}.conv1.weight": f"convs.{i}.conv2.1.weight",  # behind a filter
            f"b{side}.conv1.bias": f"convs.{i}.conv2.2.bias",
            f"b{side}.skip.weight": f"convs.{i}.skip.1.weight",
        }
    return found | {
        "b4.conv.weight": "final_conv.0.weight",
        "b4.conv.bias": "final_conv.1.bias",
        **{
            f"b4.{ours}.{part}": f"final_linear.{i}.{part}"
            for i, ours in enumerate(("fc", "out"))
            for part in ("weight", "bias")
        },
    }


def generator_state(theirs: Mapping[str, Tensor]) -> State:
    """A generator in NVIDIA's names; a tensor that has none keeps its own."""
    doublings = sum(name.startswith("to_rgbs.") and name.endswith(".conv.weight") for name in theirs)
    layers = sum(name.startswith("style.") and name.endswith(".weight") for name in theirs)
    return _renamed(theirs, generator_names(4 * 2 ** max(1, doublings), layers))


def discriminator_state(theirs: Mapping[str, Tensor]) -> State:
    """A discriminator in NVIDIA's names; a tensor that has none keeps its own."""
    halvings = sum(name.startswith("convs.") and name.endswith(".skip.1.weight") for name in theirs)
    return _renamed(theirs, discriminator_names(4 * 2 ** max(1, halvings)))


def _renamed(theirs: Mapping[str, Tensor], names: dict[str, str]) -> State:
    ours = {theirs: ours for ours, theirs in names.items()}
    found = {}
    for name, tensor in theirs.items():
        if name.endswith("kernel"):
            check_filter(name, tensor)  # of another scale than NVIDIA's, which the network has by itself
        else:
            found[ours.get(name, name)] = _without_axes(tensor, ours.get(name, ""))
    return found


def _without_axes(tensor: Tensor, name: str) -> Tensor:
    """A tensor in the axes of NVIDIA's layout, which lacks some of length 1."""
    if name.endswith("torgb.bias"):
        return tensor.flatten()
    ndim = {"weight": 4, "const": 3, "noise_const": 2, "noise_strength": 0}.get(name.rpartition(".")[2], tensor.ndim)
    while tensor.ndim > ndim and len(tensor) == 1:
        tensor = tensor[0]
    return tensor
