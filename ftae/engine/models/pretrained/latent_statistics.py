"""What a model records of its latents, by which diffusion models bring them to unit variance.

A kind of record is one class, and one entry of ``KINDS``.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


class LatentStatistics(ABC):
    """A record of one kind: read, computed anew from batches, and written.

    Args:
        net: a network of diffusers that ``is_of``.
    """

    NAMES: ClassVar[tuple[str, ...]]
    """What is recorded, by the names of the settings or buffers."""

    def __init__(self, net: Any) -> None:
        self.net = net

    @classmethod
    @abstractmethod
    def is_of(cls, net: Any) -> bool:
        """Whether ``net`` has a record of this kind."""

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """What ``net`` has recorded, by name."""

    @abstractmethod
    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Add a batch: mean and variance of its posterior, or its latents and zeros; both (B, C, h, w)."""

    @abstractmethod
    def write(self) -> None:
        """Record mean and variance of samples of the posterior in ``net``, over all batches."""


class OneScale(LatentStatistics):
    """``scaling_factor`` in the configuration, and ``shift_factor`` where it is set: one over the standard deviation of
    all elements (as for the first batch in Rombach et al. 2022, section G), and their mean.
    """

    NAMES = ("scaling_factor", "shift_factor")

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self._total, self._squares, self._count = 0.0, 0.0, 0

    @classmethod
    def is_of(cls, net: Any) -> bool:
        return "scaling_factor" in net.config

    def read(self) -> dict[str, Any]:
        return _recorded(self.net.config, self.NAMES)

    def update(self, mean: Tensor, variance: Tensor) -> None:
        self._total += float(mean.double().sum())
        self._squares += float((mean.double().square() + variance.double()).sum())
        self._count += mean.numel()

    def write(self) -> None:
        mean = self._total / self._count
        found = {"scaling_factor": (self._squares / self._count - mean**2) ** -0.5, "shift_factor": mean}
        self.net.register_to_config(**{name: float(found[name]) for name in self.read()})


class _Channels(LatentStatistics):
    """The kinds with a mean and a variance for each channel."""

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self._total: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0
        self._count = 0

    def update(self, mean: Tensor, variance: Tensor) -> None:
        self._total = self._total + mean.double().sum((0, 2, 3))
        self._squares = self._squares + (mean.double().square() + variance.double()).sum((0, 2, 3))
        self._count += mean.numel() // mean.shape[1]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (C,)."""
        mean = torch.as_tensor(self._total) / self._count
        return mean, torch.as_tensor(self._squares) / self._count - mean.square()


class PerChannel(_Channels):
    """``latents_mean`` and ``latents_std`` in the configuration: a number for each channel.

    Beside them, ``scaling_factor`` is the standard deviation that the diffusion model wants, and stays.
    """

    NAMES = ("latents_mean", "latents_std")

    @classmethod
    def is_of(cls, net: Any) -> bool:
        return all(net.config.get(name) is not None for name in cls.NAMES)

    def read(self) -> dict[str, Any]:
        return _recorded(self.net.config, self.NAMES)

    def write(self) -> None:
        mean, variance = self.moments()
        self.net.register_to_config(latents_mean=mean.tolist(), latents_std=variance.sqrt().tolist())


class PackedNorm(_Channels):
    """The buffers of ``bn``, a batch norm over latents whose patches are packed into channels, as in Flux.2."""

    NAMES = ("bn.running_mean", "bn.running_var")

    @classmethod
    def is_of(cls, net: Any) -> bool:
        return "patch_size" in net.config and isinstance(getattr(net, "bn", None), torch.nn.BatchNorm2d)

    def read(self) -> dict[str, Any]:
        return {name: self.net.state_dict()[name] for name in self.NAMES}

    def update(self, mean: Tensor, variance: Tensor) -> None:
        super().update(*(packed(tensor, self.net.config.patch_size) for tensor in (mean, variance)))

    @torch.no_grad()
    def write(self) -> None:
        for buffer, values in zip((self.net.bn.running_mean, self.net.bn.running_var), self.moments(), strict=True):
            buffer.copy_(values)


def packed(latents: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C, h, w) as (B, C * p * q, h // p, w // q): the channels, rows and columns of each patch, in this order."""
    (p, q), (b, c) = patch, latents.shape[:2]
    h, w = latents.shape[2] // p, latents.shape[3] // q
    patches = latents[:, :, : h * p, : w * q].reshape(b, c, h, p, w, q)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(b, c * p * q, h, w)


def _recorded(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if config.get(name) is not None}


KINDS: tuple[type[LatentStatistics], ...] = (PackedNorm, PerChannel, OneScale)  # the first that a network has


def statistics_of(net: Any) -> LatentStatistics | None:
    """The record of a network of diffusers, with no batch added; None for one that has none."""
    return next((kind(net) for kind in KINDS if kind.is_of(net)), None)
