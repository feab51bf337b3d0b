"""Metrics of what the latents tell: of labels, and of the factors of variation that images were made of.

Latents are those of the mode, pooled as the classification head pools them: (B, D). Nothing here draws
from the global random generators. scikit-learn is imported where it is used: that takes a second.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftae.engine.autoencoder import pooled
from ftae.engine.batches import val_batches
from ftae.engine.judged import EvalInputs, Subject
from ftae.errors import FtaeError

PROBE_IMAGES = 2000  # training images that the probe is fitted on, at most
BINS = 20  # of equal width, between the extremes of a latent
TREES = 50

Table = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class LinearProbe:
    """How often a linear classifier on the latents is right (Alain & Bengio 2016).

    Multinomial logistic regression (scikit-learn, C = 1) on standardised latents, fitted on the first labelled
    training images, whose order is that of a hash of their names.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._latents: list[Table] = []
        self._labels: list[Numbers] = []

    def update(self, x: EvalInputs) -> None:
        if x.labels is None:
            raise FtaeError("linear_probe needs labels: put the images of each class into a sub-folder of data.val")
        self._latents.append(_table(x.encoding.mode))
        self._labels.append(x.labels.cpu().numpy())

    def compute(self) -> float:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        latents, labels = _stacked(self._latents), np.concatenate(self._labels)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(*self._fitted_on())
        return float(probe.score(latents[labels >= 0], labels[labels >= 0]))

    @torch.no_grad()
    def _fitted_on(self) -> tuple[Table, Numbers]:
        subject, train = self._subject, self._subject.train
        if train.labels is None:
            raise FtaeError("linear_probe needs labels: put the images of each class into a sub-folder of data.train")
        rows = np.flatnonzero(train.labels >= 0)[:PROBE_IMAGES]
        if len(np.unique(train.labels[rows])) < 2:
            raise FtaeError("linear_probe needs training images of at least 2 classes")
        spec, autoencoder = subject.spec, subject.autoencoder
        batches = val_batches(train.taken(rows), spec.data, batch_size=spec.batch_size, device=subject.device)
        latents = [_table(autoencoder.encode(autoencoder.to_range(b.inputs), b.labels).mode) for b in batches]
        return _stacked(latents), train.labels[rows]


class _OfFactors:
    """Collects latents (N, D) and the factors (N, F) behind their images."""

    def __init__(self) -> None:
        self._latents: list[Table] = []
        self._factors: list[Numbers] = []

    def update(self, x: EvalInputs) -> None:
        if x.factors is None:
            raise FtaeError("mig and dci need images whose factors of variation are known: those of data.source shapes")
        self._latents.append(_table(x.encoding.mode))
        self._factors.append(x.factors.numpy())

    def _collected(self) -> tuple[Table, Numbers]:
        """Factors that have the same value everywhere are left out."""
        factors = np.concatenate(self._factors)
        return _stacked(self._latents), factors[:, (factors != factors[0]).any(axis=0)]


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
        return float(np.mean(gaps)) if gaps else 0.0


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
            raise FtaeError("dci needs at least 2 factors that vary over the validation images")
        forests = [RandomForestClassifier(TREES, max_features=None, random_state=0) for _ in factors.T]
        pairs = zip(forests, factors.T, strict=True)
        importances = np.stack([forest.fit(latents, its).feature_importances_ for forest, its in pairs], axis=1)
        if not importances.any():  # every latent is the same for all images
            return 0.0
        rows = importances[importances.any(axis=1)]
        shares = rows / rows.sum(axis=1, keepdims=True)
        entropies = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1) / np.log(shares.shape[1])
        return float(((1.0 - entropies) * rows.sum(axis=1)).sum() / rows.sum())


def _table(latents: Tensor) -> Table:
    table: Table = pooled(latents).double().cpu().numpy()
    return table


def _stacked(parts: list[Table]) -> Table:
    return np.concatenate(parts)
