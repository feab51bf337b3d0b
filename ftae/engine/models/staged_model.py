"""StagedModel: a network as an ordered list of named stages, which are frozen, trained and reported by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

from torch import Tensor, nn

from ftae.errors import FtaeError

Group = Literal["encoder", "bottleneck", "decoder", "head", "mapping", "synthesis", "ab", "ba", "discriminator"]
StageFn = Callable[[Tensor], Tensor]  # acts on each image of a batch by itself


@dataclass(frozen=True)
class Stage:
    """A named piece of the data flow. Every parameter belongs to exactly one stage.

    ``new``: a pretrained model has no weights for this stage. ``idle``: the stage takes no part in encoding and
    decoding, so nothing trains it. ``line``: which of several chains the stage is in, where they run side by side.
    ``run``: the function of the stage inside a chain, (B, ...) to (B, ...); None where the stage is idle or the network
    is no chain.
    """

    name: str
    group: Group
    modules: tuple[nn.Module, ...]
    new: bool = False
    idle: bool = False
    line: str = ""
    run: StageFn | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules:
            yield from module.parameters()

    def matches(self, pattern: str) -> bool:
        """Whether ``pattern`` is the group of this stage, or a glob that fits its name."""
        return pattern == self.group or fnmatchcase(self.name, pattern)


def run_stages(stages: Iterable[Stage], x: Tensor) -> Tensor:
    """Run the stages of a chain on ``x``, one after the other."""
    for stage in stages:
        if stage.run is not None:
            x = stage.run(x)
    return x


class StagedModel(nn.Module):
    """A network and its stages in data-flow order.

    Args:
        net: the wrapped network, in its own format.
        stages: every parameter of ``net``, in the order in which data passes; a head comes last.
        save: writes ``net`` into a folder in the format of its family.
    """

    def __init__(self, net: nn.Module, stages: Iterable[Stage], *, save: Callable[[Path], None]) -> None:
        super().__init__()
        self.net = net
        self.stages = list(stages)
        self._save = save
        self._frozen: tuple[Stage, ...] = ()
        self._frozen_by_net = {id(p) for p in net.parameters() if not p.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the network to ``folder`` so that ``pretrained`` can name that folder."""
        self._save(folder)

    def freeze(self, depth: int, patterns: tuple[str, ...]) -> None:
        """Freeze the first ``depth`` stages, those that match a pattern, idle ones, and those the network had frozen.

        A frozen stage has no gradient, is not in the optimizer (see ``trainable_stages``), and stays in eval mode
        through ``train()``: its dropout is off and its buffers (running statistics, codes) do not move. A head does
        not count towards ``depth``; where chains run side by side, each has its first ``depth`` stages frozen.

        Raises:
            FtaeError: ``depth`` exceeds the number of stages, a pattern matches none, or nothing is left to train.
        """
        in_order = [stage for stage in self.stages if stage.group != "head"]
        lines = [[s for s in in_order if s.line == line] for line in dict.fromkeys(s.line for s in in_order)]
        most = max(map(len, lines))
        if depth > most:
            counted = "stages" if len(lines) == 1 else "stages of each direction"
            raise FtaeError(f"freeze_depth must be at most {most}, the number of {counted}, got {depth}")
        for pattern in patterns:
            if not any(stage.matches(pattern) for stage in self.stages):
                raise FtaeError(f"freeze: {pattern!r} matches no stage. Stages: {self._stage_names()}")
        first = [stage for line in lines for stage in line[:depth]]
        chosen = [s for s in self.stages if s.idle or s in first or any(s.matches(p) for p in patterns)]
        frozen = [s for s in self.stages if s in chosen or self.came_frozen(s)]
        if not any(p.requires_grad for s in self.stages if s not in frozen for p in s.parameters()):
            if not chosen:
                raise FtaeError("nothing is left to train: the module itself has frozen all its parameters")
            raise FtaeError(
                f"freeze_depth {depth} and freeze {list(patterns)} leave nothing to train. "
                f"Stages: {self._stage_names()}"
            )
        self._frozen = tuple(frozen)
        for stage in frozen:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for stage in getattr(self, "_frozen", ()):
            for module in stage.modules:
                module.eval()
        return self

    def trainable_stages(self) -> list[Stage]:
        return [stage for stage in self.stages if stage not in self._frozen]

    def came_frozen(self, part: Stage | nn.Parameter) -> bool:
        """Whether the network itself had frozen a parameter (by ``requires_grad``), or all parameters of a stage."""
        parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        return bool(parameters) and all(id(p) in self._frozen_by_net for p in parameters)

    def _stage_names(self) -> str:
        return ", ".join(stage.name for stage in self.stages)
