"""Sharp images are told from blurred, noisy and flat ones; structural similarity has the published values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from ftae.engine.objectives.image_measures import EdgeDistance, Sharpness, gradient_magnitudes, ms_ssim, ssim


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


def test_sharpness_and_edge_distance_by_hand() -> None:
    steep, half = torch.tensor([[[[0.0, 0.8], [0.0, 0.8]]]]), torch.tensor([[[[0.0, 0.2], [0.0, 0.2]]]])
    assert found(steep, half) == pytest.approx((0.25, 0.75))
    assert found(half, steep) == pytest.approx((4.0, 3.0))


def test_sharp_blurred_noisy_and_flat_images_differ() -> None:
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


# ----------------------------------------------------------------------------- structural similarity


def noisy(images: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 176, 176, generator=torch.Generator().manual_seed(0))


def with_gradient(
    similarity: Callable[..., Any], made: Tensor, target: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The values (B,), and the gradient of their mean to ``made``."""
    made = made.clone().requires_grad_()
    values = similarity(made, target, **options)
    return values.detach(), torch.autograd.grad(values.mean(), made)[0]


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("shape", [(4, 1, 6, 9), (3, 3, 16, 16), (2, 3, 32, 40), (2, 1, 33, 64)])
def test_one_scale_is_that_of_torchmetrics(shape: tuple[int, ...], sigma: float) -> None:
    target = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    ours = with_gradient(ssim, noisy(target, sigma), target)
    options = {"data_range": 1.0, "reduction": "none"}
    theirs = with_gradient(structural_similarity_index_measure, noisy(target, sigma), target, **options)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_several_scales_is_that_of_torchmetrics(channels: int) -> None:
    target = torch.rand(2, channels, 180, 177, generator=torch.Generator().manual_seed(0))
    ours = with_gradient(ms_ssim, noisy(target, 0.3), target)
    options = {"data_range": 1.0, "reduction": "none"}
    theirs = with_gradient(multiscale_structural_similarity_index_measure, noisy(target, 0.3), target, **options)
    assert torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-6)
    assert torch.allclose(ours[1], theirs[1], rtol=0, atol=1e-5 * theirs[1].abs().max().item())


def test_several_scales_are_those_of_torchmetrics_where_these_have_a_value(images: Tensor) -> None:
    other = noisy(images, 0.3)
    theirs = multiscale_structural_similarity_index_measure(images, other, data_range=1.0, reduction="none")
    assert torch.allclose(ms_ssim(images, other), theirs)


def test_similarity_is_1_for_identical_images_and_falls_with_noise(images: Tensor) -> None:
    values = [ms_ssim(images, noisy(images, sigma)) for sigma in (0.0, 0.05, 0.2, 0.8)]
    assert torch.allclose(values[0], torch.ones(3))
    assert all((less < more).all() for more, less in pairwise(values))


def test_images_of_a_batch_do_not_affect_each_other(images: Tensor) -> None:
    other = noisy(images, 0.3)
    alone = torch.cat([ms_ssim(a[None], b[None]) for a, b in zip(images, other, strict=True)])
    assert torch.allclose(ms_ssim(images, other), alone, rtol=1e-5)


def test_opposite_and_constant_images_have_a_value_and_a_gradient(images: Tensor) -> None:
    for other in (1 - images, torch.full_like(images, 0.5)):
        other.requires_grad_()
        value = ms_ssim(other, images)
        assert ((value >= 0) & (value < 0.2)).all()
        (gradient,) = torch.autograd.grad(value.sum(), other)
        assert gradient.isfinite().all()
