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

from ftae.engine.models.model_folder import WEIGHTS, pretrained_folder, suggested
from ftae.engine.process import first_line
from ftae.errors import FtaeError


def read_state(path: Path, setting: str = "model.pretrained") -> Mapping[Any, Any]:
    """What the file holds: tensors by name, maybe among other things. No code of the file runs.

    ``setting``: what names the file, for messages.

    Raises:
        FtaeError: it is no such file, or is damaged.
    """
    try:
        state = load_file(path) if check_content(path, setting) == "safetensors" else _unpickled(path, setting)
    except FtaeError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
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
        with path.open("rb") as file:  # by its name, torch would take it for what the suffix says
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        if (found := _foreign_content(path, error)) is None:
            raise
        raise FtaeError(
            f"{setting}: {path} holds {found}; ftae reads tensors alone, since all else could run code: "
            "save net.state_dict() by itself"
        ) from error


def _foreign_content(path: Path, error: Exception) -> str | None:
    """What a file holds besides tensors, as far as it can be told without running it; None if it is damaged."""
    if not zipfile.is_zipfile(path):  # the format of torch before 1.6, or plain pickle
        return "a whole module or other objects" if isinstance(error, pickle.UnpicklingError) else None
    with zipfile.ZipFile(path) as archive:
        files = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in files:
        return "a TorchScript program"
    if "data.pkl" not in files:
        return "an archive that torch.save did not write"
    kinds: list[str] = []
    with suppress(Exception):  # it is damaged
        kinds = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        kinds.sort(key=lambda kind: (kind.startswith("torch."), kind))
    return f"a whole module or other objects ({', '.join(kinds[:3])})" if kinds else None


# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_NAMED = 3  # how many names a message tells


@dataclass(frozen=True)
class Fit:
    """A state dict beside what a model wants.

    ``state``: what can be loaded. ``how``: where in the file it was found and what was changed; empty where nothing
    was. ``misfits``: tensors of another shape or type.
    """

    state: dict[str, Any]
    how: str
    missing: list[str]
    unexpected: list[str]
    misfits: list[str]

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.misfits)

    def faults(self) -> str:
        """One line: how many names do not fit, and the first of them."""
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
    """The reading of a file that fits a model's state dict best; as it stands, if no other does better."""
    fits = [
        _compare(state, wanted, [*key, *renamed])
        for key, entry in _entries(content)
        for renamed, state in _readings(entry, wanted)
    ]
    return max(fits, key=lambda fit: (fit.is_exact, len(fit.state) - len(fit.misfits)))


def _entries(content: Mapping[Any, Any], depth: int = 2) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The mapping itself and those in it; averaged weights first, as those who wrote them evaluate with them."""
    yield [], {name: value for name, value in content.items() if isinstance(name, str)}
    inner = [(key, value) for key, value in content.items() if isinstance(value, Mapping)] if depth else []
    for key, value in sorted(inner, key=lambda item: "ema" not in str(item[0]).lower()):
        for (*inside,), entry in _entries(value, depth - 1):
            yield [f"under {key!r}", *inside], entry


def _readings(entry: dict[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The same tensors with names as a model may want them."""
    yield from _prefixed([], entry, wanted)
    if wrappers := Counter(match for name in entry for match in _WRAPPERS.findall(name)):
        told = [f"without {', '.join(map(repr, wrappers))} in its names"]
        yield from _prefixed(told, {_WRAPPERS.sub("", name): value for name, value in entry.items()}, wanted)


def _prefixed(
    told: list[str], entry: dict[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The tensors as they are; without a prefix that many have; with one that the model has."""
    yield told, entry
    if prefix := _common_prefix(entry, wanted):
        inside = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
        rest = len(entry) - len(inside)
        left_out = [f"leaving out {rest} entries without it"] if rest else []
        yield [*told, f"without the prefix {prefix!r}", *left_out], inside
    if prefix := _common_prefix(wanted, entry):
        yield [*told, f"with the prefix {prefix!r}"], {f"{prefix}{name}": value for name, value in entry.items()}


def _common_prefix(names: Mapping[str, Any], inner: Mapping[str, Any]) -> str | None:
    """What most of ``names`` have before a name of ``inner``; of as many, that of averaged weights."""
    prefixes = Counter(
        name[: match.end()] for name in names for match in re.finditer(r"\.", name) if name[match.end() :] in inner
    )
    return max(prefixes, key=lambda prefix: (prefixes[prefix], "ema" in prefix.lower())) if prefixes else None


def _compare(state: dict[str, Any], wanted: Mapping[str, Any], how: list[str]) -> Fit:
    fitting: dict[str, Any] = {}
    misfits, squeezed = [], 0
    for name in [name for name in state if name in wanted]:
        given, its = state[name], wanted[name]
        fitting[name] = given
        if not isinstance(its, Tensor) or is_lazy(its):  # the model itself has to say
            continue
        if not isinstance(given, Tensor):
            misfits.append(f"{name} is a {type(given).__name__}")
        elif its.is_floating_point() and not given.is_floating_point():
            misfits.append(f"{name} is {_short(given.dtype)}, the model wants {_short(its.dtype)}")
        elif given.shape == (*its.shape, *[1] * (given.ndim - its.ndim)):
            squeezed += given.ndim > its.ndim
            fitting[name] = given.reshape(its.shape)
        else:
            misfits.append(f"{name} is {tuple(given.shape)}, the model wants {tuple(its.shape)}")
    if squeezed:
        how = [*how, f"with {squeezed} convolutions of 1x1 as matrices"]
    # torch itself counts anew where a file from before 0.4.1 has no such count
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    return Fit(fitting, ", ".join(how), missing, [name for name in state if name not in wanted], misfits)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


logger = logging.getLogger(__name__)


def load_state(net: nn.Module, path: Path, setting: str = "model.pretrained") -> None:
    """Load a state dict: ``.safetensors``, ``.pt`` (tensors only), or a folder that ``save_state`` wrote.

    One that lies under a key of the file, or whose names have a prefix, is taken where the rest fits exactly; that
    is said. ``setting``: what names it in the file, for messages.

    Raises:
        FtaeError: there is none, it is damaged, or it is of another model.
    """
    if path.is_dir():
        path = (pretrained_folder(str(path)) or path) / WEIGHTS
    if not path.is_file():
        raise FtaeError(f"{setting}: {path} does not exist; name a .safetensors or .pt state dict{suggested(path)}")
    fill(net, read_state(path, setting), f"{setting}: {path}")


def fill(net: nn.Module, content: Mapping[Any, Any], where: str) -> None:
    """Give ``net`` the tensors that a file holds. ``where``: the setting and the file, for messages.

    Raises:
        FtaeError: they are of another model.
    """
    fit = best_fit(content, net.state_dict())
    if not fit.is_exact:
        raise FtaeError(f"{where} does not hold a state dict of the model: {fit.faults()}")
    try:
        net.load_state_dict(fit.state if fit.how else content)  # which also knows the versions of its layers
    except Exception as error:  # a user's own module may load as it likes
        raise FtaeError(f"{where} cannot be loaded into the model: {first_line(error)}") from error
    if fit.how:
        note(f"{where} is read {fit.how}")


@cache
def note(text: str) -> None:
    """Tell the user, once: the same model is built again and again."""
    logger.warning(text)


def save_state(net: nn.Module, folder: Path) -> None:
    """Write the state dict of ``net`` into ``folder``, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items()
    }
    (folder / WEIGHTS).write_bytes(save(state))  # save_file would tell of a full disk in an error of its own
