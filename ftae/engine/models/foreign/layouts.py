"""LAYOUTS: which files of foreign weights ftae reads. A layout is one entry of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ftae.engine.models.foreign import rosinality, stylegan2, tensorflow, translators
from ftae.engine.models.foreign.network import Network, State
from ftae.engine.models.foreign.reading import Kept, flattened
from ftae.errors import FtaeError

STYLEGAN2 = "stylegan2"
_NVIDIAS = (
    "NVIDIA's code and weights are for research or evaluation only, and a model tuned from them stays under that limit"
)
_UNKNOWN = "the file does not say under which terms its weights, and models tuned from them, may be used"


@dataclass(frozen=True)
class ForeignModel:
    """A model of ``family`` with the networks of a file.

    ``model``: with averaged weights where the file has them.
    """

    family: str
    model: Network
    discriminator: Network | None = None


@dataclass(frozen=True)
class Layout:
    """``read``: the content of a file -> its model, None for a file of another layout.

    ``licence``: why the user must say under which licence the weights are.
    """

    name: str
    read: Callable[[Any], ForeignModel | None]
    licence: str


def _nvidia(content: Any) -> ForeignModel | None:
    if not isinstance(content, dict) or not isinstance(content.get("G_ema"), Kept):
        return None
    discriminator = content.get("D")
    return _stylegan2(
        flattened(content["G_ema"]), flattened(discriminator) if isinstance(discriminator, Kept) else None
    )


def _tensorflow(content: Any) -> ForeignModel | None:
    if not isinstance(content, tuple | list) or not content or not all(isinstance(each, Kept) for each in content):
        return None
    if len(content) != 3:
        raise FtaeError(f"it holds {len(content)} networks, not a generator, a discriminator and an average")
    _, discriminator, averaged = map(tensorflow.variables, content)
    return _stylegan2(tensorflow.generator_state(averaged), tensorflow.discriminator_state(discriminator))


def _rosinality(content: Any) -> ForeignModel | None:
    if not isinstance(content, Mapping):
        return None
    named = {name: content[name] for name in ("g_ema", "g", "d") if isinstance(content.get(name), Mapping)}
    if not named and "conv1.conv.modulation.weight" in content:
        named = {"g_ema": content}
    if not named:
        return None
    if named.keys() == {"d"}:
        raise FtaeError("it holds no generator (g_ema or g)")
    average = {stylegan2.AVERAGE: content["latent_avg"]} if isinstance(content.get("latent_avg"), Tensor) else {}
    generator = rosinality.generator_state(named["g_ema" if "g_ema" in named else "g"]) | average
    return _stylegan2(generator, rosinality.discriminator_state(named["d"]) if "d" in named else None)


def _flat_nvidia(content: Any) -> ForeignModel | None:
    return _stylegan2(dict(content)) if isinstance(content, Mapping) and "mapping.fc0.weight" in content else None


def _resnet(content: Any) -> ForeignModel | None:
    if not isinstance(content, Mapping) or not translators.is_resnet(content):
        return None
    return ForeignModel("resnet_translator", translators.resnet(content))


def _unet(content: Any) -> ForeignModel | None:
    if not isinstance(content, Mapping) or not translators.is_unet(content):
        return None
    return ForeignModel("unet_translator", translators.unet(content))


def _stylegan2(generator: State, discriminator: State | None = None) -> ForeignModel:
    return ForeignModel(
        STYLEGAN2,
        stylegan2.generator(generator),
        None if discriminator is None else stylegan2.discriminator(discriminator),
    )


LAYOUTS = (
    Layout("NVIDIA's PyTorch pickles of StyleGAN2", _nvidia, _NVIDIAS),
    Layout("NVIDIA's TensorFlow pickles of StyleGAN2", _tensorflow, _NVIDIAS),
    Layout("rosinality's files of StyleGAN2", _rosinality, f"most of them are converted: {_NVIDIAS}"),
    Layout("state dicts of a StyleGAN2 generator in NVIDIA's names", _flat_nvidia, _NVIDIAS),
    Layout("state dicts of CycleGAN's residual generator", _resnet, _UNKNOWN),
    Layout("state dicts of the U-Net of Pix2Pix and CycleGAN", _unet, _UNKNOWN),
)


def read_layout(content: Any) -> tuple[Layout, ForeignModel]:
    """The layout of a file's content, and its model.

    Raises:
        FtaeError: it is of no layout that ftae reads, or its networks differ from ftae's.
    """
    for layout in LAYOUTS:
        found = layout.read(content)
        if found is not None:
            return layout, found
    names = f", with {', '.join(map(str, [*content][:3]))}" if isinstance(content, Mapping) and content else ""
    raise FtaeError(
        f"it holds a {type(content).__name__}{names}; ftae reads {'; '.join(layout.name for layout in LAYOUTS)}"
    )
