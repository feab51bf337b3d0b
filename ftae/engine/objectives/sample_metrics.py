"""Distances between two sets of images by their features (N, D), and what they say of the model that made one of them.

They are not comparable with published values: weights, resizing and scale of the features differ.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

NEIGHBOURS = 3  # of precision and recall
MANIFOLD_IMAGES = 5000  # most images of each set in precision and recall
PAIRED_IMAGES = 200  # most images of each set whose distances from each other are taken
NEAREST_IMAGES = 1000  # most images of each set that are looked for among the training images
ROWS_AT_ONCE = 1000  # of a matrix of distances
EPSILON = 1e-6  # far below the distance of two images, whose features are about 1 a dimension


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between normal distributions of the features (Heusel et al. 2017), at least 0."""
    distance = _frechet(a.shape[1])
    distance.update(a.double(), real=True)
    distance.update(b.double(), real=False)
    return max(0.0, float(distance.compute()))


def _frechet(num_features: int) -> "FrechetInceptionDistance":
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds

    identity = nn.Identity()  # its input holds features already
    identity.num_features = num_features  # type: ignore[assignment]
    return FrechetInceptionDistance(feature=identity)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, unbiased, so it may be below 0.

    As in KID (Binkowski et al. 2018), but over all pairs of images and not the mean over subsets, which scatters more.
    """
    a, b = a.double(), b.double()
    within = [(_sum_of_kernel(x, x) - _own_kernel(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return sum(within) - 2.0 * _sum_of_kernel(a, b) / (len(a) * len(b))


def _sum_of_kernel(a: Tensor, b: Tensor) -> float:
    return sum(float(_cubed(part @ b.T / a.shape[1] + 1.0).sum()) for part in _parts(a))


def _own_kernel(x: Tensor) -> float:
    """The sum over pairs of a row with itself."""
    return float(_cubed(x.square().mean(1) + 1.0).sum())


def _cubed(x: Tensor) -> Tensor:
    return x * x * x


def share_inside(points: Tensor, support: Tensor) -> float:
    """The share of ``points`` that lie in the balls around ``support`` (Kynkäänniemi et al. 2019), 0..1.

    Each ball reaches to the third nearest neighbour. Precision is that of samples in the balls around real images,
    recall the reverse. Of the first rows of each, equally many.
    """
    count = min(len(points), len(support), MANIFOLD_IMAGES)
    points, support = points[:count].double(), support[:count].double()
    # The nearest row of all is the row itself.
    radii = torch.cat([torch.cdist(part, support).kthvalue(NEIGHBOURS + 1).values for part in _parts(support)])
    inside = [torch.cdist(part, support).le(radii).any(1) for part in _parts(points)]
    return float(torch.cat(inside).double().mean())


def relative_spread(made: Tensor, real: Tensor) -> float:
    """The mean distance between two different rows of ``made`` over that of ``real``; 1 is as diverse."""
    spread, wanted = (torch.pdist(x[:PAIRED_IMAGES].double()).mean() for x in (made, real))
    return float((spread + EPSILON) / (wanted + EPSILON))


def relative_novelty(made: Tensor, real: Tensor, train: Tensor) -> float:
    """The mean distance of ``made`` to the nearest training image over that of ``real``; towards 0 it copies."""
    novelty, wanted = (_to_nearest(x[:NEAREST_IMAGES].double(), train.double()) for x in (made, real))
    return float((novelty + EPSILON) / (wanted + EPSILON))


def _to_nearest(points: Tensor, others: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, others).amin(1) for part in _parts(points)]).mean()


def _parts(rows: Tensor) -> Sequence[Tensor]:
    return torch.split(rows, ROWS_AT_ONCE)
