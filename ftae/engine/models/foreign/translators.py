"""The generators of CycleGAN and Pix2Pix, in the names of their authors, which are those of ftae's files."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ftae.engine.models.builtin.translators import FIRST_BLOCK, ResnetTranslatorNet, UnetTranslatorNet
from ftae.engine.models.foreign.network import Network, State
from ftae.engine.models.pretrained.weights import fill
from ftae.errors import FtaeError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # in files of PyTorch before 0.4


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    return f"model.{FIRST_BLOCK}.conv_block.1.weight" in state


def resnet(state: Mapping[str, Tensor]) -> Network:
    """The residual generator, with or without dropout, which ftae's leaves out.

    Raises:
        FtaeError: it is normalised by batch, or differs from ftae's.
    """
    if "model.2.weight" in state:
        raise FtaeError(
            "its residual generator is normalised by batch; that of ftae is by instance, without factors and offsets"
        )
    blocks = len({name.split(".")[1] for name in state if re.match(r"model\.\d+\.conv_block\.", name)})
    options = {"channels": len(state["model.1.weight"]), "blocks": blocks}
    facts = {"channels_in": state["model.1.weight"].shape[1], "resolution": 256}
    found = Network.new(ResnetTranslatorNet, options, facts)
    second = 5 if f"model.{FIRST_BLOCK}.conv_block.5.weight" in state else 6  # behind a dropout
    moved = {name.replace(f".conv_block.{second}.", ".conv_block.5."): tensor for name, tensor in _weights(state)}
    fill(found.net, moved, "its generator")
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
    convolutions = [name for name in state if re.fullmatch(r"model\.model\.1(\.model\.3)*\.model\.1\.weight", name)]
    depth = 1 + len(convolutions)
    options = {"channels": len(state["model.model.0.weight"]), "depth": depth, "dropout": 0.0}
    facts = {"channels_in": state["model.model.0.weight"].shape[1], "resolution": max(256, 2**depth)}
    found = Network.new(UnetTranslatorNet, options, facts)
    assert isinstance(found.net, UnetTranslatorNet)
    is_by_batch = "model.model.1.model.2.weight" in state
    missing = _zero_biases(found.net) if is_by_batch else _plain_norms(found.net)
    fill(found.net, found.net.file_names().to_file(missing) | dict(_weights(state)), "its generator")
    return found


def _zero_biases(net: nn.Module) -> State:
    """Biases of 0 for ftae's convolutions; in front of a norm by batch, theirs have none."""
    convolutions = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    return {f"{name}.bias": torch.zeros_like(module.bias) for name, module in convolutions if module.bias is not None}


def _plain_norms(net: nn.Module) -> State:
    """Factors of 1 and offsets of 0 for ftae's norms; theirs have none."""
    norms = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.InstanceNorm2d)]
    return {f"{name}.{part}": tensor for name, norm in norms for part, tensor in norm.state_dict().items()}


def _weights(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in state.items() if not name.endswith(_STATISTICS))
