"""ftae's own networks as autoencoders: built from a spec, loaded from and saved to a folder."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ftae.engine.autoencoder import Autoencoder
from ftae.engine.networks import ConvAeNet, ConvVaeNet, MlpVaeNet
from ftae.engine.pretrained import CONFIG, WEIGHTS, load_state, pretrained_folder, save_state
from ftae.errors import FtaeError
from ftae.specs.data import DataSpec


def own_family(
    net_type: type[MlpVaeNet] | type[ConvAeNet] | type[ConvVaeNet],
) -> Callable[[Any, DataSpec, int | None], Autoencoder]:
    """What builds an ``Autoencoder`` of one of ftae's networks; it raises as ``build_autoencoder``."""

    def build(model: Any, data: DataSpec, num_classes: int | None) -> Autoencoder:
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
            load_state(net, weights)

        def save(folder: Path) -> None:
            config = {"family": model.family, "options": options, **facts}
            save_state(net, folder)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

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
