"""ftae's own networks as autoencoders: built from a spec, loaded from and saved to a folder."""

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ftae.engine.autoencoder import Autoencoder
from ftae.engine.memory import check_room
from ftae.engine.model_files import (
    CONFIG,
    DIFFUSERS,
    DIFFUSERS_CONFIG,
    WEIGHTS,
    diffusers_class,
    pretrained_folder,
    read_json,
    suggested,
)
from ftae.engine.networks import Chain
from ftae.engine.outer_stages import OuterStages
from ftae.engine.pretrained import load_state, save_state
from ftae.engine.quiet_libraries import first_line
from ftae.errors import FtaeError
from ftae.specs.data import DataSpec

OUTER = "outer_stages"  # an option of the families that are built for one resolution
MOST_OUTER = 8


def own_family(net_type: type[nn.Module]) -> Callable[[Any, DataSpec, int | None], Autoencoder]:
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
            net = OuterStages(net, config["channels_in"], new=False)
        if weights is not None:
            load_state(net, weights)
        for _ in range(kept, wanted or 0):
            net = OuterStages(net, config["channels_in"], new=True)

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
        raise FtaeError(f"data.resolution must be a multiple of {2**outer} (2**outer_stages), got {data.resolution}")
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
    outer = kept if model.outer_stages is None else model.outer_stages
    if outer < kept:
        raise FtaeError(f"model.outer_stages is {outer}, but {model.pretrained} has {kept}; leave it out to keep them")
    if inner * 2**outer != data.resolution:
        fitting = [number for number in range(kept, MOST_OUTER + 1) if inner * 2**number == data.resolution]
        raise FtaeError(
            f"{model.pretrained} with {outer} outer stages takes images of {inner * 2**outer} pixels a side, "
            f"got data.resolution {data.resolution}; each of model.outer_stages doubles what it takes"
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
        reason = f"{wrong[0]} is {numbers[wrong[0]]!r}" if wrong else "its options or outer_stages are none of a model"
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
