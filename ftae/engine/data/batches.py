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

from ftae.engine.data.dataset import Dataset
from ftae.engine.data.files.decoding import Array
from ftae.engine.data.source_base import ImageSet, Indices, Labels
from ftae.specs.finetune.data_spec import DataSpec
from ftae.specs.finetune.images import Blocks, Degradation
from ftae.specs.finetune.run import FinetuneSpec

Images = npt.NDArray[np.float32]
GREY = 0.5
OTHER_SIDE = 2**31  # added to a seed, it gives one that no run has


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
    size, spare = spec.size, spec.margins
    whole = images.pixels(indices)
    # Draw for the whole batch, whatever rows are wanted: another share of it must see the same crops.
    if any(spare):
        crops = sliding_window_view(whole, size, axis=(1, 2))  # all: (B, tops, lefts, C, H, W)
        tops, lefts = rng.integers(0, np.array(spare) + 1, size=(batch_size, 2))[rows].T
        pixels = np.ascontiguousarray(crops[np.arange(len(whole)), tops, lefts])
    else:
        pixels = np.ascontiguousarray(whole.transpose(0, 3, 1, 2))
    if spec.flip:
        mirrored = (rng.random(batch_size) < 0.5)[rows]
        pixels[mirrored] = pixels[mirrored][..., ::-1]
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
    high, wide = (slice(margin // 2, margin // 2 + side) for margin, side in zip(spec.margins, spec.size, strict=True))
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        pixels = images.pixels(part)[:, high, wide].transpose(0, 3, 1, 2).copy()
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


def _sides(pixels: Array, spec: DataSpec) -> tuple[Array, Array]:
    """The inputs and the images of stored pixels (B, C, H, W); those of pairs follow each other as channels.

    The same array twice where the images are no pairs, which single images of a user never are.
    """
    if pixels.shape[1] == spec.channels:
        return pixels, pixels
    given, images = np.split(pixels, [spec.channels], axis=1)
    return np.ascontiguousarray(given), np.ascontiguousarray(images)


def _degraded_inputs(pixels: Array, spec: DataSpec, seeds: Iterable[Sequence[int]]) -> Array | Images:
    """Degraded images, float32 (B, C, H, W), each with a seed of its own; ``pixels`` where nothing is degraded."""
    if spec.degrade is None:
        return pixels
    inputs = np.empty(pixels.shape, dtype=np.float32)
    for row, (image, seed) in enumerate(zip(pixels, seeds, strict=True)):
        channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
        inputs[row] = degraded(channels_last, spec.degrade, np.random.default_rng(seed)).transpose(2, 0, 1)
    return inputs


def _to_batch(pixels: Array, inputs: Array | Images, labels: Labels | None, device: torch.device | str) -> Batch:
    images = _to_unit(pixels, device)
    return Batch(
        images,
        images if inputs is pixels else _to_unit(inputs, device),
        None if labels is None else _to_device(labels, device),
    )


def _to_unit(values: Array | Images, device: torch.device | str) -> torch.Tensor:
    """fp32 on the device. Pixels travel as they are stored, smaller than floats, and become floats there."""
    tensor = _to_device(values, device)
    return tensor if values.dtype.kind == "f" else tensor.to(torch.float32).div_(np.iinfo(values.dtype).max)


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
