"""What metrics keep of the images they are shown: sums, or the first rows. Neither grows with the validation set."""

import torch
from torch import Tensor


class Spread:
    """The variance over all rows it is shown, from sums in float64.

    Sums are of the distance from the first row: what does not vary has a variance of exactly 0.
    """

    def __init__(self) -> None:
        self._count = 0

    def update(self, rows: Tensor) -> None:
        """Rows (B, ...)."""
        rows = rows.double()
        if self._count == 0:
            self._first = rows[0].clone()
            self._sum, self._squares = torch.zeros_like(self._first), torch.zeros_like(self._first)
        distance = rows - self._first
        self._sum += distance.sum(0)
        self._squares += distance.square().sum(0)
        self._count += len(rows)

    def variance(self) -> Tensor:
        """Of each element (...), of the population."""
        return (self._squares / self._count - (self._sum / self._count).square()).clamp_min(0.0)


class FirstRows:
    """The first ``most`` rows it is shown, on the CPU."""

    def __init__(self, most: int) -> None:
        self._parts: list[Tensor] = []
        self._room = most

    def update(self, rows: Tensor) -> None:
        """Rows (B, ...)."""
        if self._room > 0:
            self._parts.append(rows[: self._room].cpu())
            self._room -= len(self._parts[-1])

    def rows(self) -> Tensor:
        return torch.cat(self._parts)
