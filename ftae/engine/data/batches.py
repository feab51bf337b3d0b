"""Batches as pure functions of seed and number: order, crops, degradation, replayed images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from ftae.engine.data.dataset import Dataset
from ftae.engine.data.degradation import degraded_inputs
from ftae.engine.data.files.decoding import Array
from ftae.engine.data.source_base import ImageSet, Indices, Labels
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.run import FinetuneSpec

Mask = npt.NDArray[np.bool_]
Pixels = Array | torch.Tensor
OTHER_SIDE = 2**31  # added to a seed, it gives one that no run has


@dataclass(frozen=True)
class ImageIds:
    """Identifies the images in consecutive rows of a batch, for caches of what a model makes of them.

    ``key``: differs for another complete set and for another way of giving its images to the model. ``positions``:
    int64 (rows,), the place of each image in that set, which has ``num_images``.
    """

    key: str
    num_images: int
    positions: Indices


@dataclass(frozen=True)
class Batch:
    """``images``: float32 (B, C, H, W) in [0, 1], contiguous. ``inputs``: what the model is given, in the same form, or
    noise (B, L) for a generator.

    ``labels``: int64 (B,), -1 for an image without a label; None where no image has one. All on one device.
    ``factors``: int64 (B, F), of validation images whose factors of variation are known; on the CPU.
    ``ids``: the identity of all rows, in order; empty where the model is given another input whenever it sees an
    image again, or where the images are from no dataset.
    """

    images: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor | None
    factors: torch.Tensor | None = None
    ids: tuple[ImageIds, ...] = ()


def batch_indices(num_images: int, batch_size: int, batch: int, seed: int) -> Indices:
    """The images of training batch number ``batch`` (from 0): int64 (batch_size,) in [0, num_images).

    The endless stream of epochs, each a permutation of all images, is cut into consecutive batches;
    a batch may begin in one epoch and end in a later one.
    """
    assert min(num_images, batch_size, batch + 1) > 0
    epoch, offset = divmod(batch * batch_size, num_images)
    parts: list[Indices] = []
    missing = batch_size
    while missing:
        part = _epoch_order(num_images, seed, epoch)[offset : offset + missing]
        parts.append(part)
        missing -= len(part)
        epoch, offset = epoch + 1, 0
    return np.concatenate(parts)


@lru_cache(maxsize=4)  # of this epoch and the next, for the images and for the replayed ones
def _epoch_order(num_images: int, seed: int, epoch: int) -> Indices:
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
    """Some ``rows`` of training batch number ``batch``, at ``spec.resolution``, cropped, mirrored, degraded at random.

    Depends on the arguments alone: neither on global random state nor on earlier calls.
    """
    indices = batch_indices(len(images), batch_size, batch, seed)[rows]
    # The last number of a seed keeps these draws apart from the epoch orders, which have [seed, epoch], and from the
    # degradations below. An array gives the same generator as a list, in half the time.
    rng = np.random.default_rng(np.array([seed, batch, 1], dtype=np.uint32))
    spare = spec.margins
    # Draw for the whole batch, whatever rows are wanted: another share of it must see the same crops.
    corners = rng.integers(0, np.array(spare) + 1, size=(batch_size, 2))[rows] if any(spare) else None
    mirrored = (rng.random(batch_size) < 0.5)[rows] if spec.flip else None
    cropped = _cropped if images.on_gpu is None else _cropped_on_gpu
    pixels = cropped(images, indices, spec.size, corners, mirrored)
    given, pixels = _sides(pixels, spec)
    inputs = _degraded_inputs(given, spec, ([seed, batch, place, 2] for place in range(batch_size)[rows]))
    made = _to_batch(pixels, inputs, None if images.labels is None else images.labels[indices], device)
    is_random = spec.flip or any(spare) or spec.degrade is not None
    return made if is_random else replace(made, ids=_ids(images, indices, spec))


def val_batches(
    images: ImageSet,
    spec: DataSpec,
    *,
    batch_size: int,
    device: torch.device | str,
    noise_dim: int | None = None,
) -> Iterator[Batch]:
    """All images once, in order, their centre at ``spec.resolution``; the last batch may be smaller.

    The degradation of an image, and the noise of length ``noise_dim`` beside it, depend on its position in the complete
    set, not on the other images asked for.
    """
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        pixels = _centre(images, part, spec)
        given, pixels = _sides(pixels, spec)
        inputs = _degraded_inputs(given, spec, ([int(place), 0, 0, 3] for place in images.positions_at(part)))
        batch = _to_batch(pixels, inputs, None if images.labels is None else images.labels[part].copy(), device)
        factors = None if images.factors is None else torch.from_numpy(images.factors[part].copy())
        if noise_dim is not None:
            batch = replace(batch, inputs=evaluation_noise(images.positions_at(part), noise_dim).to(device))
        yield replace(batch, factors=factors, ids=_ids(images, part, spec))


def evaluation_noise(numbers: Iterable[int], length: int) -> torch.Tensor:
    """Standard normal noise, float32 (len(numbers), length); each row depends on its number (from 0) alone.

    Every evaluation of every run gives generators the same noise, so that their metrics can be compared.
    """
    rows = [
        np.random.default_rng([int(number), 0, 0, 4]).standard_normal(length, dtype=np.float32) for number in numbers
    ]
    return torch.from_numpy(np.stack(rows))


def training_noise(rows: slice, length: int, *, batch_size: int, batch: int, seed: int) -> torch.Tensor:
    """Standard normal noise, float32 (rows, length): some ``rows`` of training batch number ``batch``."""
    noise = np.random.default_rng([seed, batch, 0, 5]).standard_normal((batch_size, length), dtype=np.float32)
    return torch.from_numpy(noise[rows])


def _ids(images: ImageSet, indices: slice | Indices, spec: DataSpec) -> tuple[ImageIds, ...]:
    """The identity of these images, given as their centre at ``spec.resolution``, degraded by their position."""
    if images.complete is None:
        return ()
    degradation = "" if spec.degrade is None else spec.degrade.model_dump_json()
    key = f"{images.complete.key} {spec.resolution} {degradation}"
    return (ImageIds(key, images.complete.num_images, images.positions_at(indices)),)


def _cropped(
    images: ImageSet, indices: Indices, size: tuple[int, int], corners: Indices | None, mirrored: Mask | None
) -> Array:
    """Some images, cropped to ``size`` and mirrored: (B, C, H, W). ``corners``: int64 (B, 2), top and left."""
    whole = images.pixels(indices)
    if corners is None:
        pixels = np.ascontiguousarray(whole.transpose(0, 3, 1, 2))
    else:
        crops = sliding_window_view(whole, size, axis=(1, 2))  # all: (B, tops, lefts, C, H, W)
        pixels = np.ascontiguousarray(crops[np.arange(len(whole)), *corners.T])
    if mirrored is not None:
        pixels[mirrored] = pixels[mirrored][..., ::-1]
    return pixels


def _rows_on_gpu(images: ImageSet, indices: slice | Indices) -> torch.Tensor:
    assert images.on_gpu is not None
    rows = images.rows_at(indices)
    return images.on_gpu[rows if isinstance(rows, slice) else _to_device(rows, images.on_gpu.device)]


def _cropped_on_gpu(
    images: ImageSet, indices: Indices, size: tuple[int, int], corners: Indices | None, mirrored: Mask | None
) -> torch.Tensor:
    """The same of images that are kept on a GPU."""
    whole = _rows_on_gpu(images, indices)
    device = whole.device
    if corners is None:
        pixels = whole
    else:
        tops, lefts = _to_device(np.ascontiguousarray(corners.T), device)
        ys, xs = (
            first[:, None] + torch.arange(side, device=device) for first, side in zip((tops, lefts), size, strict=True)
        )
        pixels = whole[torch.arange(len(whole), device=device)[:, None, None], ys[:, :, None], xs[:, None, :]]
    if mirrored is not None:
        pixels = torch.where(_to_device(mirrored, device)[:, None, None, None], pixels.flip(2), pixels)
    return pixels.permute(0, 3, 1, 2)


def _centre(images: ImageSet, part: slice, spec: DataSpec) -> Array | torch.Tensor:
    high, wide = (slice(margin // 2, margin // 2 + side) for margin, side in zip(spec.margins, spec.size, strict=True))
    if images.on_gpu is None:
        return images.pixels(part)[:, high, wide].transpose(0, 3, 1, 2).copy()
    return _rows_on_gpu(images, part)[:, high, wide].permute(0, 3, 1, 2).clone()


def _sides(pixels: Pixels, spec: DataSpec) -> tuple[Pixels, Pixels]:
    """The inputs and the images of stored pixels (B, C, H, W); those of pairs follow each other as channels.

    The same array twice where the images are no pairs, which single images of a user never are.
    """
    if pixels.shape[1] == spec.channels:
        return pixels, pixels
    return pixels[:, : spec.channels], pixels[:, spec.channels :]


def _degraded_inputs(pixels: Pixels, spec: DataSpec, seeds: Iterable[Sequence[int]]) -> Pixels:
    if spec.degrade is None:
        return pixels
    assert isinstance(pixels, np.ndarray)  # images to be degraded are not kept on a GPU
    return degraded_inputs(pixels, spec.degrade, seeds)


def _to_batch(pixels: Pixels, inputs: Pixels, labels: Labels | None, device: torch.device | str) -> Batch:
    images = _to_unit(pixels, device)
    return Batch(
        images,
        images if inputs is pixels else _to_unit(inputs, device),
        None if labels is None else _to_device(labels, device),
    )


def _to_unit(values: Pixels, device: torch.device | str) -> torch.Tensor:
    """fp32 on the device. Pixels travel as they are stored, smaller than floats, and become floats there."""
    tensor = values if isinstance(values, torch.Tensor) else _to_device(values, device)
    tensor = tensor.view(torch.uint16) if tensor.dtype == torch.int16 else tensor
    tensor = tensor.contiguous()
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32).div_(torch.iinfo(tensor.dtype).max)


def _to_device(values: npt.NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Copies to a GPU without waiting for it: it is busy with the last step, and reads page-locked memory itself."""
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
    """As ``train_batch``, but the last rows are replayed images, drawn alike by their own spec, without labels."""
    num_replayed = 0 if spec.replay is None else spec.replay.rows(batch_size)
    if spec.unpaired:
        return _unpaired_batch(data.train, spec, batch_size, batch, seed, device, rows)
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
    ids = own.ids + replayed.ids if own.ids and replayed.ids else ()
    images, inputs = torch.cat([own.images, replayed.images]), torch.cat([own.inputs, replayed.inputs])
    return Batch(images, inputs, labels, ids=ids)


def _unpaired_batch(
    images: ImageSet, spec: DataSpec, batch_size: int, batch: int, seed: int, device: torch.device | str, rows: slice
) -> Batch:
    """As ``train_batch``, but the inputs are of other rows, cropped and mirrored by draws of their own."""
    own, other = (
        train_batch(images, spec, batch_size=batch_size, batch=batch, seed=each, device=device, rows=rows)
        for each in (seed, seed + OTHER_SIDE)
    )
    return replace(own, inputs=other.inputs, ids=())


def replay_run(spec: FinetuneSpec) -> FinetuneSpec:
    """``spec`` with the replayed images in place of its own, and the metrics that can be measured on them."""
    return spec.model_copy(update={"data": spec.data.replay, "metrics": spec.source_metrics()})
