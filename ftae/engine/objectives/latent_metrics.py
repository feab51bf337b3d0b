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
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext, FirstRows, RunningVariance
from ftae.errors import FtaeError

ACTIVE_VARIANCE = 0.01
PROBE_IMAGES = 2000  # most training images that the probe is fitted on
FACTOR_IMAGES = 10_000  # most validation images on which mig and dci are computed
BINS = 20  # of equal width, between the extremes of a latent
TREES = 50
Table = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def posterior_of(x: EvalBatch) -> Posterior:
    """The posterior of a batch.

    Raises:
        FtaeError: the model has none.
    """
    if x.encoding.posterior is None:
        raise FtaeError("kl and active_units need a posterior: the model's encode must return (mean, logvar)")
    return x.encoding.posterior


class ActiveUnits:
    """Number of latent units that carry information."""

    def __init__(self) -> None:
        self._means = RunningVariance()

    def update(self, x: EvalBatch) -> None:
        self._means.update(posterior_of(x).shift())

    def compute(self) -> float:
        variance = self._means.variance()
        by_unit = variance.reshape(len(variance), -1).mean(1)
        return float(by_unit.gt(ACTIVE_VARIANCE).sum())


class LatentDrift:
    """Distance of the latents from those of the untuned model; NaN where all latents of that are equal."""

    def __init__(self, context: EvalContext) -> None:
        assert context.auxiliary.reference is not None
        self._reference = context.auxiliary.reference
        self._before = RunningVariance()
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
    """How often each code of each codebook is used, over the whole set: a batch bounds its own perplexity."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []

    def update(self, x: EvalBatch) -> None:
        counts = [torch.bincount(c.indices.flatten(), minlength=c.num_codes).cpu() for c in x.encoding.codes]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)] if self._counts else counts

    def least(self, of: Callable[[Tensor], Tensor]) -> float:
        """The least value of ``of``, a function of the int64 (codes,) counts of one codebook."""
        return min(float(of(counts)) for counts in self._counts)


class CodebookUsage(CodeCounts):
    """Share of the codes that are used at all."""

    def compute(self) -> float:
        return self.least(lambda counts: counts.gt(0).double().mean())


class Perplexity(CodeCounts):
    """exp of the entropy of the distribution over codes."""

    def compute(self) -> float:
        return self.least(lambda counts: torch.special.entr(counts.double() / counts.sum()).sum().exp())


def probe_rows(labels: Numbers) -> Numbers:
    """The indices of the labelled training images that the probe is fitted on."""
    return np.flatnonzero(labels >= 0)[:PROBE_IMAGES]


class LinearProbe:
    """Accuracy of a linear classifier on the latents (Alain & Bengio 2016).

    Multinomial logistic regression (scikit-learn, C = 1) on standardised latents, fitted on the first labelled
    training images, in the order of the hashes of their names.
    """

    def __init__(self, context: EvalContext) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        latents, labels = _training_latents(context)
        self._probe, self._right, self._count = None, 0, 0
        if np.isfinite(latents).all():
            self._probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            with warnings.catch_warnings(action="ignore"):  # without convergence, the last iteration counts
                self._probe.fit(latents, labels)

    def update(self, x: EvalBatch) -> None:
        assert x.labels is not None
        labels = x.labels.cpu().numpy()
        labelled = labels >= 0
        if self._probe is not None and labelled.any():
            predicted = self._probe.predict(_table(x.encoding.mode).numpy()[labelled])
            self._right += int((predicted == labels[labelled]).sum())
            self._count += len(predicted)

    def compute(self) -> float:
        return self._right / self._count if self._count else math.nan


@torch.no_grad()
def _training_latents(context: EvalContext) -> tuple[Table, Numbers]:
    spec, autoencoder, train = context.spec, context.autoencoder, context.train
    assert train.labels is not None
    rows = probe_rows(train.labels)
    batches = val_batches(train.subset(rows), spec.data, batch_size=spec.batch_size, device=context.device)
    latents = [_table(autoencoder.encode(autoencoder.to_range(b.inputs), b.labels).mode) for b in batches]
    return torch.cat(latents).numpy(), train.labels[rows]


class _FactorMetric:
    """Collects latents (N, D) and the factors of variation (N, F) behind their images."""

    def __init__(self) -> None:
        self._latents, self._factors = FirstRows(FACTOR_IMAGES), FirstRows(FACTOR_IMAGES)

    def update(self, x: EvalBatch) -> None:
        assert x.factors is not None
        self._latents.update(_table(x.encoding.mode))
        self._factors.update(x.factors)

    def _collected(self) -> tuple[Table, Numbers]:
        """Latents and factors; a factor with one value everywhere is left out."""
        factors = self._factors.rows().numpy()
        return self._latents.rows().numpy(), factors[:, varying(factors)]


def varying(factors: Numbers) -> npt.NDArray[np.bool_]:
    """Which of the factors (N, F) have more than one value: (F,)."""
    found: npt.NDArray[np.bool_] = (factors != factors[:1]).any(axis=0)
    return found


class Mig(_FactorMetric):
    """Mutual information gap (Chen et al. 2018).

    For each factor: the mutual information of the best latent less that of the second best, over the entropy of the
    factor; the mean over factors. Mutual information is estimated from counts in ``BINS`` bins.
    """

    def compute(self) -> float:
        """The mean gap, 0 to 1; NaN if no factor varies."""
        from sklearn.metrics import mutual_info_score

        latents, factors = self._collected()
        binned = [np.digitize(column, np.histogram_bin_edges(column, BINS)[1:-1]) for column in latents.T]
        gaps = []
        for factor in factors.T:
            shared = [mutual_info_score(factor, latent) for latent in binned]
            best, second, *_ = sorted([*shared, 0.0, 0.0], reverse=True)
            gaps.append((best - second) / mutual_info_score(factor, factor))
        return float(np.mean(gaps)) if gaps else math.nan


class Dci(_FactorMetric):
    """Disentanglement of Eastwood & Williams (2018): whether each latent informs about one factor alone.

    A random forest (scikit-learn, ``TREES`` trees, every latent tried at each split, seed 0) predicts each factor
    from the latents. Each latent has a row in the importances (D, F); the value is the mean over rows of 1 less the
    entropy of the row to the base F, weighted by the share of the row in all importance.
    """

    def compute(self) -> float:
        """The disentanglement, 0 to 1; NaN if fewer than two factors vary, 0 if no latent does."""
        from sklearn.ensemble import RandomForestClassifier

        latents, factors = self._collected()
        if factors.shape[1] < 2:
            return math.nan
        forests = [RandomForestClassifier(TREES, max_features=None, random_state=0) for _ in factors.T]
        pairs = zip(forests, factors.T, strict=True)
        importances = np.stack([forest.fit(latents, factor).feature_importances_ for forest, factor in pairs], axis=1)
        if not importances.any():  # every latent has one value for all images
            return 0.0
        rows = importances[importances.any(axis=1)]
        shares = rows / rows.sum(axis=1, keepdims=True)
        entropies = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1) / np.log(shares.shape[1])
        return float(((1.0 - entropies) * rows.sum(axis=1)).sum() / rows.sum())


def _table(latents: Tensor) -> Tensor:
    """Pooled, in float64, on the CPU: (B, D)."""
    return pooled(latents).double().cpu()
