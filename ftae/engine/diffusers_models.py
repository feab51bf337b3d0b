"""diffusers' autoencoders without the rest of it.

Each of diffusers' packages imports all of its modules, and these torch's compiler and scipy: four seconds of every
process, of which the autoencoders need half a one. What is left out is there as soon as anybody asks for it.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch

# Where a module that the autoencoders need lies among many that they do not; and what diffusers' schedulers ask for.
PACKAGES = (
    "scipy.integrate",
    "scipy.stats",
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)


class _Postponed(ModuleType):
    """A package that imports its modules once something is looked for in it which nobody has imported yet."""

    def __getattr__(self, name: str) -> Any:
        if type(self) is not _Postponed or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        object.__setattr__(self, "__class__", ModuleType)
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def _postpone(name: str) -> None:
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    package = module_from_spec(spec)
    package.__class__ = _Postponed
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, package)


@contextmanager
def _compiler_postponed() -> Iterator[None]:
    """Inside, what is only marked for torch's compiler does not import it."""
    _postpone("torch._dynamo")
    compiler: Any = sys.modules["torch._dynamo"]
    if isinstance(compiler, _Postponed):
        vars(compiler).update(allow_in_graph=_unmarked, disable=_unmarked)
    try:
        yield
    finally:
        if isinstance(compiler, _Postponed):
            del sys.modules["torch._dynamo"], torch._dynamo


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    return (lambda inner: inner) if function is None else function


class _Distributions(Mapping[str, list[str]]):
    """``packages_distributions()``, for which all that is installed is read, once something is looked for in it."""

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        return metadata.packages_distributions()

    def __getitem__(self, package: str) -> list[str]:
        return self._found[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@contextmanager
def _distributions_postponed() -> Iterator[None]:
    """Inside, nobody reads what is installed only to have it at hand."""
    read = metadata.packages_distributions
    metadata.packages_distributions = _Distributions
    try:
        yield
    finally:
        metadata.packages_distributions = read


with _compiler_postponed(), _distributions_postponed():
    for _name in PACKAGES:
        _postpone(_name)
    from diffusers.models.autoencoders.autoencoder_asym_kl import AsymmetricAutoencoderKL
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel

__all__ = ["AsymmetricAutoencoderKL", "AutoencoderDC", "AutoencoderKL", "AutoencoderTiny", "VQModel"]
