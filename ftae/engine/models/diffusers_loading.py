"""diffusers' autoencoders with the weights of a folder. What they raise becomes one message.

Importing this imports diffusers: seconds of a process.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import torch

from ftae.engine.models.hub import fetched
from ftae.engine.models.model_folder import (
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
from ftae.engine.models.weights import best_fit, check_content, fill, note, read_state
from ftae.engine.process import first_line, quiet_libraries
from ftae.engine.rng import keep_random_state
from ftae.errors import FtaeError
from ftae.wording import did_you_mean

NETWORKS: dict[str, Any] = {family: getattr(diffusers, class_name) for family, class_name in DIFFUSERS.items()}

FAMILIES = {class_name: family for family, class_name in DIFFUSERS.items()}


def load_network(family: str, pretrained: str, subfolder: str | None) -> Any:
    """The network of a diffusers family in fp32, on the CPU.

    Raises:
        FtaeError: there is no such model, it is of another family, or its files are damaged.
    """
    path = Path(pretrained).expanduser()
    try:
        if path.is_file():
            return _of_file(path, family, subfolder)
        folder = pretrained_folder(pretrained) or _of_hub(pretrained, subfolder)
        return _of_folder(_part(folder, pretrained, subfolder, family), family)
    except OSError as error:  # of the disk; what the libraries raise is caught where they are called
        raise FtaeError(f"model.pretrained: {pretrained} cannot be read: {error}") from error


def _of_hub(pretrained: str, subfolder: str | None) -> Path:
    wanted, near = hub_id(pretrained), suggested(Path(pretrained).expanduser())
    if wanted is None:
        raise FtaeError(
            f"model.pretrained: {pretrained!r} is neither an existing folder nor a hub id (owner/name){near}"
        )
    if looks_local(pretrained):
        raise FtaeError(f"model.pretrained: there is no folder {pretrained!r} here{near}")
    return fetched(wanted, pretrained, subfolder)


def _part(folder: Path, pretrained: str, subfolder: str | None, family: str) -> Path:
    """The folder with the configuration: ``folder``, or the part of a pipeline that is asked for."""
    part = folder / (subfolder or "")
    if (part / DIFFUSERS_CONFIG).is_file():
        return part
    parts = {file.parent.name: _class_of(file) for file in sorted(folder.glob(f"*/{DIFFUSERS_CONFIG}"))}
    known = [name for name, kind in parts.items() if kind in FAMILIES]
    if subfolder is not None:
        there = f"there are {', '.join(parts)}{did_you_mean(subfolder, parts)}" if parts else "nor has any other folder"
        there = "leave it out" if (folder / DIFFUSERS_CONFIG).is_file() else there
        raise FtaeError(f"model.subfolder: {part} has no {DIFFUSERS_CONFIG}; {there}")
    if (folder / PIPELINE).is_file() or known:
        fitting = [name for name in known if parts[name] == DIFFUSERS[family]] or known
        todo = f"set model.subfolder to {' or '.join(fitting)}" if known else "it has no autoencoder that ftae knows"
        raise FtaeError(f"model.pretrained: {pretrained} is a whole pipeline: {todo}")
    if (folder / CONFIG).is_file():
        own = read_json(folder / CONFIG).get("family")
        raise FtaeError(f"model.pretrained: {pretrained} holds a model of ftae's own: set model.family to {own}")
    raise FtaeError(f"model.pretrained: {folder} has no {DIFFUSERS_CONFIG}{_contents(folder)}")


def _class_of(config: Path) -> str | None:
    with suppress(FtaeError):  # it may be of a part that is not asked for
        return diffusers_class(config)
    return None


def _check_class(folder: Path, family: str) -> None:
    holds = diffusers_class(folder / DIFFUSERS_CONFIG)
    if holds is None or holds == DIFFUSERS[family]:
        return
    article = "an" if holds.startswith(("A", "E", "I", "O")) else "a"
    if holds in FAMILIES:
        todo = f"set model.family to {FAMILIES[holds]}, not {family}"
        raise FtaeError(f"model.family: {folder} holds {article} {holds}: {todo}")
    raise FtaeError(f"model.pretrained: {folder} holds {article} {holds}; ftae tunes {', '.join(FAMILIES)}")


def _of_folder(folder: Path, family: str) -> Any:
    _check_class(folder, family)
    network, weights = NETWORKS[family], _weights(folder)
    files = [folder / name for name in weights.names if not name.endswith(".json")]
    for file in files:
        check_content(file)
    with suppress(Exception), quiet_libraries():  # diffusers lets through what any part of it raises
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
            if left := info["unexpected_keys"]:
                note(
                    f"model.pretrained: {folder}: {len(left)} of its tensors have no place in the model: {left[0]}, ..."
                )
            return net
    return _mended(network, folder, {name: t for file in files for name, t in read_state(file).items()}, files)


def _weights(folder: Path) -> DiffusersWeights:
    """Those to load.

    Raises:
        FtaeError: there are none, or several variants and no plain ones.
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


def _of_file(file: Path, family: str, subfolder: str | None) -> Any:
    """The network of a single file, built as the ``config.json`` beside it says."""
    folder, network = file.parent, NETWORKS[family]
    if subfolder is not None:
        raise FtaeError(f"model.subfolder: {subfolder} has no effect: {file} is a single file")
    check_content(file)
    if not (folder / DIFFUSERS_CONFIG).is_file():
        convert = f"{network.__name__}.from_single_file({str(file)!r}).save_pretrained('FOLDER')"
        way = f": {convert} makes one" if hasattr(network, "from_single_file") else ""
        raise FtaeError(
            f"model.pretrained: {file} is a single file of weights. Put the {DIFFUSERS_CONFIG} of its model beside it, "
            f"or name a folder in diffusers format{way}"
        )
    _check_class(folder, family)
    return _mended(network, folder, read_state(file), [file])


def _mended(network: Any, folder: Path, content: Mapping[Any, Any], files: list[Path]) -> Any:
    """The network that the folder's configuration describes, with weights that are not as diffusers saves them."""
    where = f"model.pretrained: {files[0] if len(files) == 1 else folder}"
    try:
        with quiet_libraries(), keep_random_state():
            net = network.from_config(network.load_config(str(folder))).eval()
    except Exception as error:  # an unknown or impossible value
        raise FtaeError(
            f"model.pretrained: {folder / DIFFUSERS_CONFIG} describes no {network.__name__} ({first_line(error)})"
        ) from error
    is_as_here = best_fit(content, net.state_dict()).is_exact
    if not is_as_here and (converted := _converted(network, folder, content)) is not None:
        note(f"{where} is read by {network.__name__}.from_single_file: it has the names of another library")
        return converted
    fill(net, content, where)
    return net


def _converted(network: Any, folder: Path, content: Mapping[Any, Any]) -> Any:
    """The network with weights whose names are those of its authors (LDM's, say); None if these are not."""

    def convert(tensors: Mapping[Any, Any]) -> Any:
        return network.from_single_file(
            dict(tensors), config=str(folder), local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )

    content = content.get("state_dict", content)  # as LDM's own checkpoints have it
    with suppress(Exception), quiet_libraries(), keep_random_state():
        # What a file lacks stays random without a word: a file of nothing but NaN shows what it reaches.
        reached = convert({name: torch.full_like(t, torch.nan) for name, t in content.items() if torch.is_tensor(t)})
        if all(tensor.isnan().all() for tensor in reached.state_dict().values()):
            return convert(content)
    return None


def _contents(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    return f"; it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "; it is empty"
