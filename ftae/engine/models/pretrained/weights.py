"""Weights from files: reading state dicts, unwrapping them, and fitting them into a network."""

import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ftae.engine.models.pretrained.file_names import file_names
from ftae.engine.models.pretrained.model_folder import WEIGHTS, pretrained_folder, suggested
from ftae.engine.process import first_line
from ftae.errors import FtaeError


def read_state(path: Path, setting: str = "model.pretrained") -> Mapping[Any, Any]:
    """The content of the file: tensors by name, maybe among other things. No code in the file is run.

    ``setting``: the setting that names the file, for messages.

    Raises:
        FtaeError: it is no file of weights, or is damaged.
    """
    try:
        state = load_file(path) if check_content(path, setting) == "safetensors" else _unpickled(path, setting)
    except FtaeError:
        raise
    except Exception as error:  # the readers raise anything on a broken file
        raise FtaeError(f"{setting}: {path} is damaged or cut short ({first_line(error)})") from error
    if not isinstance(state, Mapping):
        raise FtaeError(
            f"{setting}: {path} holds no state dict (tensors by name), but an object: {type(state).__name__}"
        )
    return state


def check_content(path: Path, setting: str = "model.pretrained") -> Literal["safetensors", "pickle"]:
    """The format of a file of weights, by its first bytes.

    Raises:
        FtaeError: it cannot be read, or holds no weights.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise FtaeError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    if not head:
        raise FtaeError(f"{setting}: {path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise FtaeError(f"{setting}: {path} is a git-lfs pointer: run 'git lfs pull' in its repository")
    begins = ascii(head.decode("latin-1").strip()[:20])
    raise FtaeError(f"{setting}: {path} is no file of weights: it begins with {begins}")


def _unpickled(path: Path, setting: str) -> Any:
    try:
        with path.open("rb") as file:  # given a name, torch would judge the file by its suffix
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        if (found := _foreign_content(path, error)) is None:
            raise
        raise FtaeError(
            f"{setting}: {path} holds {found}; ftae reads tensors alone, since anything else could run code: "
            "save net.state_dict() by itself"
        ) from error


def _foreign_content(path: Path, error: Exception) -> str | None:
    """What a file holds besides tensors, as far as reading alone can tell; None if it is damaged."""
    if not zipfile.is_zipfile(path):  # the format of torch before 1.6, or plain pickle
        return "a whole module or other objects" if isinstance(error, pickle.UnpicklingError) else None
    with zipfile.ZipFile(path) as archive:
        files = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in files:
        return "a TorchScript program"
    if "data.pkl" not in files:
        return "an archive that torch.save did not write"
    kinds: list[str] = []
    with suppress(Exception):  # the file is damaged
        kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        kinds.sort(key=lambda kind: (kind.startswith("torch."), kind))
    return f"a whole module or other objects ({', '.join(kinds[:3])})" if kinds else None


# Prefixes that DataParallel, torch.compile, FSDP and activation checkpointing add to names.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(name: str) -> str:
    """The name of a tensor without what wrappers of modules have added."""
    return _WRAPPERS.sub("", name)


_NAMED = 3  # most names in a message


@dataclass(frozen=True)
class Fit:
    """A reading of a file, compared with the state dict of a model.

    ``state``: the tensors to load. ``how``: where in the file they were found and what was changed, for messages;
    empty where nothing was. ``misfits``: tensors of another shape or type.
    """

    state: dict[str, Any]
    how: str
    missing: list[str]
    unexpected: list[str]
    misfits: list[str]

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.misfits)

    @property
    def closeness(self) -> tuple[bool, int]:
        """The greater, the better the file fits."""
        return self.is_exact, len(self.state) - len(self.misfits)

    def faults(self) -> str:
        """How many names do not fit, and the first of them, in one line."""
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
            for kind, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape or type", self.misfits),
            )
            if names
        ]
        return ", ".join(parts) + (f"; that is when it is read {self.how}" if self.how else "")


def best_fit(content: Mapping[Any, Any], wanted: Mapping[str, Any]) -> Fit:
    """The reading of a file that fits the state dict of a model best; the unchanged one, unless another is better."""
    fits = [
        _compare(state, wanted, [*key, *renamed])
        for key, entry in _entries(content)
        for renamed, state in _readings(entry, wanted)
    ]
    return max(fits, key=lambda fit: fit.closeness)


def _entries(content: Mapping[Any, Any], depth: int = 2) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The mapping and the mappings inside; averaged weights first, since their authors evaluate with those."""
    yield [], {name: value for name, value in content.items() if isinstance(name, str)}
    inner = [(key, value) for key, value in content.items() if isinstance(value, Mapping)] if depth else []
    for key, value in sorted(inner, key=lambda item: "ema" not in str(item[0]).lower()):
        for (*inside,), entry in _entries(value, depth - 1):
            yield [f"under {key!r}", *inside], entry


