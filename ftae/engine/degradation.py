"""Degraded images: what a model that restores them is given. Each depends on the image and a generator alone."""

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ftae.engine.decoding import Pixels
from ftae.specs.degradation import Blocks, Degradation

Images = npt.NDArray[np.float32]

GREY = 0.5


def degraded(pixels: Pixels, spec: Degradation, rng: np.random.Generator) -> Images:
    """uint8 (H, W, C) as ``spec`` has it: float32 (H, W, C) in [0, 1]. All that is random comes from ``rng``."""
    image: Images = (pixels / 255).astype(np.float32)
    if spec.blur > 0.0:
        image = _blurred(image, spec)
    if spec.noise > 0.0:
        image = (image + spec.noise * rng.standard_normal(image.shape)).clip(0.0, 1.0).astype(np.float32)
    if spec.jpeg is not None:
        image = _compressed(image, spec.jpeg)
    if spec.blocks is not None:
        image = _without(image, spec.blocks, rng)
    return image


def _blurred(image: Images, spec: Degradation) -> Images:
    from torchvision.transforms.v2.functional import gaussian_blur  # takes seconds

    channels_first = torch.from_numpy(image).permute(2, 0, 1)
    side = 2 * spec.blur_radius() + 1
    blurred: Images = gaussian_blur(channels_first, [side, side], [spec.blur, spec.blur]).permute(1, 2, 0).numpy()
    return blurred.clip(0.0, 1.0)


def _compressed(image: Images, quality: int) -> Images:
    """There and back through JPEG."""
    pixels = np.rint(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "jpeg", quality=quality)
    return (np.asarray(Image.open(file)).reshape(image.shape) / 255).astype(np.float32)


def _without(image: Images, blocks: Blocks, rng: np.random.Generator) -> Images:
    """With blocks of the grid made grey; at least one, and never all."""
    rows, columns = (-(-side // blocks.size) for side in image.shape[:2])
    num_cut = min(max(1, round(blocks.share * rows * columns)), rows * columns - 1)
    cut = np.zeros(rows * columns, dtype=bool)
    cut[rng.permutation(rows * columns)[:num_cut]] = True
    mask = np.kron(cut.reshape(rows, columns), np.ones((blocks.size, blocks.size), dtype=bool))
    return np.where(mask[: image.shape[0], : image.shape[1], None], GREY, image).astype(np.float32)
