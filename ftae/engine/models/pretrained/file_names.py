"""The names of tensors in files, where they are those that the authors of a network gave them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FileNames:
    """``tensors``: the name in the network -> the name in the file.

    ``swapped``: tensors of the network whose first axis has its halves the other way round in the file.
    """

    tensors: Mapping[str, str]
    swapped: frozenset[str] = frozenset()

    @classmethod
    def of_modules(cls, net: nn.Module, modules: Mapping[str, str], swapped: frozenset[str] = frozenset()) -> Self:
        """The names of all tensors of ``net`` by those of the modules that hold them."""
        names = {
            name: theirs + name.removeprefix(ours)
            for name in net.state_dict()
            for ours, theirs in modules.items()
            if name.startswith(f"{ours}.")
        }
        return cls(names, swapped)

    @classmethod
    def of_parts(cls, net: nn.Module, parts: Mapping[str, str]) -> Self:
        """The names of the tensors of parts of ``net``, behind a prefix for each part."""
        tensors: dict[str, str] = {}
        swapped: set[str] = set()
        for part, prefix in parts.items():
            inner = net.get_submodule(part)
            names = file_names(inner) or cls({name: name for name in inner.state_dict()})
            tensors |= {f"{part}.{ours}": f"{prefix}.{theirs}" for ours, theirs in names.tensors.items()}
            swapped |= {f"{part}.{ours}" for ours in names.swapped}
        return cls(tensors, frozenset(swapped))

    def to_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the network, as they are in the file."""
        return {self.tensors[name]: self._turned(name, tensor) for name, tensor in state.items()}

    def from_file(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The reverse of ``to_file``. Tensors under other names stay as they are."""
        ours = {theirs: name for name, theirs in self.tensors.items()}
        return {
            ours.get(name, name): self._turned(ours[name], tensor) if name in ours else tensor
            for name, tensor in state.items()
        }

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2)[::-1]) if name in self.swapped else tensor


class NamedInFiles:
    """Beside ``nn.Module``: a network whose tensors have other names in files."""

    def file_names(self) -> FileNames:
        raise NotImplementedError


def file_names(net: nn.Module) -> FileNames | None:
    """The names of the tensors of ``net`` in files; None where they are the same."""
    return net.file_names() if isinstance(net, NamedInFiles) else None
