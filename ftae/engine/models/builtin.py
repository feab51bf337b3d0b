"""The built-in families: networks of ours, their folders, and adapters to twice the resolution."""

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

from ftae.engine.models.autoencoder import Autoencoder, Draw, Encoding, Line, Stage
from ftae.engine.models.conv_mlp import Chain
from ftae.engine.models.model_folder import (
    CONFIG,
    DIFFUSERS,
    DIFFUSERS_CONFIG,
    WEIGHTS,
    diffusers_class,
    pretrained_folder,
    read_json,
    suggested,
)
from ftae.engine.models.weights import load_state, save_state
from ftae.engine.process import check_room, first_line
from ftae.errors import FtaeError
from ftae.specs.finetune.data import DataSpec

WIDTH = 32  # channels of the residual paths

NEAREST = 1e-6  # how near 0 and 1 a logit is taken


class ResolutionAdapters(nn.Module):
    """``inner`` behind a stage that halves the images, and before one that doubles its reconstructions.

    Untrained it is resizing: average pooling on the way in, bilinear on the way out, beside each a residual
    path whose last layer begins at zero. Wrapped again it takes twice of that. Images (B, C, H, W) in [0, 1].

    ``new``: the two stages have no weights from a pretrained model.
    """

    def __init__(self, inner: nn.Module, channels: int, *, new: bool) -> None:
        super().__init__()
        self.inner: Any = inner  # a network, or one with outer stages
        self.number: int = inner.number + 1 if isinstance(inner, ResolutionAdapters) else 0
        self.new = new
        self.shrink = _Shrink(channels)
        self.enlarge = _Enlarge(channels)

    def encode(self, images: Tensor, labels: Tensor | None, draw: Draw | None) -> Encoding:
        encoding: Encoding = self.inner.encode(self.shrink(images), labels, draw)
        return encoding

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.enlarge(self.inner.decode(latents, labels))
        return images

    def stages(self) -> list[Stage]:
        first, last = self._ends()
        return [first, *self.inner.stages(), last]

    def line(self) -> Line:
        """That of ``inner``, which has one, between the new stages."""
        inner: Line = self.inner.line()
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
        # In fp32 also under bf16 autocast, where a logit so near to 1 would be infinite.
        return torch.sigmoid(torch.logit(enlarged.float(), NEAREST) + self.residual(enlarged))


def _residual(channels: int, first: nn.Conv2d) -> nn.Sequential:
    last = nn.Conv2d(WIDTH, channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), last)


OUTER = "resolution_adapters"  # an option of the families that are built for one resolution

MOST_OUTER = 8


