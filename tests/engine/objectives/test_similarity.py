"""Structural similarity: Wang's values, best for identical images, with a gradient wherever one may be."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from ftae.engine.objectives.image_measures import ms_ssim, ssim


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def images() -> torch.Tensor:
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


def test_it_is_torchmetrics_where_that_has_a_value(images: torch.Tensor) -> None:
    other = noisy(images, 0.3)
    theirs = multiscale_structural_similarity_index_measure(images, other, data_range=1.0, reduction="none")
    assert torch.allclose(ms_ssim(images, other), theirs)


def test_one_for_identical_images_and_less_with_more_noise(images: torch.Tensor) -> None:
    values = [ms_ssim(images, noisy(images, sigma)) for sigma in (0.0, 0.05, 0.2, 0.8)]
    assert torch.allclose(values[0], torch.ones(3))
    assert all((less < more).all() for more, less in pairwise(values))


def test_each_image_is_for_itself(images: torch.Tensor) -> None:
    other = noisy(images, 0.3)
    alone = torch.cat([ms_ssim(a[None], b[None]) for a, b in zip(images, other, strict=True)])
    assert torch.allclose(ms_ssim(images, other), alone, rtol=1e-5)


def test_opposite_and_constant_images_have_a_value_and_a_gradient(images: torch.Tensor) -> None:
    for other in (1 - images, torch.full_like(images, 0.5)):
        other.requires_grad_()
        value = ms_ssim(other, images)
        assert ((value >= 0) & (value < 0.2)).all()
        (gradient,) = torch.autograd.grad(value.sum(), other)
        assert gradient.isfinite().all()
