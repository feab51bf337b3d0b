"""How latents and codes are spread over a whole set of images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ftae.engine.autoencoder import Posterior
from ftae.engine.judged import EvalInputs, Subject
from ftae.engine.running import FirstRows, Spread
from ftae.errors import FtaeError

ACTIVE_VARIANCE = 0.01
ACTIVE_SHARE = 0.01
POSITION_IMAGES = 2000  # that positions of codes are compared on, at most


def posterior_of(x: EvalInputs) -> Posterior:
    if x.encoding.posterior is None:
        raise FtaeError("kl and active_units need a posterior: the model's encode must return (mean, logvar)")
    return x.encoding.posterior


class ActiveUnits:
    """Counts latent units that carry information."""

    def __init__(self) -> None:
        self._means = Spread()

    def update(self, x: EvalInputs) -> None:
        self._means.update(posterior_of(x).shift())

    def compute(self) -> float:
        variance = self._means.variance()
        by_unit = variance.reshape(len(variance), -1).mean(1)
        return float(by_unit.gt(ACTIVE_VARIANCE).sum())


class LatentDrift:
    """How far the latents have moved from those of the model as it was given; not a number where these are all one."""

    def __init__(self, subject: Subject) -> None:
        assert subject.companions.reference is not None
        self._reference = subject.companions.reference
        self._before = Spread()
        self._squares, self._count = 0.0, 0

    def update(self, x: EvalInputs) -> None:
        before = self._reference.encode(self._reference.to_range(x.given), x.labels).mode.double()
        self._squares += float((x.encoding.mode.double() - before).square().sum())
        self._before.update(before.flatten())
        self._count += before.numel()

    def compute(self) -> float:
        variance = float(self._before.variance())
        return self._squares / self._count / variance if variance > 0.0 else math.nan


class CodeCounts:
    """How often each code of each codebook is chosen, over the whole set: a batch alone bounds its perplexity."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []

    def update(self, x: EvalInputs) -> None:
        counts = [torch.bincount(c.indices.flatten(), minlength=c.num_codes).cpu() for c in x.encoding.codes]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)] if self._counts else counts

    def least(self, of: Callable[[Tensor], Tensor]) -> float:
        """The least of what ``of`` makes of the int64 (codes,) counts of each codebook."""
        return min(float(of(counts)) for counts in self._counts)


class CodebookUsage(CodeCounts):
    """Share of the codes that are chosen at all."""

    def compute(self) -> float:
        return self.least(lambda counts: counts.gt(0).double().mean())


class Perplexity(CodeCounts):
    """exp of the entropy of the distribution over codes."""

    def compute(self) -> float:
        return self.least(lambda counts: torch.special.entr(counts.double() / counts.sum()).sum().exp())


class ActivePositions:
    """Counts positions where more than 1 % of the first images have another code than the commonest there.

    Of several codebooks the least. Where there is none, the latents tell hardly any image from another. One
    code alone is rarely what is left by then: at the borders, where convolutions see padding, it is another.
    """

    def __init__(self) -> None:
        self._levels: list[FirstRows] = []

    def update(self, x: EvalInputs) -> None:
        self._levels = self._levels or [FirstRows(POSITION_IMAGES) for _ in x.encoding.codes]
        for level, codes in zip(self._levels, x.encoding.codes, strict=True):
            level.update(codes.indices.int())

    def compute(self) -> float:
        levels = (level.rows() for level in self._levels)
        others = [level.ne(level.mode(dim=0).values).double().mean(0) for level in levels]
        return float(min(share.gt(ACTIVE_SHARE).sum() for share in others))
