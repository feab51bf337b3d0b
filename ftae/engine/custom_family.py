"""A user's own module as an autoencoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder, Draw, Encoding, Group, Posterior, Stage
from ftae.engine.pretrained import load_state, save_state
from ftae.errors import FtaeError
from ftae.lookup import import_attr
from ftae.specs.models import CustomModel, CustomStages


def custom_family(model: CustomModel) -> Autoencoder:
    """The module that ``model.family`` names, built, loaded and cut into stages.

    Raises:
        FtaeError: it cannot be imported or built, its weights do not fit, or its stages do not hold
            every parameter exactly once.
    """
    build = import_attr(model.family)
    try:
        net = build(**model.kwargs)
    except Exception as error:  # the user's own code
        raise FtaeError(f"{model.family} cannot be built with model.kwargs {model.kwargs}: {error}") from error
    if not isinstance(net, nn.Module):
        raise FtaeError(f"{model.family} must return a torch.nn.Module, got {type(net).__name__}")
    if model.pretrained is not None:
        load_state(net, Path(model.pretrained).expanduser())
    whole = not (hasattr(net, "encode") and hasattr(net, "decode"))
    stages = _named_stages(net, model.stages) if model.stages else _stages_in_order(net)
    _covers_every_parameter(net, stages, model.family)
    methods: Any = net  # a module's attributes are not typed

    def encode(images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        images = images.clone()  # it may write into them
        encoded = images if whole else methods.encode(images)
        is_pair = isinstance(encoded, tuple) and len(encoded) == 2
        return Encoding.of(Posterior(*encoded), draw) if is_pair else Encoding(encoded)

    def decode(latents: Tensor, labels: Tensor | None) -> Any:
        return net(latents) if whole else methods.decode(latents)

    return Autoencoder(
        net,
        stages,
        image_range=(0.0, 1.0) if model.image_range == "0..1" else (-1.0, 1.0),
        channels=None,
        encode=encode,
        decode=decode,
        save=lambda folder: save_state(net, folder),
    )


def _named_stages(net: nn.Module, names: CustomStages) -> list[Stage]:
    modules = dict(net.named_modules())
    groups: list[tuple[Group, tuple[str, ...]]] = [
        ("encoder", names.encoder),
        ("bottleneck", names.bottleneck),
        ("decoder", names.decoder),
    ]
    stages = []
    for group, members in groups:
        for name in members:
            if name not in modules:
                raise FtaeError(f"model.stages.{group}: the model has no sub-module {name!r}")
            stages.append(Stage(name, group, (modules[name],)))
    return stages


def _stages_in_order(net: nn.Module) -> list[Stage]:
    """The children in order; ``encoder`` and ``decoder`` are opened, what lies between is the bottleneck.

    A module without parameters (dropout, say) belongs to the stage before it, so that it is frozen with it.
    """
    stages: list[Stage] = []
    group: Group = "encoder"
    leading: tuple[nn.Module, ...] = ()
    for name, child in net.named_children():
        if name.startswith("dec"):
            group = "decoder"
        elif not name.startswith("enc") and group == "encoder" and stages:
            group = "bottleneck"
        opened = [(f"{name}.{n}", c) for n, c in child.named_children()] if name in ("encoder", "decoder") else []
        for stage_name, module in opened or [(name, child)]:
            if any(True for _ in module.parameters()):
                stages.append(Stage(stage_name, group, (*leading, module)))
                leading = ()
            elif stages and stages[-1].group == group:
                stages[-1] = replace(stages[-1], modules=(*stages[-1].modules, module))
            else:
                leading = (*leading, module)
    return stages


def _covers_every_parameter(net: nn.Module, stages: list[Stage], family: str) -> None:
    counts = {id(p): 0 for p in net.parameters()}
    for stage in stages:
        for parameter in stage.parameters():
            counts[id(parameter)] += 1
    wrong = [name for name, p in net.named_parameters() if counts[id(p)] != 1]
    if wrong:
        raise FtaeError(
            f"model.stages: every parameter of {family} must belong to exactly one stage; "
            f"not so: {', '.join(wrong[:5])}"
        )
