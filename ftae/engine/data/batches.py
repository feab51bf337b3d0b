"""Batches as pure functions of seed and number: order, crops, degradation, replayed images."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from ftae.engine.data.dataset import Dataset, ImageSet
from ftae.engine.data.decoding import Pixels
from ftae.specs.finetune.data import DataSpec
from ftae.specs.finetune.degradation import Blocks, Degradation
from ftae.specs.finetune.run import FinetuneSpec

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


@dataclass(frozen=True)
class Rows:
    """Which images of a set some rows of a batch are. ``key``: of that set, and of how the model is given them.

    ``numbers``: int64 (rows,) below ``num_images``.
    """

    key: str
    num_images: int
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """``images``: float32 (B, C, H, W) in [0, 1], contiguous. ``inputs``: what the model is given of them, alike.

    ``labels``: int64 (B,), -1 for an image without one; None where there are none. On one device.
    ``factors``: int64 (B, F) of validation images whose factors of variation are known; on the CPU.
    ``rows``: what the rows are, from the first on, where the model is given the same whenever it is given these
    images of a known set; else empty.
    """

    images: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor | None
    factors: torch.Tensor | None = None
    rows: tuple[Rows, ...] = ()


def batch_indices(num_images: int, batch_size: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Which images make up training batch number ``batch`` (from 0): int64 (batch_size,) in [0, num_images).

    The endless stream of epochs, each a permutation of all images, is cut into consecutive batches;
    a batch may begin in one epoch and end in a later one.
    """
    assert min(num_images, batch_size, batch + 1) > 0
    epoch, offset = divmod(batch * batch_size, num_images)
    parts: list[npt.NDArray[np.int64]] = []
    missing = batch_size
    while missing:
        part = _epoch_order(num_images, seed, epoch)[offset : offset + missing]
        parts.append(part)
        missing -= len(part)
        epoch, offset = epoch + 1, 0
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # this epoch's and the next one's, of the images and of those replayed
def _epoch_order(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    order.setflags(write=False)
    return order


def train_batch(
    images: ImageSet,
    spec: DataSpec,
    *,
    batch_size: int,
    batch: int,
    seed: int,
    device: torch.device | str,
    rows: slice = slice(None),
) -> Batch:
    """Training batch number ``batch`` at ``spec.resolution``, cropped, mirrored and degraded at random; ``rows`` of it.

    Depends on nothing but the arguments: neither on global random state nor on earlier calls.
    """
    indices = batch_indices(len(images), batch_size, batch, seed)[rows]
    # The last number keeps these draws apart from the epoch orders, which take [seed, epoch], and from the others.
    # As an array they seed alike, in half the time that a list takes.
    rng = np.random.default_rng(np.array([seed, batch, 1], dtype=np.uint32))
    side = spec.resolution
    spare = spec.decoded_side - side
    # Whatever is drawn is drawn for the whole batch, whatever is wanted of it.
    if spare:
        crops = sliding_window_view(images.images, (side, side), axis=(1, 2))  # all: (N, tops, lefts, C, side, side)
        tops, lefts = rng.integers(0, spare + 1, size=(batch_size, 2))[rows].T
        pixels = np.ascontiguousarray(crops[indices, tops, lefts])
    else:
        pixels = np.ascontiguousarray(images.images[indices].transpose(0, 3, 1, 2))
    if spec.flip:
        mirrored = (rng.random(batch_size) < 0.5)[rows]
        pixels[mirrored] = pixels[mirrored][..., ::-1]
    given = _given(pixels, spec, ([seed, batch, place, 2] for place in range(batch_size)[rows]))
    made = _to_batch(pixels, given, None if images.labels is None else images.labels[indices], device)
    changing = spec.flip or spare or spec.degrade is not None
    return made if changing else replace(made, rows=_rows(images, indices, spec))


def val_batches(images: ImageSet, spec: DataSpec, *, batch_size: int, device: torch.device | str) -> Iterator[Batch]:
    """All images once, in order, their centre at ``spec.resolution``; the last batch may be smaller.

    Each is degraded as its number in the whole set has it, whatever is asked for beside it.
    """
    margin = (spec.decoded_side - spec.resolution) // 2
    centre = slice(margin, margin + spec.resolution)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        pixels = images.images[rows, centre, centre].transpose(0, 3, 1, 2).copy()
        numbers = range(len(images))[rows] if images.numbers is None else images.numbers[rows]
        given = _given(pixels, spec, ([int(number), 0, 0, 3] for number in numbers))
        batch = _to_batch(pixels, given, None if images.labels is None else images.labels[rows].copy(), device)
        factors = None if images.factors is None else torch.from_numpy(images.factors[rows].copy())
        yield replace(batch, factors=factors, rows=_rows(images, np.arange(len(images))[rows], spec))


def _rows(images: ImageSet, indices: npt.NDArray[np.int64], spec: DataSpec) -> tuple[Rows, ...]:
    """What the images of these indices are, their centre at ``spec.resolution``, degraded as ``spec`` has it."""
    if images.origin is None:
        return ()
    given = "" if spec.degrade is None else spec.degrade.model_dump_json()
    numbers = indices if images.numbers is None else images.numbers[indices]
    return (Rows(f"{images.origin.key} {spec.resolution} {given}", images.origin.num_images, numbers),)


def _given(pixels: Pixels, spec: DataSpec, seeds: Iterable[Sequence[int]]) -> Images | None:
    """Degraded, float32 (B, C, H, W), each image with a seed of its own; None where they are given as they are."""
    if spec.degrade is None:
        return None
    given = np.empty(pixels.shape, dtype=np.float32)
    for row, (image, seed) in enumerate(zip(pixels, seeds, strict=True)):
        channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
        given[row] = degraded(channels_last, spec.degrade, np.random.default_rng(seed)).transpose(2, 0, 1)
    return given


def _to_batch(
    pixels: Pixels, given: Images | None, labels: npt.NDArray[np.int64] | None, device: torch.device | str
) -> Batch:
    """uint8 (B, C, H, W) to the device as bytes, a quarter of what floats would take, and there to floats."""
    images = _sent(pixels, device).to(torch.float32).div_(255)
    inputs = images if given is None else _sent(given, device)
    return Batch(images, inputs, None if labels is None else _sent(labels, device))


def _sent(values: npt.NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """On the device. A GPU is not waited for: it has work of the step before, and copies page-locked memory itself."""
    tensor = torch.from_numpy(values)
    on_gpu = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor.to(device)


def training_batch(
    data: Dataset,
    spec: DataSpec,
    *,
    batch_size: int,
    batch: int,
    seed: int,
    device: torch.device | str,
    rows: slice = slice(None),
) -> Batch:
    """As ``train_batch``, the last rows of it replayed: drawn in the same way, as their own spec has it, unlabelled."""
    num_replayed = 0 if spec.replay is None else spec.replay.rows(batch_size)
    if num_replayed == 0:
        return train_batch(data.train, spec, batch_size=batch_size, batch=batch, seed=seed, device=device, rows=rows)
    assert spec.replay is not None
    assert data.replay is not None
    num_own = batch_size - num_replayed
    start, stop, _ = rows.indices(batch_size)
    own = train_batch(
        data.train,
        spec,
        batch_size=num_own,
        batch=batch,
        seed=seed,
        device=device,
        rows=slice(min(start, num_own), min(stop, num_own)),
    )
    replayed = train_batch(
        data.replay.train,
        spec.replay,
        batch_size=num_replayed,
        batch=batch,
        seed=seed,
        device=device,
        rows=slice(max(start - num_own, 0), max(stop - num_own, 0)),
    )
    labels = None if own.labels is None else torch.cat([own.labels, own.labels.new_full((len(replayed.images),), -1)])
    known = own.rows + replayed.rows if own.rows and replayed.rows else ()
    images, inputs = torch.cat([own.images, replayed.images]), torch.cat([own.inputs, replayed.inputs])
    return Batch(images, inputs, labels, rows=known)


def source_spec(spec: FinetuneSpec) -> FinetuneSpec:
    """``spec`` with the replayed images in place of its own, and the metrics that these can have."""
    return spec.model_copy(update={"data": spec.data.replay, "metrics": spec.source_metrics()})