def builtin_family(net_type: type[nn.Module]) -> Callable[[Any, DataSpec, int | None], Autoencoder]:
    """What builds an ``Autoencoder`` of one of ftae's networks; it raises as ``build_autoencoder``.

    The network's keyword arguments with a default are the options of its spec; the others are facts of the
    data: ``channels_in``, ``resolution``, and ``num_classes`` where it is conditioned on labels.
    """

    def build(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
        if model.needs_labels and num_classes is None:
            raise FtaeError(
                f"{model.family} needs labels: put the images of each class into a sub-folder of data.train"
            )
        config, weights = _config(net_type, model, data, num_classes), None
        if model.pretrained is not None:
            config, weights = _pretrained_config(net_type, config, model, data)
        net: Any = _built(net_type, config, weights, _given(model))
        has_line = isinstance(net, Chain) and not model.needs_labels  # labels enter at either end
        prior, kept, wanted = getattr(net, "prior", None), config.get(OUTER, 0), getattr(model, OUTER, None)
        for _ in range(kept):
            net = ResolutionAdapters(net, config["channels_in"], new=False)
        if weights is not None:
            load_state(net, weights)
        for _ in range(kept, wanted or 0):
            net = ResolutionAdapters(net, config["channels_in"], new=True)

        def save(folder: Path) -> None:
            save_state(net, folder)
            saved = config | {OUTER: max(kept, wanted or 0)}
            (folder / CONFIG).write_text(json.dumps(saved, indent=2) + "\n")

        line = net.line() if has_line else None
        chain = net if line is None else line  # not put together anew for every batch
        return Autoencoder(
            net,
            net.stages(),
            image_range=(0.0, 1.0),
            channels=config["channels_in"],
            encode=chain.encode,
            decode=chain.decode,
            save=save,
            prior=prior,
            line=line,
        )

    return build


def _config(net_type: type[nn.Module], model: Any, data: DataSpec, num_classes: int | None) -> dict[str, Any]:
    """A new model as its spec and the data have it. Its resolution is that between the outer stages."""
    given = _given(model)
    options = {name: given.get(name, default) for name, default in _defaults(net_type).items()}
    outer = getattr(model, OUTER, None) or 0
    if data.resolution % 2**outer:
        raise FtaeError(
            f"data.resolution must be a multiple of {2**outer} (2**resolution_adapters), got {data.resolution}"
        )
    known = {"channels_in": data.channels, "resolution": data.resolution // 2**outer, "num_classes": num_classes}
    return {"family": model.family, "options": options, OUTER: outer} | {f: known[f] for f in _facts(net_type)}


def _pretrained_config(
    net_type: type[nn.Module], asked: dict[str, Any], model: Any, data: DataSpec
) -> tuple[dict[str, Any], Path]:
    """What the pretrained model was saved with, and its weights.

    Raises:
        FtaeError: it is not there, or is another than what is asked for.
    """
    saved, weights = _own_files(net_type, model.family, model.pretrained)
    given = _given(model)
    saved["options"] |= {name: value for name, value in given.items() if name in model.revisable}
    for name, value in given.items():
        if saved["options"][name] != value:
            raise FtaeError(
                f"model.{name} is {value}, but {model.pretrained} was built with {saved['options'][name]}; leave it out"
            )
    if saved.get("num_classes") != asked.get("num_classes"):
        raise FtaeError(
            f"{model.pretrained} is conditioned on {saved['num_classes']} classes, "
            f"the data has {asked['num_classes']}; name data with the same classes"
        )
    if OUTER in type(model).model_fields:
        _check_resolution(saved, model, data)
        return saved, weights
    return saved | {"resolution": data.resolution}, weights  # fully convolutional


def _check_resolution(saved: dict[str, Any], model: Any, data: DataSpec) -> None:
    """The pretrained model's resolution is doubled by each outer stage, of which it may have some."""
    kept, inner = saved.get(OUTER, 0), saved["resolution"]
    outer = kept if model.resolution_adapters is None else model.resolution_adapters
    if outer < kept:
        raise FtaeError(
            f"model.resolution_adapters is {outer}, but {model.pretrained} has {kept}; leave it out to keep them"
        )
    if inner * 2**outer != data.resolution:
        fitting = [number for number in range(kept, MOST_OUTER + 1) if inner * 2**number == data.resolution]
        raise FtaeError(
            f"{model.pretrained} with {outer} outer stages takes images of {inner * 2**outer} pixels a side, "
            f"got data.resolution {data.resolution}; each of model.resolution_adapters doubles what it takes"
            + (f", and {fitting[0]} of them fit" if fitting else "")
        )


def _given(model: Any) -> dict[str, Any]:
    given: dict[str, Any] = model.model_dump(exclude={"family", "pretrained", OUTER}, exclude_none=True)
    return given


def _parameters(net_type: type[nn.Module]) -> list[inspect.Parameter]:
    return list(inspect.signature(net_type).parameters.values())


def _defaults(net_type: type[nn.Module]) -> dict[str, Any]:
    return {p.name: p.default for p in _parameters(net_type) if p.default is not p.empty}


def _facts(net_type: type[nn.Module]) -> list[str]:
    return [p.name for p in _parameters(net_type) if p.default is p.empty]


def _own_files(net_type: type[nn.Module], family: str, pretrained: str) -> tuple[dict[str, Any], Path]:
    folder = pretrained_folder(pretrained)
    if folder is None or not (folder / CONFIG).is_file():
        raise FtaeError(
            f"model.pretrained: {pretrained!r} is not a folder with a {family} (no {CONFIG}); "
            f"name a folder that ftae train or ftae export wrote{_what_it_is(pretrained)}"
        )
    config = read_json(folder / CONFIG)
    if (holds := config.get("family")) != family:
        raise FtaeError(f"model.pretrained: {pretrained!r} holds a {holds}, not a {family}")
    numbers: dict[str, Any] = {fact: config.get(fact) for fact in _facts(net_type)} | {OUTER: config.get(OUTER, 0)}
    wrong = [name for name, number in numbers.items() if not isinstance(number, int) or number < 0]
    if wrong or numbers[OUTER] > MOST_OUTER or not isinstance(config.get("options"), dict):
        reason = (
            f"{wrong[0]} is {numbers[wrong[0]]!r}"
            if wrong
            else "its options or resolution_adapters are none of a model"
        )
        raise FtaeError(f"model.pretrained: {folder / CONFIG} is damaged: {reason}")
    config["options"] = _defaults(net_type) | config["options"]
    return config, folder / WEIGHTS


def _what_it_is(pretrained: str) -> str:
    """What a path leads to instead, or may have meant."""
    if (file := Path(pretrained).expanduser() / DIFFUSERS_CONFIG).is_file():
        holds = diffusers_class(file)
        family = next((family for family, name in DIFFUSERS.items() if name == holds), None)
        return "" if family is None else f", or set model.family to {family}, which this one is"
    return suggested(Path(pretrained).expanduser())


def _built(net_type: type[nn.Module], config: dict[str, Any], weights: Path | None, given: dict[str, Any]) -> nn.Module:
    build = partial(net_type, **config["options"], **{fact: config[fact] for fact in _facts(net_type)})
    try:
        check_room(build, given)
        return build()
    except FtaeError:
        raise
    except Exception as error:  # of values that no ftae wrote there
        if weights is None:
            raise
        file = weights.with_name(CONFIG)
        raise FtaeError(f"model.pretrained: {file} is damaged: it describes no model ({first_line(error)})") from error
