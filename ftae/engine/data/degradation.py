"""Degraded images: what a model is given where it learns to give back the clean ones."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ftae.engine.data.files.decoding import Array
from ftae.specs.finetune.images import Blocks, Degradation

Images = npt.NDArray[np.float32]
GREY = 0.5


def degraded_inputs(pixels: Array, spec: Degradation, seeds: Iterable[Sequence[int]]) -> Images:
    """Images (B, C, H, W) as they are stored, degraded, each by a seed of its own: float32 in [0, 1]."""
    inputs = np.empty(pixels.shape, dtype=np.float32)
    for row, (image, seed) in enumerate(zip(pixels, seeds, strict=True)):
        channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
        inputs[row] = degraded(channels_last, spec, np.random.default_rng(seed)).transpose(2, 0, 1)
    return inputs


def degraded(pixels: Array, spec: Degradation, rng: np.random.Generator) -> Images:
    """An image (H, W, C) as it is stored, degraded by ``spec``: float32 (H, W, C) in [0, 1]; ``rng`` draws."""
    is_unit = pixels.dtype.kind == "f"
    image: Images = pixels if is_unit else (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)
    if spec.blur > 0.0:
        image = _blurred(image, spec)
    if spec.noise > 0.0:
        image = (image + spec.noise * rng.standard_normal(image.shape)).clip(0.0, 1.0).astype(np.float32)
    if spec.jpeg is not None:
        image = _compressed(image, spec.jpeg)
    if spec.blocks is not None:
        image = _with_grey_blocks(image, spec.blocks, rng)
    return image


def _blurred(image: Images, spec: Degradation) -> Images:
    from torchvision.transforms.v2.functional import gaussian_blur  # this import takes seconds

    channels_first = torch.from_numpy(image).permute(2, 0, 1)
    side = 2 * spec.blur_radius() + 1
    blurred: Images = gaussian_blur(channels_first, [side, side], [spec.blur, spec.blur]).permute(1, 2, 0).numpy()
    return blurred.clip(0.0, 1.0)


def _compressed(image: Images, quality: int) -> Images:
    """The image after a round trip through JPEG."""
    pixels = np.rint(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "jpeg", quality=quality)
    return (np.asarray(Image.open(file)).reshape(image.shape) / 255).astype(np.float32)


def _with_grey_blocks(image: Images, blocks: Blocks, rng: np.random.Generator) -> Images:
    """The image with some blocks of a grid made grey; at least one, and never all."""
    rows, columns = (-(-side // blocks.size) for side in image.shape[:2])
    num_cut = min(max(1, round(blocks.share * rows * columns)), rows * columns - 1)
    cut = np.zeros(rows * columns, dtype=bool)
    cut[rng.permutation(rows * columns)[:num_cut]] = True
    mask = np.kron(cut.reshape(rows, columns), np.ones((blocks.size, blocks.size), dtype=bool))
    return np.where(mask[: image.shape[0], : image.shape[1], None], GREY, image).astype(np.float32)
