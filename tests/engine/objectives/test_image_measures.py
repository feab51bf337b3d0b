"""Sharpness is told from blur, noise and flatness, wherever in the image the edges are."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftae.engine.objectives.image_measures import EdgeDistance, ExplainedVariance, Sharpness, gradient_magnitudes


@dataclass(frozen=True)
class Pair:
    target: Tensor
    reconstruction: Tensor


def found(target: Tensor, reconstruction: Tensor) -> tuple[float, float]:
    """Sharpness and edge distance."""
    each = Sharpness(), EdgeDistance()
    for metric in each:
        metric.update(Pair(target, reconstruction))
    return each[0].compute(), each[1].compute()


def textures() -> Tensor:
    noise = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, stride=1, padding=1).clamp(0, 1).round()


def test_the_magnitude_of_a_gradient_by_hand() -> None:
    image = torch.tensor([[[[0.0, 0.3], [0.4, 0.9]]]])
    assert gradient_magnitudes(image).tolist() == [[pytest.approx(0.5)]]


def test_by_hand() -> None:
    steep, half = torch.tensor([[[[0.0, 0.8], [0.0, 0.8]]]]), torch.tensor([[[[0.0, 0.2], [0.0, 0.2]]]])
    assert found(steep, half) == pytest.approx((0.25, 0.75))
    assert found(half, steep) == pytest.approx((4.0, 3.0))


def test_what_is_sharp_blurred_noisy_and_flat() -> None:
    sharp = textures()
    blurred = F.avg_pool2d(sharp, 5, stride=1, padding=2, count_include_pad=False)
    noisy = (blurred + 0.3 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    flat = sharp.mean((2, 3), keepdim=True).expand_as(sharp)
    assert found(sharp, sharp) == (1.0, 0.0)
    assert found(sharp, flat) == pytest.approx((0.0, 1.0), abs=1e-5)
    # Mirrored, its edges are elsewhere, and as sharp but for the border.
    mirrored = found(sharp, sharp.flip(3))
    assert abs(mirrored[0] - 1.0) < 0.05
    assert mirrored[1] < 0.1
    blur, noise = found(sharp, blurred), found(sharp, noisy)
    assert blur[0] < 0.7
    assert blur[1] > 0.3
    # Noise makes up for the mean gradient, and not for where the gradients are.
    assert noise[0] > blur[0] + 0.2
    assert noise[1] > 0.3


def test_flat_targets_do_not_divide_by_zero() -> None:
    flat = torch.full((2, 1, 8, 8), 0.5)
    assert found(flat, flat) == (1.0, 0.0)
    assert found(flat, textures()[:2, :1, :8, :8]) == (math.inf, math.inf)


def test_images_of_their_own_mean_explain_nothing() -> None:
    target = textures()
    mean = target.mean((2, 3), keepdim=True).expand_as(target)
    for reconstruction, share in [(target, 1.0), (mean, 0.0), (1 - target, 0.0), (0.5 * (target + mean), 0.75)]:
        explained = ExplainedVariance()
        explained.update(Pair(target, reconstruction))
        assert explained.compute() == pytest.approx(share, abs=1e-6)
