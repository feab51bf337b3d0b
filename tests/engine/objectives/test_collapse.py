"""Collapse indicators fall to 0 once latents tell no image from another, or reconstructions explain nothing."""

from dataclasses import dataclass

import pytest
import torch
from builders import run_spec
from torch import Tensor

from ftae.engine.models.autoencoder import Codes, Encoding, Posterior
from ftae.engine.objectives.eval_batch import EvalBatch
from ftae.engine.objectives.metrics import CollapseDetector, ExplainedVariance
from ftae.errors import Reason


@dataclass(frozen=True)
class Pair:
    target: Tensor
    reconstruction: Tensor


def encoded(encoding: Encoding) -> EvalBatch:
    images = torch.zeros(len(encoding.latents), 1, 16, 16)
    return EvalBatch(images, images, images, encoding, None, None)


def coded(*levels: list[list[int]]) -> EvalBatch:
    """One image for each row of indices; one codebook for each level."""
    codes = tuple(Codes(torch.tensor(rows), 8, torch.zeros(()), None) for rows in levels)
    return encoded(Encoding(torch.zeros(len(levels[0]), 1), codes=codes))


def test_codes_must_tell_images_apart() -> None:
    detector = CollapseDetector(run_spec())
    detector.update(coded([[0, 1, 2]], [[3, 4, 5]]))  # several codes, but one image
    assert detector.compute() == {"codebook collapse": 0.0}
    detector.update(coded([[1, 2, 2]], [[3, 4, 6]]))
    assert detector.compute() == {"codebook collapse": 1.0}  # the least of two positions and one
    for _ in range(120):
        detector.update(coded([[0, 1, 2]], [[3, 4, 5]]))
    assert detector.compute() == {"codebook collapse": 0.0}  # one image of more than 100


def test_posterior_means_must_tell_images_apart() -> None:
    means = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]])
    detector = CollapseDetector(run_spec())
    detector.update(encoded(Encoding.of(Posterior(means, torch.zeros_like(means)), None)))
    assert detector.compute() == {"posterior collapse": 2.0}


def test_reconstructions_must_explain_variance_where_a_discriminator_trains() -> None:
    detector = CollapseDetector(run_spec(**{"losses.adversarial": 0.1}))
    detector.update(coded([[0], [1]]))
    assert detector.compute() == {Reason.BLOW_UP: 0.0, "codebook collapse": 1.0}


def test_a_model_without_posterior_or_codes_has_no_indicator() -> None:
    detector = CollapseDetector(run_spec())
    detector.update(encoded(Encoding(torch.zeros(2, 1))))
    assert detector.compute() == {}


def test_images_of_one_colour_each_explain_nothing() -> None:
    target = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)).round()
    mean = target.mean((2, 3), keepdim=True).expand_as(target)
    for reconstruction, share in [(target, 1.0), (mean, 0.0), (1 - target, 0.0), (0.5 * (target + mean), 0.75)]:
        explained = ExplainedVariance()
        explained.update(Pair(target, reconstruction))
        assert explained.compute() == pytest.approx(share, abs=1e-6)
