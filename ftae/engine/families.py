"""FAMILIES: from a model spec to an ``Autoencoder``. A family is one entry of the table at the foot."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftae.engine.autoencoder import Autoencoder, Group, Posterior, Stage
from ftae.engine.networks import ConvAeNet, ConvVaeNet, MlpVaeNet
from ftae.errors import FtaeError
from ftae.lookup import import_attr
from ftae.specs.data import DataSpec
from ftae.specs.models import AnyModel, CustomModel, CustomStages, DiffusersModel

CONFIG, WEIGHTS = "ftae_model.json", "model.safetensors"


def build_autoencoder(model: AnyModel, data: DataSpec) -> Autoencoder:
    """The model of a spec, with its pretrained weights, on the CPU in fp32.

    Raises:
        FtaeError: the weights cannot be found or do not fit.
    """
    autoencoder = _custom(model) if isinstance(model, CustomModel) else FAMILIES[model.family](model, data)
    if autoencoder.channels not in (None, data.channels):
        raise FtaeError(
            f"the model takes {autoencoder.channels} image channels, but data.color {data.color!r} gives "
            f"{data.channels}; set data.color to {'grey' if autoencoder.channels == 1 else 'rgb'}"
        )
    return autoencoder


def pretrained_folder(pretrained: str) -> Path | None:
    """The local folder that holds the model; None if ``pretrained`` is not a local path.

    A folder written by ``ftae train`` or ``ftae export`` holds it in its ``model/``.
    """
    folder = Path(pretrained).expanduser()
    if (folder / "model").is_dir():
        folder = folder / "model"
    return folder if folder.is_dir() else None


# ------------------------------------------------------------------------------------ own networks


def _own(net_type: type[MlpVaeNet] | type[ConvAeNet] | type[ConvVaeNet]) -> Callable[[Any, DataSpec], Autoencoder]:
    def build(model: Any, data: DataSpec) -> Autoencoder:
        given = model.model_dump(exclude={"family", "pretrained"}, exclude_none=True)
        options = {name: given.get(name, default) for name, default in _defaults(net_type).items()}
        facts = {"channels_in": data.channels, "resolution": data.resolution}
        weights: Path | None = None
        if model.pretrained is not None:
            config, weights = _own_files(model.family, model.pretrained)
            _same(config, given, model.pretrained)
            # A fully convolutional model takes any resolution; the others are built for one.
            if net_type is not ConvAeNet and config["resolution"] != data.resolution:
                raise FtaeError(
                    f"{model.pretrained} takes images of {config['resolution']} pixels a side, "
                    f"got data.resolution {data.resolution}"
                )
            options, facts["channels_in"] = config["options"], config["channels_in"]
        net = net_type(**facts, **options)
        if weights is not None:
            _load_state(net, weights)

        def save(folder: Path) -> None:
            config = {"family": model.family, "options": options, **facts}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            save_file({k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}, folder / WEIGHTS)

        return Autoencoder(
            net,
            net.stages(),
            image_range=(0.0, 1.0),
            channels=facts["channels_in"],
            encode=net.encode,
            decode=net.decode,
            save=save,
        )

    return build


def _defaults(net_type: type[nn.Module]) -> dict[str, int]:
    parameters = inspect.signature(net_type).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _own_files(family: str, pretrained: str) -> tuple[dict[str, Any], Path]:
    folder = pretrained_folder(pretrained)
    if folder is None or not (folder / CONFIG).is_file():
        raise FtaeError(
            f"model.pretrained: {pretrained!r} is not a folder with a {family} (no {CONFIG}); "
            "name a folder that ftae train or ftae export wrote"
        )
    config = json.loads((folder / CONFIG).read_text())
    if config["family"] != family:
        raise FtaeError(f"model.pretrained: {pretrained!r} holds a {config['family']}, not a {family}")
    return config, folder / WEIGHTS


def _same(config: dict[str, Any], given: dict[str, Any], pretrained: str) -> None:
    for name, value in given.items():
        if config["options"][name] != value:
            raise FtaeError(
                f"model.{name} is {value}, but {pretrained} was built with {config['options'][name]}; leave it out"
            )


# --------------------------------------------------------------------------------------- diffusers


def _load_diffusers(model: DiffusersModel, class_name: str) -> Any:
    import diffusers

    folder = pretrained_folder(model.pretrained)
    source = str(folder) if folder is not None else model.pretrained
    if folder is None and (model.pretrained.count("/") != 1 or model.pretrained.startswith((".", "/", "~"))):
        raise FtaeError(
            f"model.pretrained: {model.pretrained!r} is neither an existing folder nor a hub id (owner/name)"
        )
    try:
        net, info = getattr(diffusers, class_name).from_pretrained(
            source,
            subfolder=model.subfolder,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise FtaeError(f"model.pretrained: {class_name} cannot be loaded from {source!r}: {error}") from error
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise FtaeError(
            f"model.pretrained: {source!r} lacks weights of {class_name}: {', '.join(map(str, absent[:5]))}"
        )
    return net


def _autoencoder_kl(model: Any, data: DataSpec) -> Autoencoder:
    net = _load_diffusers(model, "AutoencoderKL")
    factor = 2 ** (len(net.config.block_out_channels) - 1)
    if data.resolution % factor:
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {data.resolution}")

    def encode(images: Tensor) -> Posterior:
        distribution = net.encode(images).latent_dist
        return Posterior(distribution.mean, distribution.logvar)

    return Autoencoder(
        net,
        _kl_stages(net),
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=encode,
        decode=lambda latents: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _kl_stages(net: Any) -> list[Stage]:
    """AutoencoderKL in data-flow order: 16 stages for Stable Diffusion's configuration."""
    encoder, decoder = net.encoder, net.decoder
    stages = [
        Stage("encoder.conv_in", "encoder", (encoder.conv_in,)),
        *(Stage(f"encoder.down_blocks.{i}", "encoder", (block,)) for i, block in enumerate(encoder.down_blocks)),
        Stage("encoder.mid_block", "encoder", (encoder.mid_block,)),
        Stage("encoder.conv_out", "encoder", (encoder.conv_norm_out, encoder.conv_out)),
    ]
    for name in ("quant_conv", "post_quant_conv"):
        if getattr(net, name) is not None:
            stages.append(Stage(name, "bottleneck", (getattr(net, name),)))
    return [
        *stages,
        Stage("decoder.conv_in", "decoder", (decoder.conv_in,)),
        Stage("decoder.mid_block", "decoder", (decoder.mid_block,)),
        *(Stage(f"decoder.up_blocks.{i}", "decoder", (block,)) for i, block in enumerate(decoder.up_blocks)),
        Stage("decoder.conv_out", "decoder", (decoder.conv_norm_out, decoder.conv_out)),
    ]


