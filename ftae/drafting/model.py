"""What a search file must know of a model: its family, and what images it takes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ftae.engine.models.pretrained.model_folder import (
    CONFIG,
    DIFFUSERS,
    DIFFUSERS_CONFIG,
    PIPELINE,
    WEIGHTS_SUFFIXES,
    diffusers_class,
    hub_id,
    pretrained_folder,
    read_json,
    saved_family,
)
from ftae.engine.models.pretrained.single_file import config_from_shapes, read_autoencoder
from ftae.errors import FtaeError
from ftae.specs.finetune.data_spec import Size, size_of
from ftae.specs.finetune.model_spec import ModelSpec
from ftae.specs.finetune.models import AnyModel, AutoencoderKl, DiffusersModel, Scaling
from ftae.specs.reading.problems import one_of

SPECS: dict[str, type[ModelSpec]] = {
    str(kind.model_fields["family"].default): kind
    for kind in (get_args(each)[0] for each in get_args(get_args(AnyModel)[0]))
    if isinstance(kind.model_fields["family"].default, str)
}
# What in the name of a model on the hub tells its family; any other is taken for an AutoencoderKL.
HUB_NAMES = {
    "asymmetric": "asymmetric_autoencoder_kl",
    "taesd": "autoencoder_tiny",
    "dc-ae": "autoencoder_dc",
    "vq": "vq_model",
}
# How often a family halves its images where its own options do not say: by the defaults of their specs.
HALVINGS = {"unet_translator": 4, "resnet_translator": 2, "cyclegan": 2, "conv_ae": 2, "conv_vae": 2, "conv_cvae": 2}
HALVINGS |= {"hierarchical_vae": 2, "vq_vae": 2, "vq_vae_2": 2}


@dataclass(frozen=True)
class ModelFacts:
    """What was found of a model.

    ``fields``: the section ``model`` of the file. ``kind``: the spec of its family. ``channels``, ``size``: those of
    its images, None where it takes any. ``factor``: what height and width must be multiples of. ``found``: how this is
    known. ``is_here``: whether it can be built on this machine, to see its stages.
    """

    fields: dict[str, Any]
    kind: type[ModelSpec]
    found: str
    channels: int | None = None
    size: Size | None = None
    factor: int = 1
    is_here: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_new(self) -> bool:
        """Whether it is trained from scratch."""
        return "pretrained" not in self.fields

    @property
    def is_shared(self) -> bool:
        """Whether other models, such as diffusion models, have probably learned its latents."""
        return issubclass(self.kind, DiffusersModel)


def look_at_model(name: str, scaling: str | None = None) -> ModelFacts:
    """Look at a folder or a file of weights, or take the name of a family or of a model on the hub for what it says.

    ``scaling``: how the latents of a single file are scaled, a name of ``AutoencoderKl.SCALINGS`` or a factor.

    Raises:
        FtaeError: it is nothing of these, or its description is damaged; or ``scaling`` is missing, or has no effect.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _of_file(name, path, scaling)
    if scaling is not None:
        raise FtaeError(f"scaling has no effect on {name}: it is asked for single files of weights alone")
    if path.is_dir():
        return _of_folder(name, path)
    if name in SPECS:
        return _from_scratch(name)
    if hub_id(name) is not None and "/" in name:
        return _on_the_hub(name)
    raise FtaeError(
        f"there is no model {name!r}: name a folder of diffusers or of ftae, a file of weights "
        f"({', '.join(WEIGHTS_SUFFIXES)}), a hub id owner/name, or, to train from scratch, a family: "
        f"{one_of(sorted(family for family, kind in SPECS.items() if not issubclass(kind, DiffusersModel)), name)}"
    )


def _from_scratch(family: str) -> ModelFacts:
    if issubclass(SPECS[family], DiffusersModel):
        raise FtaeError(f"{family} is tuned from pretrained weights: name their folder, file or hub id instead")
    factor = 2 ** (HALVINGS.get(family, 0) + (family == "vq_vae_2"))
    return ModelFacts({"family": family}, SPECS[family], "a new model, trained from scratch", factor=factor)


def _on_the_hub(name: str) -> ModelFacts:
    family = next((family for part, family in HUB_NAMES.items() if part in name.lower()), "autoencoder_kl")
    fields: dict[str, Any] = {"family": family, "pretrained": name}
    if not any(part in name.lower() for part in ("vae", *HUB_NAMES)):
        fields["subfolder"] = "vae"  # of a whole pipeline
    found = "taken from the name alone, nothing was fetched: ftae validate fetches the model and says if it is another"
    return ModelFacts(fields, SPECS[family], found, channels=3, factor=8, is_here=False)


