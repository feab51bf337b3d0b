"""Multi-scale structural similarity: Wang's values, best for identical images, with a gradient wherever one may be."""

from itertools import pairwise

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ftae.engine.similarity import ms_ssim


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 176, 176, generator=torch.Generator().manual_seed(0))


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