def _autoencoder_tiny(model: Any, data: DataSpec) -> Autoencoder:
    net = _load_diffusers(model, "AutoencoderTiny")
    factor = 2 ** (len(net.config.encoder_block_out_channels) - 1)
    if data.resolution % factor:
        raise FtaeError(f"data.resolution must be a multiple of {factor} for {model.pretrained}, got {data.resolution}")
    # forward() rounds the latents to 8 bit, which gives the encoder no gradient: encode and decode do not.
    return Autoencoder(
        net,
        [*_tiny_stages(net.encoder.layers, "encoder"), *_tiny_stages(net.decoder.layers, "decoder")],
        image_range=(-1.0, 1.0),
        channels=net.config.in_channels,
        encode=lambda images: net.encode(images).latents,
        decode=lambda latents: net.decode(latents).sample,
        save=lambda folder: net.save_pretrained(folder),
    )


def _tiny_stages(layers: nn.Sequential, group: Group) -> list[Stage]:
    """One stage per resolution: a new one begins at a strided convolution, or behind an upsampling's.

    The last convolution is a stage of its own.
    """
    groups: list[list[nn.Module]] = [[]]
    for i, layer in enumerate(layers):
        strided = isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)
        last = i == len(layers) - 1
        behind_upsampling = i >= 2 and isinstance(layers[i - 2], nn.Upsample)
        entered = group == "decoder" and i == 2
        if groups[-1] and (strided or last or behind_upsampling or entered):
            groups.append([])
        groups[-1].append(layer)
    return [Stage(f"{group}.{i}", group, tuple(modules)) for i, modules in enumerate(groups)]


# ------------------------------------------------------------------------------------ user modules


def _custom(model: CustomModel) -> Autoencoder:
    net = import_attr(model.family)(**model.kwargs)
    if not isinstance(net, nn.Module):
        raise FtaeError(f"{model.family} must return a torch.nn.Module, got {type(net).__name__}")
    if model.pretrained is not None:
        _load_state(net, Path(model.pretrained).expanduser())
    whole = not (hasattr(net, "encode") and hasattr(net, "decode"))
    stages = _named_stages(net, model.stages) if model.stages else _stages_in_order(net)
    _covers_every_parameter(net, stages, model.family)
    methods: Any = net  # a module's attributes are not typed

    def encode(images: Tensor) -> Any:
        encoded = images if whole else methods.encode(images)
        return Posterior(*encoded) if isinstance(encoded, tuple) and len(encoded) == 2 else encoded

    def decode(latents: Tensor) -> Any:
        return net(latents) if whole else methods.decode(latents)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().clone().contiguous() for k, v in net.state_dict().items()}, folder / WEIGHTS)

    return Autoencoder(
        net,
        stages,
        image_range=(0.0, 1.0) if model.image_range == "0..1" else (-1.0, 1.0),
        channels=None,
        encode=encode,
        decode=decode,
        save=save,
    )


def _load_state(net: nn.Module, path: Path) -> None:
    if path.is_dir():
        path = (pretrained_folder(str(path)) or path) / WEIGHTS
    if not path.is_file():
        raise FtaeError(f"model.pretrained: {path} does not exist; name a .safetensors or .pt state dict")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        net.load_state_dict(state)
    except Exception as error:  # whatever a broken or foreign file makes the readers raise
        raise FtaeError(f"model.pretrained: {path} does not hold a state dict of the model: {error}") from error


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


FAMILIES: dict[str, Callable[[Any, DataSpec], Autoencoder]] = {
    "mlp_vae": _own(MlpVaeNet),
    "conv_ae": _own(ConvAeNet),
    "conv_vae": _own(ConvVaeNet),
    "autoencoder_kl": _autoencoder_kl,
    "autoencoder_tiny": _autoencoder_tiny,
}