def _readings(entry: dict[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The same tensors, under names that the model may use."""
    yield from _prefixed([], entry, wanted)
    if wrappers := Counter(match for name in entry for match in _WRAPPERS.findall(name)):
        how = [f"without {', '.join(map(repr, wrappers))} in its names"]
        yield from _prefixed(how, {without_wrappers(name): value for name, value in entry.items()}, wanted)


def _prefixed(
    how: list[str], entry: dict[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The tensors under their names, without the commonest prefix, and with the prefix of the model."""
    yield how, entry
    if prefix := _common_prefix(entry, wanted):
        inside = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
        rest = len(entry) - len(inside)
        left_out = [f"leaving out {rest} entries without it"] if rest else []
        yield [*how, f"without the prefix {prefix!r}", *left_out], inside
    if prefix := _common_prefix(wanted, entry):
        yield [*how, f"with the prefix {prefix!r}"], {f"{prefix}{name}": value for name, value in entry.items()}


def _common_prefix(names: Mapping[str, Any], inner: Mapping[str, Any]) -> str | None:
    """The commonest prefix of ``names`` before a name of ``inner``; on a tie, one of averaged weights."""
    prefixes = Counter(
        name[: match.end()] for name in names for match in re.finditer(r"\.", name) if name[match.end() :] in inner
    )
    return max(prefixes, key=lambda prefix: (prefixes[prefix], "ema" in prefix.lower())) if prefixes else None


def _compare(state: dict[str, Any], wanted: Mapping[str, Any], how: list[str]) -> Fit:
    fitting: dict[str, Any] = {}
    misfits, squeezed = [], 0
    for name in [name for name in state if name in wanted]:
        found, target = state[name], wanted[name]
        fitting[name] = found
        if not isinstance(target, Tensor) or is_lazy(target):  # loading decides whether they fit
            continue
        if not isinstance(found, Tensor):
            misfits.append(f"{name} is a {type(found).__name__}")
        elif target.is_floating_point() and not found.is_floating_point():
            misfits.append(f"{name} is {_short(found.dtype)}, the model wants {_short(target.dtype)}")
        elif found.shape == (*target.shape, *[1] * (found.ndim - target.ndim)):
            squeezed += found.ndim > target.ndim
            fitting[name] = found.reshape(target.shape)
        else:
            misfits.append(f"{name} is {tuple(found.shape)}, the model wants {tuple(target.shape)}")
    if squeezed:
        how = [*how, f"with {squeezed} convolutions of 1x1 as matrices"]
    # Files from before torch 0.4.1 have no such count; torch starts it again.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    return Fit(fitting, ", ".join(how), missing, [name for name in state if name not in wanted], misfits)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


logger = logging.getLogger(__name__)


def load_state(net: nn.Module, path: Path, setting: str = "model.pretrained") -> None:
    """Load a state dict: ``.safetensors``, ``.pt`` (tensors only), or a folder that ``save_state`` wrote.

    One under a key of the file, or whose names have a prefix, is loaded, too, if it fits exactly otherwise; a warning
    says so. ``setting``: the setting that names the file, for messages.

    Raises:
        FtaeError: the file is missing, damaged, or of another model.
    """
    if path.is_dir():
        path = (pretrained_folder(str(path)) or path) / WEIGHTS
    if not path.is_file():
        raise FtaeError(f"{setting}: {path} does not exist; name a .safetensors or .pt state dict{suggested(path)}")
    fill(net, read_state(path, setting), f"{setting}: {path}")


def fill(net: nn.Module, content: Mapping[Any, Any], where: str) -> None:
    """Load the content of a file into ``net``: by the names of its files, or by its own, as checkpoints have them.

    ``where``: the setting and the file, for messages.

    Raises:
        FtaeError: the content is of another model.
    """
    wanted, names = net.state_dict(), file_names(net)
    fit = best_fit(content, wanted)
    if names is not None and not fit.is_exact:
        fit = max(best_fit(content, names.to_file(wanted)), fit, key=lambda fit: fit.closeness)
    if not fit.is_exact:
        raise FtaeError(f"{where} does not hold a state dict of the model: {fit.faults()}")
    state = fit.state if fit.how else content  # ``content`` may have versions of layers, too
    try:
        net.load_state_dict(state if names is None else names.from_file(state))
    except Exception as error:  # a user's own module may load in its own way
        raise FtaeError(f"{where} cannot be loaded into the model: {first_line(error)}") from error
    if fit.how:
        note(f"{where} is read {fit.how}")


@cache
def note(text: str) -> None:
    """Warn the user once in a process: the same model is built many times."""
    logger.warning(text)


def save_state(net: nn.Module, folder: Path, file: str = WEIGHTS) -> None:
    """Write the state dict of ``net``, by the names of its files, as ``file`` of ``folder``, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    names, state = file_names(net), net.state_dict()
    found = state if names is None else names.to_file(state)
    alone = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in found.items()}
    (folder / file).write_bytes(save(alone))  # of a full disk this raises OSError, save_file SafetensorError
