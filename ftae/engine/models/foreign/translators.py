"""The generators of CycleGAN and Pix2Pix, in the names of their authors' PyTorch files."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ftae.engine.models.builtin.translators import ResnetTranslatorNet, UnetTranslatorNet
from ftae.engine.models.foreign.network import Network, State
from ftae.engine.models.weights import fill
from ftae.errors import FtaeError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # in files of PyTorch before 0.4
_FIRST_BLOCK = 10  # of the residual ones, in the list of all layers


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    return f"model.{_FIRST_BLOCK}.conv_block.1.weight" in state


def resnet(state: Mapping[str, Tensor]) -> Network:
    """The residual generator, with or without dropout, which ftae's leaves out.

    Raises:
        FtaeError: it is normalised by batch, or differs from ftae's.
    """
    _check_norm(state, "model.2")
    blocks = len({name.split(".")[1] for name in state if re.match(r"model\.\d+\.conv_block\.", name)})
    options = {"channels": len(state["model.1.weight"]), "blocks": blocks}
    facts = {"channels_in": state["model.1.weight"].shape[1], "resolution": 256}
    second = 6 if f"model.{_FIRST_BLOCK}.conv_block.6.weight" in state else 5  # behind a dropout
    names = {"stem.0": "model.1", "down.0.0": "model.4", "down.1.0": "model.7"}
    for i in range(blocks):
        theirs = f"model.{_FIRST_BLOCK + i}.conv_block"
        names |= {f"blocks.{i}.path.0.0": f"{theirs}.1", f"blocks.{i}.path.1": f"{theirs}.{second}"}
    after = _FIRST_BLOCK + blocks
    names |= {"up.0.0": f"model.{after}", "up.1.0": f"model.{after + 3}", "out.0": f"model.{after + 7}"}
    found = Network.new(ResnetTranslatorNet, options, facts)
    fill(found.net, _renamed(state, names), "its generator")
    return found


def is_unet(state: Mapping[str, Tensor]) -> bool:
    return "model.model.1.model.1.weight" in state


def unet(state: Mapping[str, Tensor]) -> Network:
    """The U-Net, without its dropout.

    Where it is normalised by batch, as the published ones are, it becomes one by instance with the same factors and
    offsets: what their authors' test computes, whose batches are single images in training mode.

    Raises:
        FtaeError: it differs from ftae's.
    """
    is_by_batch = "model.model.1.model.2.weight" in state
    convolutions = [name for name in state if re.fullmatch(r"model\.model\.1(\.model\.3)*\.model\.1\.weight", name)]
    depth = 1 + len(convolutions)
    options = {"channels": len(state["model.model.0.weight"]), "depth": depth, "dropout": 0.0}
    facts = {"channels_in": state["model.model.0.weight"].shape[1], "resolution": max(256, 2**depth)}
    found = Network.new(UnetTranslatorNet, options, facts)
    ours = _renamed(state, dict([*_unet_names(depth), *(_unet_norms(depth) if is_by_batch else ())]))
    for i in range(1, depth):  # theirs concatenates the features of the encoder first, ftae's last
        name = f"up.{i}.1.weight"
        if name in ours:
            ours[name] = torch.cat(ours[name].chunk(2)[::-1])
    missing = _zero_biases(found.net) if is_by_batch else _plain_norms(found.net)
    fill(found.net, missing | ours, "its generator")
    return found


def _unet_names(depth: int) -> Iterator[tuple[str, str]]:
    yield "down.0.0", "model.model.0"
    yield f"up.{depth - 1}.1", "model.model.3"
    for level in range(1, depth):
        theirs = "model.model.1" + ".model.3" * (level - 1)
        yield f"down.{level}.1", f"{theirs}.model.1"
        yield f"up.{depth - 1 - level}.1", f"{theirs}.model.{3 if level == depth - 1 else 5}"


def _unet_norms(depth: int) -> Iterator[tuple[str, str]]:
    """The innermost level has none on its way down."""
    for level in range(1, depth):
        theirs = "model.model.1" + ".model.3" * (level - 1)
        if level < depth - 1:
            yield f"down.{level}.2", f"{theirs}.model.2"
        yield f"up.{depth - 1 - level}.2", f"{theirs}.model.{4 if level == depth - 1 else 6}"


def _zero_biases(net: nn.Module) -> State:
    """Biases of 0 for ftae's convolutions; in front of a norm by batch, theirs have none."""
    convolutions = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    return {f"{name}.bias": torch.zeros_like(module.bias) for name, module in convolutions if module.bias is not None}


def _plain_norms(net: nn.Module) -> State:
    """Factors of 1 and offsets of 0 for ftae's norms; theirs have none."""
    norms = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.InstanceNorm2d)]
    return {f"{name}.{part}": tensor for name, norm in norms for part, tensor in norm.state_dict().items()}


def _check_norm(state: Mapping[str, Tensor], name: str) -> None:
    if f"{name}.weight" in state:
        raise FtaeError(
            "its residual generator is normalised by batch; that of ftae is by instance, without factors and offsets"
        )


def _renamed(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    ours = {f"{their}.{part}": f"{our}.{part}" for our, their in names.items() for part in ("weight", "bias")}
    return {ours.get(name, name): t for name, t in theirs.items() if not name.endswith(_STATISTICS)}
