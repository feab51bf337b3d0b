"""Autoencoders of diffusers with weights from a folder, a file or the hub. Their errors become one message.

Importing this module imports diffusers, which takes seconds.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import torch

from ftae.engine.models.pretrained.compvis import GROUPS
from ftae.engine.models.pretrained.hub import fetched
from ftae.engine.models.pretrained.model_folder import (
    CONFIG,
    DIFFUSERS,
    DIFFUSERS_CONFIG,
    PIPELINE,
    DiffusersWeights,
    diffusers_class,
    diffusers_weights,
    hub_id,
    looks_local,
    pretrained_folder,
    read_json,
    suggested,
)
from ftae.engine.models.pretrained.single_file import (
    FROM_SHAPES,
    choose_autoencoder,
    config_from_shapes,
    read_autoencoder,
)
from ftae.engine.models.pretrained.weights import best_fit, check_content, fill, note, read_state
from ftae.engine.process import first_line, keep_random_state, quiet_libraries
from ftae.errors import FtaeError
from ftae.specs.finetune.models import AutoencoderKl, Scaling
from ftae.wording import did_you_mean

NETWORKS: dict[str, Any] = {family: getattr(diffusers, class_name) for family, class_name in DIFFUSERS.items()}
FAMILY_OF_CLASS = {class_name: family for family, class_name in DIFFUSERS.items()}


def load_network(family: str, pretrained: str, subfolder: str | None, scaling: str | Scaling | None = None) -> Any:
    """The network of a diffusers family, in fp32, on the CPU.

    Raises:
        FtaeError: there is no such model, it is of another family, its files are damaged or hold values that are not
            finite, or ``scaling`` is missing or has no effect.
    """
    path = Path(pretrained).expanduser()
    try:
        if path.is_file():
            net = _load_file(path, family, subfolder, scaling)
        else:
            folder = pretrained_folder(pretrained) or _hub_folder(pretrained, subfolder)
            net = _load_folder(_part(folder, pretrained, subfolder, family), family, scaling)
    except OSError as error:  # of the disk; errors of libraries are caught where they are called
        raise FtaeError(f"model.pretrained: {pretrained} cannot be read: {error}") from error
    if (ruined := next((name for name, t in net.state_dict().items() if not t.isfinite().all()), None)) is not None:
        raise FtaeError(f"model.pretrained: {pretrained} holds values that are not finite, the first in {ruined}")
    return net


def _hub_folder(pretrained: str, subfolder: str | None) -> Path:
    wanted, near = hub_id(pretrained), suggested(Path(pretrained).expanduser())
    if wanted is None:
        raise FtaeError(
            f"model.pretrained: {pretrained!r} is neither an existing folder nor a hub id (owner/name){near}"
        )
    if looks_local(pretrained):
        raise FtaeError(f"model.pretrained: there is no folder {pretrained!r} here{near}")
    return fetched(wanted, pretrained, subfolder)


def _part(folder: Path, pretrained: str, subfolder: str | None, family: str) -> Path:
    """The folder with the configuration: ``folder`` itself, or the part of a pipeline that the spec names."""
    part = folder / (subfolder or "")
    if (part / DIFFUSERS_CONFIG).is_file():
        return part
    parts = {file.parent.name: _class_of(file) for file in sorted(folder.glob(f"*/{DIFFUSERS_CONFIG}"))}
    known = [name for name, kind in parts.items() if kind in FAMILY_OF_CLASS]
    if subfolder is not None:
        hint = f"there are {', '.join(parts)}{did_you_mean(subfolder, parts)}" if parts else "nor has any other folder"
        hint = "leave it out" if (folder / DIFFUSERS_CONFIG).is_file() else hint
        raise FtaeError(f"model.subfolder: {part} has no {DIFFUSERS_CONFIG}; {hint}")
    if (folder / PIPELINE).is_file() or known:
        fitting = [name for name in known if parts[name] == DIFFUSERS[family]] or known
        todo = f"set model.subfolder to {' or '.join(fitting)}" if known else "it has no autoencoder that ftae knows"
        raise FtaeError(f"model.pretrained: {pretrained} is a whole pipeline: {todo}")
    if (folder / CONFIG).is_file():
        builtin = read_json(folder / CONFIG).get("family")
        raise FtaeError(f"model.pretrained: {pretrained} holds a built-in model of ftae: set model.family to {builtin}")
    raise FtaeError(f"model.pretrained: {folder} has no {DIFFUSERS_CONFIG}{_contents(folder)}")


def _class_of(config: Path) -> str | None:
    with suppress(FtaeError):  # the part may be none that the spec needs
        return diffusers_class(config)
    return None


def _check_class(folder: Path, family: str) -> None:
    found = diffusers_class(folder / DIFFUSERS_CONFIG)
    if found is None or found == DIFFUSERS[family]:
        return
    article = "an" if found.startswith(("A", "E", "I", "O")) else "a"
    if found in FAMILY_OF_CLASS:
        todo = f"set model.family to {FAMILY_OF_CLASS[found]}, not {family}"
        raise FtaeError(f"model.family: {folder} holds {article} {found}: {todo}")
    raise FtaeError(f"model.pretrained: {folder} holds {article} {found}; ftae tunes {', '.join(FAMILY_OF_CLASS)}")


def _check_scaling(folder: Path, scaling: str | Scaling | None) -> None:
    if scaling is not None:
        raise FtaeError(f"model.scaling has no effect: {folder / DIFFUSERS_CONFIG} says how the latents are scaled")


def _load_folder(folder: Path, family: str, scaling: str | Scaling | None) -> Any:
    _check_class(folder, family)
    _check_scaling(folder, scaling)
    network, weights = NETWORKS[family], _weights(folder)
    files = [folder / name for name in weights.names if not name.endswith(".json")]
    for file in files:
        check_content(file)
    with suppress(Exception), quiet_libraries():  # diffusers passes on the errors of all its parts
        net, info = network.from_pretrained(
            str(folder),
            variant=weights.variant,
            use_safetensors=weights.format == "safetensors",
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
        if not (info["missing_keys"] or info["mismatched_keys"]):
            if unused := info["unexpected_keys"]:
                note(f"model.pretrained: {folder}: the model does not use {len(unused)} tensors: {unused[0]}, ...")
            return net
    return _fitted(network, folder, {name: t for file in files for name, t in read_state(file).items()}, files)


def _weights(folder: Path) -> DiffusersWeights:
    """The set of weights to load.

    Raises:
        FtaeError: there is none, or several variants and no plain set.
    """
    sets = diffusers_weights(file.name for file in folder.iterdir() if file.is_file())
    if not sets:
        raise FtaeError(
            f"model.pretrained: {folder} has no weights (diffusion_pytorch_model.safetensors){_contents(folder)}"
        )
    if sets[0].variant is not None and any(other.variant != sets[0].variant for other in sets):
        names = ", ".join(name for each in sets for name in each.names)
        raise FtaeError(
            f"model.pretrained: {folder} has several variants of the weights and no plain one: {names}. "
            "Leave one of them there, or give one the name without the variant"
        )
    if absent := sets[0].absent_shards:
        numbers = ", ".join(map(str, absent[:5]))
        raise FtaeError(f"model.pretrained: {folder} lacks parts of the weights: {numbers} of those named -0000N-of-")
    return sets[0]


def _load_file(file: Path, family: str, subfolder: str | None, scaling: str | Scaling | None) -> Any:
    """The network of a single file, built from the ``config.json`` beside it, or else from the shapes in the file."""
    folder, network = file.parent, NETWORKS[family]
    if subfolder is not None:
        raise FtaeError(f"model.subfolder: {subfolder} has no effect: {file} is a single file")
    check_content(file)
    if (folder / DIFFUSERS_CONFIG).is_file():
        _check_class(folder, family)
        _check_scaling(folder, scaling)
        return _fitted(network, folder, read_state(file), [file])
    if family in FROM_SHAPES:
        return _from_shapes(network, family, file, scaling)
    convert = f"{network.__name__}.from_single_file({str(file)!r}).save_pretrained('FOLDER')"
    way = f": {convert} makes one" if hasattr(network, "from_single_file") else ""
    raise FtaeError(
        f"model.pretrained: {file} is a single file of weights. Put the {DIFFUSERS_CONFIG} of its model beside it, "
        f"or name a folder in diffusers format{way}"
    )


def _from_shapes(network: Any, family: str, file: Path, scaling: str | Scaling | None) -> Any:
    state = read_autoencoder(file)
    if family == "autoencoder_kl" and scaling is None:
        known = [f"{name} ({each.factor:g})" for name, each in AutoencoderKl.SCALINGS.items()]
        raise FtaeError(
            f"model.scaling: required, since {file} does not say how its latents are scaled: one of "
            f"{', '.join(known)}, or {{factor: ..., shift: ...}}"
        )
    known_scaling = AutoencoderKl.SCALINGS[scaling] if isinstance(scaling, str) else scaling
    config = config_from_shapes(family, state, known_scaling, file)
    where = f"model.pretrained: {file}"
    try:
        with quiet_libraries(), keep_random_state():
            net = network.from_config(config).eval()
    except Exception as error:  # no network of this kind has such shapes
        raise FtaeError(f"{where} has the shapes of no {network.__name__} ({first_line(error)})") from error
    fill(net, state, where)
    note(f"{where}: its configuration follows from its shapes, with {GROUPS} groups in each normalisation")
    return net


def _fitted(network: Any, folder: Path, content: Mapping[Any, Any], files: list[Path]) -> Any:
    """The network of the configuration in ``folder``, with weights that are not in the form that diffusers saves."""
    where = f"model.pretrained: {files[0] if len(files) == 1 else folder}"
    try:
        with quiet_libraries(), keep_random_state():
            net = network.from_config(network.load_config(str(folder))).eval()
    except Exception as error:  # the configuration has an unknown or impossible value
        raise FtaeError(
            f"model.pretrained: {folder / DIFFUSERS_CONFIG} describes no {network.__name__} ({first_line(error)})"
        ) from error
    if not best_fit(content, net.state_dict()).is_exact:
        if (renamed := _renamed(content, net, files[0])) is not None:
            note(f"{where} has the names of another library")
            content = renamed
        elif (converted := _converted(network, folder, content)) is not None:
            note(f"{where} is read by {network.__name__}.from_single_file: it has the names of another library")
            return converted
    fill(net, content, where)
    return net


def _renamed(content: Mapping[Any, Any], net: Any, file: Path) -> Mapping[Any, Any] | None:
    """The tensors of a file with CompVis' names; None if they do not fit exactly, then, either."""
    with suppress(FtaeError):
        renamed = choose_autoencoder(content, file)
        return renamed if best_fit(renamed, net.state_dict()).is_exact else None
    return None


def _converted(network: Any, folder: Path, content: Mapping[Any, Any]) -> Any:
    """The network with weights under the names of its authors, as diffusers knows them; None if they have others."""

    def convert(tensors: Mapping[Any, Any]) -> Any:
        return network.from_single_file(
            dict(tensors), config=str(folder), local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )

    content = content.get("state_dict", content)
    with suppress(Exception), quiet_libraries(), keep_random_state():
        # Tensors that a file lacks stay random, without an error: a file of NaNs shows which tensors it fills.
        filled = convert({name: torch.full_like(t, torch.nan) for name, t in content.items() if torch.is_tensor(t)})
        if all(tensor.isnan().all() for tensor in filled.state_dict().values()):
            return convert(content)
    return None


def _contents(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    return f"; it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "; it is empty"
