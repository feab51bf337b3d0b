"""Augmentations change each image by itself, as the papers say, and pass first and second derivatives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftae.engine.tasks.image_transforms import _hue, _looked_up, _placement, ada, diffaugment

PARTS = ("flip", "translation", "geometry", "color", "cutout")
Change = Callable[[Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "diffaugment": lambda x: diffaugment(x, ("color", "translation", "cutout")),
    "ada": lambda x: ada(x, 0.7, PARTS, turns=True),
}


def images(count: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    return 2 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_shapes_stay_and_draws_are_those_of_the_global_generator(change: Change, channels: int) -> None:
    torch.manual_seed(1)
    first, other = change(images(channels=channels)), change(images(channels=channels))
    torch.manual_seed(1)
    assert torch.equal(change(images(channels=channels)), first)
    assert first.shape == (6, channels, 16, 16)
    assert first.isfinite().all()
    assert not torch.equal(first, other)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_penalty_on_the_gradient_has_a_gradient(change: Change) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    real = images().requires_grad_(True)
    (slope,) = torch.autograd.grad(net(change(real)).sum(), [real], create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.ndim > 1)
    assert float(net[0].weight.grad.abs().sum()) > 0.0


def test_diffaugment_moves_by_at_most_an_eighth() -> None:
    torch.manual_seed(0)
    ones = torch.ones(200, 1, 16, 16)
    moved = diffaugment(ones, ("translation",))
    for axis in (2, 3):
        lost = (moved.amax(5 - axis) == 0).sum((1, 2)).tolist()
        assert set(lost) == {0, 1, 2}
    assert torch.equal(diffaugment(ones, ()), ones)


def test_cutout_removes_at_most_a_quarter() -> None:
    torch.manual_seed(0)
    ones = torch.ones(200, 1, 16, 16)
    removed = (diffaugment(ones, ("cutout",)) == 0).float().mean((1, 2, 3))
    assert 0.0 < removed.min() < removed.max() == 0.25
    assert (ada(ones, 0.5, ("cutout",), turns=False) == 0).any((1, 2, 3)).sum() in range(80, 121)


def test_diffaugment_changes_colors_around_their_means() -> None:
    torch.manual_seed(0)
    grey = torch.full((50, 3, 8, 8), 0.2)
    brighter = diffaugment(grey, ("color",)) - grey  # without contrast and saturation, there is brightness alone
    assert torch.allclose(brighter, brighter[:, :1, :1, :1].expand_as(brighter), atol=1e-6)
    assert -0.5 <= brighter.min() < -0.3
    assert 0.3 < brighter.max() <= 0.5


def test_ada_leaves_images_alone_at_probability_0() -> None:
    assert ada(images(), 0.0, PARTS, turns=True) is not None
    assert torch.equal(ada(images(), 0.0, PARTS, turns=True), images())


def test_ada_flips_half_of_the_chosen_images_exactly() -> None:
    torch.manual_seed(0)
    given = images(count=400)
    made = ada(given, 0.6, ("flip",), turns=False)
    same, mirrored = ((made == x).all(3).all(2).all(1) for x in (given, given.flip(3)))
    assert (same | mirrored).all()
    assert int(mirrored.sum()) in range(96, 145)  # 0.6 / 2 of 400, within 2.5 standard deviations


def test_ada_looks_pixels_up_as_grid_sample_does() -> None:
    torch.manual_seed(0)
    given = images(count=20)
    placement = _placement(given, 0.9, PARTS, turns=True)
    normalised = placement[:, :2].clone()
    normalised[:, :, 2] /= 7.5  # half of the distance between the outer pixels
    grid = F.affine_grid(normalised, list(given.shape), align_corners=True)
    expected = F.grid_sample(given, grid, padding_mode="reflection", align_corners=True)
    assert torch.allclose(_looked_up(given, placement), expected, atol=1e-4)


def test_turns_are_off_unless_asked_for() -> None:
    torch.manual_seed(0)
    upright, turned = (_placement(images(100), 0.9, ("geometry",), turns=turns) for turns in (False, True))
    assert float(upright[:, 0, 1].abs().max()) == 0.0
    assert float(turned[:, 0, 1].abs().max()) > 0.5


def test_a_change_of_hue_keeps_grey_and_luma() -> None:
    rotation = _hue(torch.linspace(-3.0, 3.0, 7))
    color = torch.rand(3, generator=torch.Generator().manual_seed(0))
    turned = rotation @ color
    assert torch.allclose(rotation @ torch.ones(3), torch.ones(7, 3), atol=1e-5)
    assert torch.allclose(turned.mean(1), color.mean().expand(7), atol=1e-5)
    assert torch.allclose(turned.norm(dim=1), color.norm().expand(7), atol=1e-5)
    assert torch.allclose(rotation[3], torch.eye(3), atol=1e-6)
