"""A user's own module as an autoencoder."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ftae.engine.models.autoencoder import Autoencoder, Encoding, NoiseFn
from ftae.engine.models.pretrained.weights import load_state, save_state
from ftae.engine.models.returned import encoding_in, images_in, kind_of
from ftae.engine.models.staged_model import Group, Stage
from ftae.errors import FtaeError, ModelRaised, one_message
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.models import CustomStages
from ftae.user_code import import_attr
from ftae.wording import did_you_mean


def custom_family(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
    """Build the module that ``model.family`` names, load its weights, and divide it into stages.

    Raises:
        FtaeError: the module cannot be imported or built, whatever it raises; ftae cannot train it; its weights do
            not fit; or its stages do not hold every parameter exactly once.
    """
    build = import_attr(model.family)
    if isinstance(build, nn.Module):
        raise FtaeError(f"{model.family} is a module that is built already; name the class or function that builds it")
    options = f" with model.kwargs {model.kwargs}" if model.kwargs else ""
    with one_message(f"{model.family} cannot be built{options}"):
        net = build(**model.kwargs)
    if not isinstance(net, nn.Module):
        raise FtaeError(f"{model.family} must return a torch.nn.Module, got {kind_of(net)}")
    with one_message(f"{model.family} cannot be used"):
        net.eval()
        _can_be_trained(net, model.family)
        if model.pretrained is not None:
            load_state(net, Path(model.pretrained).expanduser())
        stages = _named_stages(net, model.stages) if model.stages else _stages_in_order(net)
        _covers_every_parameter(net, stages, model.family)
        ways = _ways(net, model.family)

    def encode(images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        images = images.clone()  # the module may write into them
        if ways is None:
            return Encoding(images)
        with _running(f"{ways[0]} of {model.family}"):
            return encoding_in(getattr(net, ways[0])(images), noise)

    def decode(latents: Tensor, labels: Tensor | None) -> Tensor:
        name = "forward" if ways is None else ways[1]
        with _running(f"{name} of {model.family}"):
            result = net(latents) if ways is None else getattr(net, name)(latents)
        return images_in(result, data.shape, name)

    return Autoencoder(
        net,
        stages,
        image_range=(0.0, 1.0) if model.image_range == "0..1" else (-1.0, 1.0),
        channels=None,
        encode=encode,
        decode=decode,
        save=lambda folder: save_state(net, folder),
    )


def _running(what: str) -> AbstractContextManager[None]:
    """Make one message of what the module raises inside; file errors pass, since a trial may be retried for them."""
    return one_message(f"{what} raised", kind=ModelRaised, passing=(OSError, SystemExit))


# --------------------------------------------------------------------------------------------- requirements


def _ways(net: nn.Module, family: str) -> tuple[str, str] | None:
    """The names of what encodes and what decodes: methods, or children where there is no ``forward`` that joins them.

    None for a module that has ``forward`` alone.

    Raises:
        FtaeError: it has none of these.
    """
    missing = [name for name in ("encode", "decode") if not callable(getattr(net, name, None))]
    if not missing:
        return "encode", "decode"
    if type(net).forward is not nn.Module.forward or "forward" in vars(net):
        return None
    if all(callable(getattr(net, name, None)) for name in ("encoder", "decoder")):
        return "encoder", "decoder"
    raise FtaeError(
        f"{family} must have encode and decode, or forward, or the children encoder and decoder; "
        f"it has no {' and no '.join(missing)}"
    )


def _can_be_trained(net: nn.Module, family: str) -> None:
    """Refuse weights that ftae does not train, and state that it cannot save.

    Raises:
        FtaeError: names the first tensor that is refused, and the reason.
    """
    parameters = dict(net.named_parameters())
    if not parameters:
        raise FtaeError(f"{family} has no parameters: there is nothing to train")
    for name, tensor in {**parameters, **dict(net.named_buffers())}.items():
        if fault := _fault(tensor, is_parameter=name in parameters):
            raise FtaeError(f"{family}: {name} {fault}")
    for name, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            raise FtaeError(
                f"{family}: its state_dict holds {name}, {kind_of(value)}; ftae saves tensors alone: "
                "register a buffer instead of get_extra_state"
            )


def _fault(tensor: Tensor, *, is_parameter: bool) -> str | None:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return "is not initialised: give the lazy layer its size, or run an image through it before it is returned"
    if tensor.device.type != "cpu":
        where = "has no values (it is on the meta device)" if tensor.is_meta else f"is on {tensor.device}"
        return f"{where}: the module must be returned on the CPU, with its values; ftae moves it"
    if tensor.layout != torch.strided:
        return f"is a {str(tensor.layout).removeprefix('torch.')} tensor; ftae takes dense ones"
    if tensor.is_quantized or tensor.dtype == torch.complex128:
        return f"is {str(tensor.dtype).removeprefix('torch.')}, which safetensors cannot hold"
    if is_parameter and tensor.dtype != torch.float32:
        return f"is {str(tensor.dtype).removeprefix('torch.')}; ftae trains float32: call float() on the module"
    return None


# --------------------------------------------------------------------------------------------------- stages


def _named_stages(net: nn.Module, names: CustomStages) -> list[Stage]:
    parts: dict[str, nn.Module] = {name: _as_module(p) for name, p in net.named_parameters()} | dict(
        net.named_modules()
    )
    groups: list[tuple[Group, tuple[str, ...]]] = [
        ("encoder", names.encoder),
        ("bottleneck", names.bottleneck),
        ("decoder", names.decoder),
    ]
    stages = []
    for group, members in groups:
        for name in members:
            if not name or name not in parts:
                raise FtaeError(
                    f"model.stages.{group}: the model has no sub-module or parameter {name!r}"
                    f"{did_you_mean(name, parts)}"
                )
            stages.append(Stage(name, group, (parts[name],)))
    return stages


def _stages_in_order(net: nn.Module) -> list[Stage]:
    """One stage a child, in order; ``encoder`` and ``decoder`` are opened, children between them are the bottleneck.

    A parameter outside of all children is a stage before them. A module without parameters, such as dropout, belongs
    to the stage before it and is frozen with that.
    """
    group: Group = "encoder"
    stages = [Stage(name, group, (_as_module(p),)) for name, p in net.named_parameters(recurse=False)]
    first = len(stages)
    leading: tuple[nn.Module, ...] = ()
    for name, child in net.named_children():
        if name.startswith("dec"):
            group = "decoder"
        elif not name.startswith("enc") and group == "encoder" and len(stages) > first:
            group = "bottleneck"
        for stage_name, module in _opened(name, child):
            if any(True for _ in module.parameters()):
                stages.append(Stage(stage_name, group, (*leading, module)))
                leading = ()
            elif stages[first:] and stages[-1].group == group:
                stages[-1] = replace(stages[-1], modules=(*stages[-1].modules, module))
            else:
                leading = (*leading, module)
    return stages


def _opened(name: str, child: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parameters and children of ``encoder`` and ``decoder``; any other child whole."""
    children = [(f"{name}.{n}", c) for n, c in child.named_children()] if name in ("encoder", "decoder") else []
    parameters = [(f"{name}.{n}", _as_module(p)) for n, p in child.named_parameters(recurse=False)]
    return [*parameters, *children] if children else [(name, child)]


def _as_module(parameter: nn.Parameter) -> nn.Module:
    """A module that holds one parameter."""
    return nn.ParameterList([parameter])


def _covers_every_parameter(net: nn.Module, stages: list[Stage], family: str) -> None:
    holders: dict[int, list[str]] = {id(p): [] for p in net.parameters()}
    for stage in stages:
        for parameter in stage.parameters():
            holders[id(parameter)].append(stage.name)
    for name, parameter in net.named_parameters():
        held = holders[id(parameter)]
        if len(held) != 1:
            several = f"is in {' and '.join(held)}: only one may hold it"
            fault = several if held else "is in none: name it, or the sub-module that holds it"
            raise FtaeError(f"model.stages: every parameter of {family} must be in exactly one stage; {name} {fault}")
