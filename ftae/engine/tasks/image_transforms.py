"""Random changes of images (B, C, H, W) in [-1, 1], twice differentiable: DiffAugment and the pipe of ADA.

Draws come from torch's global generator on the CPU, one or a few for each image. Outputs are not clamped.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

SHIFT = 1 / 8  # of the side, at most
HOLE = 1 / 2  # side of what cutout removes, as a share of the image's

# ---------------------------------------------------------------------------------------- DiffAugment


def diffaugment(images: Tensor, policy: Collection[str]) -> Tensor:
    """Every image changed by the parts of ``policy`` (Zhao et al. 2020): ``color``, ``translation``, ``cutout``."""
    if "color" in policy:
        images = images + (_uniform(images) - 0.5)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (2.0 * _uniform(images))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (0.5 + _uniform(images))
    if "translation" in policy:
        images = _shifted(images)
    return _with_hole(images, probability=1.0) if "cutout" in policy else images


def _shifted(images: Tensor) -> Tensor:
    """By whole pixels; what comes in is 0."""
    sides = images.shape[2:]
    shifts = [torch.randint(-_most(side), _most(side) + 1, (len(images), 1)) for side in sides]
    places = [torch.arange(side) - shift for side, shift in zip(sides, shifts, strict=True)]
    inside = [(place >= 0) & (place < side) for place, side in zip(places, sides, strict=True)]
    moved = _at(images, places[0][:, :, None], places[1][:, None, :])
    return moved * (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images)


def _most(side: int) -> int:
    return round(side * SHIFT)


def _with_hole(images: Tensor, probability: float) -> Tensor:
    """A square, which may reach beyond the image, is 0."""
    count, _, *sides = images.shape
    centres = [torch.rand(count, 1) * side for side in sides]
    rows, columns = (
        (torch.arange(side) + 0.5 - centre).abs() < side * HOLE / 2 for side, centre in zip(sides, centres, strict=True)
    )
    hole = rows[:, :, None] & columns[:, None, :] & _chosen(count, probability)[:, None, None]
    return images * ~hole[:, None].to(images.device)


# ------------------------------------------------------------------------------------------------ ADA


def ada(images: Tensor, probability: float, policy: Collection[str], *, turns: bool) -> Tensor:
    """The pipe of ADA (Karras et al. 2020): each change is made with a ``probability``, apart from the others.

    ``flip``; ``translation`` by whole pixels; ``geometry``: scale, anisotropy, shift, with ``turns`` also rotation;
    ``color``: brightness, contrast, and hue and saturation of three channels; ``cutout``. Simpler than in the paper:
    all of geometry is one bilinear look-up, without its wavelet filter, so that images that become smaller alias;
    there is no flip of luma, and of the filters of bands and the noise there are none.
    """
    if probability == 0.0:
        return images
    if {"flip", "translation", "geometry"} & set(policy):
        images = _looked_up(images, _placement(images, probability, policy, turns=turns))
    if "color" in policy:
        images = _recolored(images, probability)
    return _with_hole(images, probability) if "cutout" in policy else images


def _placement(images: Tensor, probability: float, policy: Collection[str], *, turns: bool) -> Tensor:
    """(B, 3, 3): where each pixel comes from, in pixels from the centre (x, y, 1)."""
    count, _, height, width = images.shape

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(count) * _chosen(count, probability)

    placement = torch.eye(3).expand(count, 3, 3)
    if "flip" in policy:
        mirrored = _chosen(count, probability) & (torch.rand(count) < 0.5)
        placement = placement @ _scaling(torch.where(mirrored, -1.0, 1.0), torch.ones(count))
    if "translation" in policy:
        shifts = [((2 * torch.rand(count) - 1) * side * SHIFT).round() for side in (width, height)]
        moved = _chosen(count, probability)
        placement = placement @ _translation(shifts[0] * moved, shifts[1] * moved)
    if "geometry" in policy:
        # Twice, so that a turned image is as likely as any other change.
        of_turn = 1.0 - math.sqrt(1.0 - probability) if turns else 0.0
        scale, ratio = torch.exp2(normal(0.2)), torch.exp2(normal(0.2))
        placement = placement @ _scaling(scale, scale) @ _rotation(count, of_turn)
        placement = placement @ _scaling(ratio, 1.0 / ratio) @ _rotation(count, of_turn)
        placement = placement @ _translation(normal(SHIFT) * width, normal(SHIFT) * height)
    return placement


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _translation(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _rotation(count: int, probability: float) -> Tensor:
    angle = (2 * torch.rand(count) - 1) * math.pi * _chosen(count, probability)
    matrix = torch.eye(3).repeat(count, 1, 1)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos(), -angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin(), angle.cos()
    return matrix


def _looked_up(images: Tensor, placement: Tensor) -> Tensor:
    """Bilinear, mirrored at the borders. ``grid_sample`` has no second derivative, which R1 needs."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(_from_centre(height), _from_centre(width), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, H * W)
    x, y, _ = (placement @ points).reshape(-1, 3, height, width).unbind(1)
    x, y = x + (width - 1) / 2, y + (height - 1) / 2
    left, top = x.floor(), y.floor()
    right_share, bottom_share = ((part - whole)[:, None].to(images) for part, whole in ((x, left), (y, top)))
    columns, rows = (
        [_mirrored(first + step, side) for step in (0, 1)] for first, side in ((left, width), (top, height))
    )
    upper, lower = (
        _at(images, row, columns[0]) * (1 - right_share) + _at(images, row, columns[1]) * right_share for row in rows
    )
    return upper * (1 - bottom_share) + lower * bottom_share


def _from_centre(side: int) -> Tensor:
    return torch.arange(side) - (side - 1) / 2


def _mirrored(places: Tensor, side: int) -> Tensor:
    """Places beyond the border as those at the same distance inside."""
    places = places.long() % max(1, 2 * (side - 1))
    beyond: Tensor = 2 * (side - 1) - places
    return torch.minimum(places, beyond)


def _recolored(images: Tensor, probability: float) -> Tensor:
    count, channels = images.shape[:2]

    def strength(scale: float) -> Tensor:
        drawn = scale * torch.randn(count) * _chosen(count, probability)
        return drawn[:, None, None, None].to(images)

    images = (images + strength(0.2)) * torch.exp2(strength(0.5))
    if channels != 3:
        return images
    angle = (2 * torch.rand(count) - 1) * math.pi * _chosen(count, probability)
    images = torch.einsum("bij,bjhw->bihw", _hue(angle).to(images), images)
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * torch.exp2(strength(1.0))


def _hue(angle: Tensor) -> Tensor:
    """(B, 3, 3) rotations about the axis of grey (Rodrigues)."""
    axis = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -axis, axis], [axis, 0.0, -axis], [-axis, axis, 0.0]])
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) / 3


# ---------------------------------------------------------------------------------------------- both


def _uniform(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) in [0, 1)."""
    return torch.rand(len(images), 1, 1, 1).to(images)


def _chosen(count: int, probability: float) -> Tensor:
    return torch.rand(count) < probability


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W): the pixels at ``rows`` and ``columns``, which give (B, H, W); beyond the border the last ones."""
    height, width = images.shape[2:]
    number = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1).to(images.device), columns.clamp(0, width - 1).to(images.device)
    return images[number, :, rows, columns].permute(0, 3, 1, 2)