def _of_file(name: str, path: Path, scaling: str | None) -> ModelFacts:
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise FtaeError(f"{name} is no file of weights ({', '.join(WEIGHTS_SUFFIXES)})")
    if (config := path.with_name(DIFFUSERS_CONFIG)).is_file():
        if scaling is not None:
            raise FtaeError(f"scaling has no effect on {name}: {config} says how its latents are scaled")
        return _of_diffusers({"pretrained": name}, config)
    state = read_autoencoder(path)
    family = next((family for family, key in _ONLY_IN.items() if key in state), "autoencoder_kl")
    fields: dict[str, Any] = {"family": family, "pretrained": name}
    if family == "autoencoder_kl":
        fields["scaling"] = _scaling(name, scaling)
    elif scaling is not None:
        raise FtaeError(f"scaling has no effect on {name}, which is of the family {family}")
    options = config_from_shapes(family, state, Scaling(factor=1.0), path)
    channels, factor = options["in_channels"], 2 ** (len(options["block_out_channels"]) - 1)
    found = f"a single file of the family {family}, by its tensors"
    return ModelFacts(fields, SPECS[family], found, channels, None, factor, options=options)


_ONLY_IN = {"vq_model": "quantize.embedding.weight", "autoencoder_kl_flux2": "bn.running_mean"}


def _scaling(name: str, scaling: str | None) -> str | dict[str, float]:
    if scaling in AutoencoderKl.SCALINGS:
        return scaling
    try:
        return {"factor": float(scaling or "")}
    except ValueError as error:
        known = ", ".join(f"{name} ({each.factor:g})" for name, each in AutoencoderKl.SCALINGS.items())
        raise FtaeError(
            f"{name} does not say how its latents are scaled: say by --scaling (scaling=) one of {known}, or a factor"
            + ("" if scaling is None else f", got {scaling}")
        ) from error


def _of_folder(name: str, path: Path) -> ModelFacts:
    if (path / PIPELINE).is_file() and (path / "vae" / DIFFUSERS_CONFIG).is_file():
        return _of_diffusers({"pretrained": name, "subfolder": "vae"}, path / "vae" / DIFFUSERS_CONFIG)
    folder = pretrained_folder(name)
    assert folder is not None
    if (folder / DIFFUSERS_CONFIG).is_file():
        return _of_diffusers({"pretrained": name}, folder / DIFFUSERS_CONFIG)
    family = saved_family(name)
    if family not in SPECS:
        raise FtaeError(
            f"{name} is no model: it has neither a {DIFFUSERS_CONFIG} of diffusers nor a {CONFIG} of a family of ftae "
            "(a module of your own is named package.module:attr in the file, see search_spaces)"
        )
    config = read_json(folder / CONFIG, name)
    kind = SPECS[family]
    resolution = config.get("resolution")
    size = None
    if ("resolution_adapters" in kind.model_fields or kind.takes_noise) and resolution is not None:
        inner = size_of(tuple(resolution) if isinstance(resolution, list) else resolution)
        adapters = 2 ** int(config.get("resolution_adapters", 0))
        size = (inner[0] * adapters, inner[1] * adapters)
    halvings = config.get("depth", HALVINGS.get(family, 0)) + (family == "vq_vae_2")
    found = f"a {family} of ftae, by its {CONFIG}"
    fields = {"family": family, "pretrained": name}
    return ModelFacts(fields, kind, found, config.get("channels_in"), size, 2**halvings, options=config)


def _of_diffusers(fields: dict[str, Any], config: Path) -> ModelFacts:
    name = diffusers_class(config)
    family = next((family for family, known in DIFFUSERS.items() if known == name), None)
    if family is None:
        raise FtaeError(f"{config} is of {json.dumps(name)}; the class {one_of(sorted(DIFFUSERS.values()), str(name))}")
    options = read_json(config)
    widths = next((options[key] for key in _WIDTHS if isinstance(options.get(key), list)), [0] * 4)
    channels = options.get("in_channels", 3)
    factor = 2 ** (len(widths) - 1)
    found = f"{name}, which takes {channels} channels and makes one latent of {factor} x {factor} pixels"
    return ModelFacts({"family": family, **fields}, SPECS[family], found, channels, None, factor, options=options)


_WIDTHS = ("block_out_channels", "down_block_out_channels", "encoder_block_out_channels")  # one entry a resolution
