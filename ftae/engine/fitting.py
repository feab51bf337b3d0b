"""State dicts as frameworks leave them: under a key, with a prefix, with 1x1 convolutions in place of matrices."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

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
