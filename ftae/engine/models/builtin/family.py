"""The built-in families: networks of ftae, the folders they are saved to, and adapters to twice their resolution."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Autoencoder, Encoding, NoiseFn, StageChain
from ftae.engine.models.builtin.conv_mlp import ChainedNet
from ftae.engine.models.pretrained.model_folder import (
    CONFIG,
    DIFFUSERS,
    DIFFUSERS_CONFIG,
    WEIGHTS,
    diffusers_class,
    pretrained_folder,
    read_json,
    suggested,
)
from ftae.engine.models.pretrained.weights import load_state, save_state
from ftae.engine.models.staged_model import Stage
from ftae.engine.process import check_room, first_line
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import DataSpec, Size, shown, size_of
from ftae.specs.reading.format_versions import FORMAT, migrate

WIDTH = 32  # channels of the residual paths of an adapter
LOGIT_EPSILON = 1e-6  # distance from 0 and 1 at which pixels are clamped before the logit
ADAPTERS = "resolution_adapters"  # an option of the families that are built for one resolution
MAX_ADAPTERS = 8  # in a model folder


class ResolutionAdapters(nn.Module):
    """``inner`` between a stage that halves the images and one that doubles the size of its reconstructions.

    Untrained, both stages only resize: average pooling on the way in, bilinear interpolation on the way out. Beside
    each runs a residual path whose last layer starts at zero. A wrapped network can be wrapped again, which doubles
    its resolution again. Images (B, C, H, W) in [0, 1].

    ``new``: the two stages have no weights from a pretrained model.
    """

    def __init__(self, inner: nn.Module, channels: int, *, new: bool) -> None:
        super().__init__()
        self.inner: Any = inner  # a built-in network, wrapped already or not
        self.number: int = inner.number + 1 if isinstance(inner, ResolutionAdapters) else 0
        self.new = new
        self.shrink = _Shrink(channels)
        self.enlarge = _Enlarge(channels)

    def encode(self, images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        encoding: Encoding = self.inner.encode(self.shrink(images), labels, noise)
        return encoding

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.enlarge(self.inner.decode(latents, labels))
        return images

    def stages(self) -> list[Stage]:
        first, last = self._ends()
        return [first, *self.inner.stages(), last]

    def chain(self) -> StageChain:
        """The chain of ``inner``, which must have one, between the two stages."""
        inner: StageChain = self.inner.chain()
        first, last = self._ends()
        return replace(inner, encoder=(first, *inner.encoder), decoder=(*inner.decoder, last))

    def _ends(self) -> tuple[Stage, Stage]:
        return (
            Stage(f"encoder.outer.{self.number}", "encoder", (self.shrink,), new=self.new, run=self.shrink),
            Stage(f"decoder.outer.{self.number}", "decoder", (self.enlarge,), new=self.new, run=self.enlarge),
        )


class _Shrink(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _residual(channels, nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        shrunk: Tensor = F.avg_pool2d(images, 2) + self.residual(images)
        return shrunk


class _Enlarge(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W).

    The residual is added to the logits of the pixels, so that they stay within [0, 1].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _residual(channels, nn.Conv2d(channels, WIDTH, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        enlarged = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        # In fp32 under bf16 autocast, too: bf16 rounds 1 - LOGIT_EPSILON to 1, whose logit is infinite.
        return torch.sigmoid(torch.logit(enlarged.float(), LOGIT_EPSILON) + self.residual(enlarged))


def _residual(channels: int, first: nn.Conv2d) -> nn.Sequential:
    last = nn.Conv2d(WIDTH, channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), last)


def builtin_family(net_type: type[nn.Module]) -> Callable[[Any, DataSpec, int | None], Autoencoder]:
    """The builder of a family around ``net_type``; the builder raises as ``build_autoencoder``.

    The keyword arguments of the network that have a default are the options of the spec; the others are facts of the
    data: ``channels_in``, ``resolution``, and ``num_classes`` where the network is conditioned on labels.
    """

    def build(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
        """Build the network, new or pretrained, with its adapters."""
        if model.needs_labels and num_classes is None:
            raise FtaeError(
                f"{model.family} needs labels: put the images of each class into a sub-folder of data.train"
            )
        config, weights = _new_config(net_type, model, data, num_classes), None
        if model.pretrained is not None:
            config, weights = _pretrained_config(net_type, config, model, data)
        inner = _build_net(net_type, config, weights, _options_set(model))
        number = max(config.get(ADAPTERS, 0), getattr(model, ADAPTERS, None) or 0)
        net = _adapted(inner, config, weights, number)

        def save(folder: Path) -> None:
            save_state(net, folder)
            saved = {"format": FORMAT} | config | {ADAPTERS: number}
            (folder / CONFIG).write_text(json.dumps(saved, indent=2) + "\n")

        is_chain = isinstance(inner, ChainedNet) and not model.needs_labels  # labels enter at both ends
        return _as_autoencoder(net, inner, config["channels_in"], is_chain=is_chain, save=save)

    return build


def _adapted(net: nn.Module, config: dict[str, Any], weights: Path | None, number: int) -> nn.Module:
    """The network with its weights and ``number`` adapters, of which the pretrained model has some already."""
    kept = config.get(ADAPTERS, 0)
    for _ in range(kept):
        net = ResolutionAdapters(net, config["channels_in"], new=False)
    if weights is not None:
        load_state(net, weights)
    for _ in range(kept, number):
        net = ResolutionAdapters(net, config["channels_in"], new=True)
    return net


def _as_autoencoder(
    net: Any, inner: nn.Module, channels: int, *, is_chain: bool, save: Callable[[Path], None]
) -> Autoencoder:
    """``net``, which is ``inner`` with its adapters; ``inner`` has what only some networks have."""
    chain = net.chain() if is_chain else None
    coder = net if chain is None else chain  # ``net`` would build the chain anew for every batch
    return Autoencoder(
        net,
        net.stages(),
        image_range=getattr(inner, "image_range", (0.0, 1.0)),
        channels=channels,
        encode=coder.encode,
        decode=getattr(coder, "decode", None),
        save=save,
        chain=chain,
        truncate=getattr(inner, "truncated", None),
        **{name: getattr(inner, name, None) for name in ("prior", "run", "reverse", "noise_dim")},
    )


def _new_config(net_type: type[nn.Module], model: Any, data: DataSpec, num_classes: int | None) -> dict[str, Any]:
    """The configuration of a new model. Its resolution is the one between the adapters."""
    chosen = _options_set(model)
    options = {name: chosen.get(name, default) for name, default in _defaults(net_type).items()}
    adapters = getattr(model, ADAPTERS, None) or 0
    if any(side % 2**adapters for side in data.size):
        raise FtaeError(
            f"data.resolution must be a multiple of {2**adapters} (2**resolution_adapters), "
            f"got {shown(data.resolution)}"
        )
    inner = _times(data.resolution, 1 / 2**adapters)
    known = {"channels_in": data.channels, "resolution": inner, "num_classes": num_classes}
    return {"family": model.family, "options": options, ADAPTERS: adapters} | {f: known[f] for f in _facts(net_type)}


def _pretrained_config(
    net_type: type[nn.Module], wanted: dict[str, Any], model: Any, data: DataSpec
) -> tuple[dict[str, Any], Path]:
    """The configuration in the folder of the pretrained model, and the file with its weights.

    Raises:
        FtaeError: the model is not there, or differs from ``wanted``.
    """
    saved, weights = _saved_config(net_type, model.family, model.pretrained)
    chosen = _options_set(model)
    saved["options"] |= {name: value for name, value in chosen.items() if name in model.revisable}
    for name, value in chosen.items():
        if saved["options"][name] != value:
            raise FtaeError(
                f"model.{name} is {value}, but {model.pretrained} was built with {saved['options'][name]}; leave it out"
            )
    if saved.get("num_classes") != wanted.get("num_classes"):
        raise FtaeError(
            f"{model.pretrained} is conditioned on {saved['num_classes']} classes, "
            f"the data has {wanted['num_classes']}; name data with the same classes"
        )
    if ADAPTERS in type(model).model_fields:
        _check_resolution(saved, model, data)
        return saved, weights
    if not model.takes_noise:
        return saved | {"resolution": data.resolution}, weights  # fully convolutional
    if saved["resolution"] != data.resolution:
        raise FtaeError(
            f"{model.pretrained} makes images of {shown(saved['resolution'])} pixels a side, "
            f"got data.resolution {shown(data.resolution)}"
        )
    return saved, weights


def _check_resolution(saved: dict[str, Any], model: Any, data: DataSpec) -> None:
    """Each adapter, of which the pretrained model may have some, doubles the resolution of the network inside."""
    kept, inner = saved.get(ADAPTERS, 0), saved["resolution"]
    adapters = kept if model.resolution_adapters is None else model.resolution_adapters
    if adapters < kept:
        raise FtaeError(
            f"model.resolution_adapters is {adapters}, but {model.pretrained} has {kept}; leave it out to keep them"
        )
    taken = _times(inner, 2**adapters)
    if taken != data.resolution:
        fitting = [number for number in range(kept, MAX_ADAPTERS + 1) if _times(inner, 2**number) == data.resolution]
        raise FtaeError(
            f"{model.pretrained} with {adapters} resolution adapters takes images of {shown(taken)} pixels a side, "
            f"got data.resolution {shown(data.resolution)}; each of model.resolution_adapters doubles the resolution"
            + (f", and {fitting[0]} of them fit" if fitting else "")
        )


def _times(resolution: int | Size, factor: float) -> int | Size:
    """The resolution of images that are ``factor`` times as large."""
    height, width = (round(side * factor) for side in size_of(resolution))
    return height if isinstance(resolution, int) else (height, width)


def _options_set(model: Any) -> dict[str, Any]:
    """The options of the network that the spec sets."""
    options: dict[str, Any] = model.model_dump(exclude={"family", "pretrained", ADAPTERS}, exclude_none=True)
    return options


def _parameters(net_type: type[nn.Module]) -> list[inspect.Parameter]:
    return list(inspect.signature(net_type).parameters.values())


def _defaults(net_type: type[nn.Module]) -> dict[str, Any]:
    return {p.name: p.default for p in _parameters(net_type) if p.default is not p.empty}


def _facts(net_type: type[nn.Module]) -> list[str]:
    return [p.name for p in _parameters(net_type) if p.default is p.empty]


def _saved_config(net_type: type[nn.Module], family: str, pretrained: str) -> tuple[dict[str, Any], Path]:
    folder = pretrained_folder(pretrained)
    if folder is None or not (folder / CONFIG).is_file():
        raise FtaeError(
            f"model.pretrained: {pretrained!r} is not a folder with a {family} (no {CONFIG}); "
            f"name a folder that ftae train or ftae export wrote{_hint(pretrained)}"
        )
    config = migrate(read_json(folder / CONFIG), "model_folder", f"model.pretrained: {folder / CONFIG}")
    if (found := config.get("family")) != family:
        raise FtaeError(f"model.pretrained: {pretrained!r} holds a {found}, not a {family}")
    numbers: dict[str, Any] = {fact: config.get(fact) for fact in _facts(net_type)} | {
        ADAPTERS: config.get(ADAPTERS, 0)
    }
    wrong = [name for name, number in numbers.items() if not _is_number(number, name)]
    if wrong or numbers[ADAPTERS] > MAX_ADAPTERS or not isinstance(config.get("options"), dict):
        reason = f"{wrong[0]} is {numbers[wrong[0]]!r}" if wrong else f"its options or {ADAPTERS} describe no model"
        raise FtaeError(f"model.pretrained: {folder / CONFIG} is damaged: {reason}")
    if isinstance(config.get("resolution"), list):
        config["resolution"] = tuple(config["resolution"])
    config["options"] = _defaults(net_type) | config["options"]
    return config, folder / WEIGHTS


def _is_number(value: Any, name: str) -> bool:
    """Whether it is a number from 0 on; the resolution may be two, height and width."""
    if name == "resolution" and isinstance(value, list) and len(value) == 2:
        return all(_is_number(side, "side") for side in value)
    return isinstance(value, int) and value >= 0


def _hint(pretrained: str) -> str:
    """The end of a message: which family the folder holds instead, or a path that may have been meant."""
    if (file := Path(pretrained).expanduser() / DIFFUSERS_CONFIG).is_file():
        found = diffusers_class(file)
        family = next((family for family, name in DIFFUSERS.items() if name == found), None)
        return "" if family is None else f", or set model.family to {family}, which this one is"
    return suggested(Path(pretrained).expanduser())


def _build_net(
    net_type: type[nn.Module], config: dict[str, Any], weights: Path | None, chosen: dict[str, Any]
) -> nn.Module:
    """The network of ``config``. ``weights``: the file its weights will be read from; ``chosen``: for messages."""
    build = partial(net_type, **config["options"], **{fact: config[fact] for fact in _facts(net_type)})
    try:
        check_room(build, chosen)
        return build()
    except FtaeError:
        raise
    except Exception as error:
        if weights is None:
            raise
        # A damaged file holds values that ftae never wrote.
        file = weights.with_name(CONFIG)
        raise FtaeError(f"model.pretrained: {file} is damaged: it describes no model ({first_line(error)})") from error
