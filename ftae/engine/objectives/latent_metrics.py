"""Metrics of latents: probes, disentanglement, collapse, drift."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftae.engine.data.batches import val_batches
from ftae.engine.models.autoencoder import Posterior, pooled
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext, FirstRows, Spread
from ftae.errors import FtaeError

ACTIVE_VARIANCE = 0.01

ACTIVE_SHARE = 0.01

POSITION_IMAGES = 2000  # that positions of codes are compared on, at most


def posterior_of(x: EvalBatch) -> Posterior:
    if x.encoding.posterior is None:
        raise FtaeError("kl and active_units need a posterior: the model's encode must return (mean, logvar)")
    return x.encoding.posterior


class ActiveUnits:
    """Counts latent units that carry information."""

    def __init__(self) -> None:
        self._means = Spread()

    def update(self, x: EvalBatch) -> None:
        self._means.update(posterior_of(x).shift())

    def compute(self) -> float:
        variance = self._means.variance()
        by_unit = variance.reshape(len(variance), -1).mean(1)
        return float(by_unit.gt(ACTIVE_VARIANCE).sum())


class LatentDrift:
    """How far the latents have moved from those of the model as it was given; not a number where these are all one."""

    def __init__(self, subject: EvalContext) -> None:
        assert subject.auxiliary.reference is not None
        self._reference = subject.auxiliary.reference
        self._before = Spread()
        self._squares, self._count = 0.0, 0

    def update(self, x: EvalBatch) -> None:
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

    def update(self, x: EvalBatch) -> None:
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

    def update(self, x: EvalBatch) -> None:
        self._levels = self._levels or [FirstRows(POSITION_IMAGES) for _ in x.encoding.codes]
        for level, codes in zip(self._levels, x.encoding.codes, strict=True):
            level.update(codes.indices.int())

    def compute(self) -> float:
        levels = (level.rows() for level in self._levels)
        others = [level.ne(level.mode(dim=0).values).double().mean(0) for level in levels]
        return float(min(share.gt(ACTIVE_SHARE).sum() for share in others))


PROBE_IMAGES = 2000  # training images that the probe is fitted on, at most

FACTOR_IMAGES = 10_000  # validation images that factors are told of, at most

BINS = 20  # of equal width, between the extremes of a latent

TREES = 50

Table = npt.NDArray[np.float64]

Numbers = npt.NDArray[np.int64]


def probe_rows(labels: Numbers) -> Numbers:
    """The labelled training images that the probe is fitted on."""
    return np.flatnonzero(labels >= 0)[:PROBE_IMAGES]


class LinearProbe:
    """How often a linear classifier on the latents is right (Alain & Bengio 2016).

    Multinomial logistic regression (scikit-learn, C = 1) on standardised latents, fitted on the first labelled
    training images, whose order is that of a hash of their names.
    """

    def __init__(self, subject: EvalContext) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        latents, labels = _training_latents(subject)
        self._probe, self._right, self._count = None, 0, 0
        if np.isfinite(latents).all():
            self._probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            with warnings.catch_warnings(action="ignore"):  # it did not converge: what it is by then counts
                self._probe.fit(latents, labels)

    def update(self, x: EvalBatch) -> None:
        assert x.labels is not None
        labels = x.labels.cpu().numpy()
        labelled = labels >= 0
        if self._probe is not None and labelled.any():
            said = self._probe.predict(_table(x.encoding.mode).numpy()[labelled])
            self._right += int((said == labels[labelled]).sum())
            self._count += len(said)

    def compute(self) -> float:
        return self._right / self._count if self._count else math.nan


@torch.no_grad()
def _training_latents(subject: EvalContext) -> tuple[Table, Numbers]:
    spec, autoencoder, train = subject.spec, subject.autoencoder, subject.train
    assert train.labels is not None
    rows = probe_rows(train.labels)
    batches = val_batches(train.subset(rows), spec.data, batch_size=spec.batch_size, device=subject.device)
    latents = [_table(autoencoder.encode(autoencoder.to_range(b.inputs), b.labels).mode) for b in batches]
    return torch.cat(latents).numpy(), train.labels[rows]


class _OfFactors:
    """Collects latents (N, D) and the factors (N, F) behind their images."""

    def __init__(self) -> None:
        self._latents, self._factors = FirstRows(FACTOR_IMAGES), FirstRows(FACTOR_IMAGES)

    def update(self, x: EvalBatch) -> None:
        assert x.factors is not None
        self._latents.update(_table(x.encoding.mode))
        self._factors.update(x.factors)

    def _collected(self) -> tuple[Table, Numbers]:
        """Factors that have the same value everywhere are left out."""
        factors = self._factors.rows().numpy()
        return self._latents.rows().numpy(), factors[:, varying(factors)]


def varying(factors: Numbers) -> npt.NDArray[np.bool_]:
    """Which of the factors (N, F) have more than one value: (F,)."""
    found: npt.NDArray[np.bool_] = (factors != factors[:1]).any(axis=0)
    return found


class Mig(_OfFactors):
    """Mutual information gap (Chen et al. 2018).

    For each factor, how much more the latent that tells most of it tells than the next one, over the factor's
    entropy; the mean over factors. Mutual information is that of the counts in ``BINS`` bins.
    """

    def compute(self) -> float:
        from sklearn.metrics import mutual_info_score

        latents, factors = self._collected()
        binned = [np.digitize(column, np.histogram_bin_edges(column, BINS)[1:-1]) for column in latents.T]
        gaps = []
        for factor in factors.T:
            best, second, *_ = sorted([mutual_info_score(factor, its) for its in binned] + [0.0, 0.0], reverse=True)
            gaps.append((best - second) / mutual_info_score(factor, factor))
        return float(np.mean(gaps)) if gaps else math.nan


class Dci(_OfFactors):
    """Disentanglement of Eastwood & Williams (2018): whether each latent is of use for one factor alone.

    A random forest (scikit-learn, ``TREES`` trees, every latent tried at each split, seed 0) tells each factor
    from the latents; of the importances (D, F), 1 less the entropy of each latent's row to the base F, weighted
    by the row's share of all importance.
    """

    def compute(self) -> float:
        from sklearn.ensemble import RandomForestClassifier

        latents, factors = self._collected()
        if factors.shape[1] < 2:
            return math.nan
        forests = [RandomForestClassifier(TREES, max_features=None, random_state=0) for _ in factors.T]
        pairs = zip(forests, factors.T, strict=True)
        importances = np.stack([forest.fit(latents, its).feature_importances_ for forest, its in pairs], axis=1)
        if not importances.any():  # every latent is the same for all images
            return 0.0
        rows = importances[importances.any(axis=1)]
        shares = rows / rows.sum(axis=1, keepdims=True)
        entropies = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1) / np.log(shares.shape[1])
        return float(((1.0 - entropies) * rows.sum(axis=1)).sum() / rows.sum())


def _table(latents: Tensor) -> Tensor:
    """Pooled, in float64, on the CPU: (B, D)."""
    return pooled(latents).double().cpu()
