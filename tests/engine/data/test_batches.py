from typing import Any

import numpy as np
import pytest
import torch

from ftae.engine.data.batches import batch_indices, train_batch, val_batches
from ftae.engine.data.source_base import ImageSet
from ftae.specs.finetune.sources.folders import ImageFolder


def spec_of(**fields: Any) -> ImageFolder:
    return ImageFolder(**{"source": "image_folder", "train": "d", "resolution": 8, "color": "grey", **fields})


def numbered(num_images: int, side: int = 8, channels: int = 1) -> ImageSet:
    """Image i is filled with the value i and has label i."""
    values = np.arange(num_images, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(values, (num_images, side, side, channels))
    return ImageSet(images, np.arange(num_images, dtype=np.int64))


def gradient(num_images: int, side: int) -> ImageSet:
    """Every pixel tells where it was: channel 0 is its row, channel 1 its column."""
    rows, columns = np.mgrid[:side, :side]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    images = np.broadcast_to(image, (num_images, side, side, 3))
    return ImageSet(images, None)


def draw(images: ImageSet, spec: ImageFolder, batch: int = 0, seed: int = 0, batch_size: int = 8) -> torch.Tensor:
    return train_batch(images, spec, batch_size=batch_size, batch=batch, seed=seed, device="cpu").images


# ---------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 2), (10, 3), (7, 7), (3, 8), (1, 4), (5, 11)])
def test_batches_cut_one_stream_of_whole_epochs(num_images: int, batch_size: int) -> None:
    num_epochs = 2 * batch_size
    num_batches = num_epochs * num_images // batch_size
    stream = np.concatenate([batch_indices(num_images, batch_size, b, seed=3) for b in range(num_batches)])
    assert len(stream) == num_epochs * num_images
    for epoch in stream.reshape(num_epochs, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_a_batch_is_a_function_of_its_number() -> None:
    in_order = [batch_indices(10, 3, b, seed=0) for b in range(40)]
    for b in (39, 0, 17, 4, 38):  # any order, any history
        assert (batch_indices(10, 3, b, seed=0) == in_order[b]).all()


def test_epochs_and_seeds_differ() -> None:
    epochs = [tuple(batch_indices(50, 50, b, seed=0)) for b in range(4)]
    assert len(set(epochs)) == 4
    assert tuple(batch_indices(50, 50, 0, seed=1)) not in epochs
    assert tuple(epochs[0]) != tuple(range(50))


# ------------------------------------------------------------------------------------------- training


def test_train_batch_pairs_images_with_labels() -> None:
    batch = train_batch(numbered(20), spec_of(), batch_size=6, batch=2, seed=5, device="cpu")
    indices = batch_indices(20, 6, 2, seed=5)
    assert batch.images.shape == (6, 1, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == indices.tolist()
    assert torch.allclose(batch.images[:, 0, 0, 0] * 255, torch.from_numpy(indices).float())
    assert batch.images.is_contiguous()


def test_images_run_from_0_to_1_and_channels_come_first() -> None:
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[0, 2, 5] = (255, 51, 0)
    images = draw(ImageSet(pixels, None), spec_of(color="rgb"), batch_size=1)
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert torch.allclose(images[0, :, 2, 5], torch.tensor([1.0, 0.2, 0.0]))


def test_rows_of_a_batch_are_as_in_the_whole() -> None:
    spec, images = spec_of(color="rgb", random_crop_from=40, flip=True), gradient(8, 40)
    labelled = ImageSet(images.images, np.arange(8))
    whole, first, last = (
        train_batch(labelled, spec, batch_size=6, batch=3, seed=1, device="cpu", rows=rows)
        for rows in (slice(None), slice(0, 2), slice(2, 6))
    )
    assert torch.cat([first.images, last.images]).equal(whole.images)
    assert whole.labels is not None
    assert first.labels is not None
    assert whole.labels[:2].equal(first.labels)


def test_labels_are_none_without_classes() -> None:
    images = ImageSet(numbered(4).images, None)
    assert train_batch(images, spec_of(), batch_size=2, batch=0, seed=0, device="cpu").labels is None
    assert next(val_batches(images, spec_of(), batch_size=2, device="cpu")).labels is None


def test_without_augmentation_images_pass_unchanged() -> None:
    images = draw(gradient(8, 8), spec_of(color="rgb"))
    assert (images * 255).round()[:, 0].equal(torch.arange(8.0)[None, :, None].expand(8, 8, 8))
    assert (images * 255).round()[:, 1].equal(torch.arange(8.0)[None, None, :].expand(8, 8, 8))


def test_flip_mirrors_about_half_left_to_right() -> None:
    images = (draw(gradient(64, 8), spec_of(color="rgb", flip=True), batch_size=512) * 255).round()
    mirrored = images[:, 1, 0, 0] == 7
    assert 0.4 < mirrored.float().mean() < 0.6
    assert images[mirrored][:, 1].equal(torch.arange(7.0, -1, -1)[None, None, :].expand(int(mirrored.sum()), 8, 8))
    assert images[~mirrored][:, 1, 0, 0].eq(0).all()
    assert images[:, 0].equal(torch.arange(8.0)[None, :, None].expand(512, 8, 8))  # never upside down


def test_random_crop_reaches_every_offset_and_stays_whole() -> None:
    images = (draw(gradient(8, 11), spec_of(color="rgb", random_crop_from=11), batch_size=512) * 255).round()
    assert images.shape == (512, 3, 8, 8)
    top, left = images[:, 0, 0, 0], images[:, 1, 0, 0]
    assert {(int(t), int(x)) for t, x in zip(top, left, strict=True)} == {(t, x) for t in range(4) for x in range(4)}
    assert (images[:, 0] - top[:, None, None]).equal(torch.arange(8.0)[None, :, None].expand(512, 8, 8))
    assert (images[:, 1] - left[:, None, None]).equal(torch.arange(8.0)[None, None, :].expand(512, 8, 8))


@pytest.mark.parametrize("seed", [5, 2**31 - 1])
@pytest.mark.parametrize(("channels", "color"), [(1, "grey"), (3, "rgb")])
def test_the_draws_of_a_batch_stay_what_they_were(channels: int, color: str, seed: int) -> None:
    """To the bit: a run that is repeated must see the same images."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 11, 11, channels), dtype=np.uint8)
    spec = spec_of(color=color, random_crop_from=11, flip=True)
    batch = train_batch(ImageSet(pixels, np.arange(40)), spec, batch_size=16, batch=7, seed=seed, device="cpu")
    rng = np.random.default_rng([seed, 7, 1])
    offsets, mirrored = rng.integers(0, 4, size=(16, 2)), rng.random(16) < 0.5
    indices = batch_indices(40, 16, 7, seed=seed)
    expected = [pixels[i, top : top + 8, left : left + 8] for i, (top, left) in zip(indices, offsets, strict=True)]
    expected = [image[:, ::-1] if mirror else image for image, mirror in zip(expected, mirrored, strict=True)]
    assert batch.images.equal(torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float() / 255)
    assert batch.images.is_contiguous()
    assert batch.labels is not None
    assert batch.labels.tolist() == indices.tolist()


def test_augmentation_is_a_function_of_seed_and_batch() -> None:
    spec, images = spec_of(color="rgb", random_crop_from=40, flip=True), gradient(8, 40)
    first = draw(images, spec, batch=5)
    # The global random state must not matter.
    np.random.seed(1)
    torch.manual_seed(1)
    assert draw(images, spec, batch=5).equal(first)
    assert not draw(images, spec, batch=6).equal(first)
    assert not draw(images, spec, batch=5, seed=1).equal(first)


def test_train_batch_leaves_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(gradient(8, 12), spec_of(color="rgb", random_crop_from=12, flip=True))
    assert torch.get_rng_state().equal(before)


# ----------------------------------------------------------------------------------------- validation


def test_val_batches_give_every_image_once_in_order() -> None:
    batches = list(val_batches(numbered(7), spec_of(flip=True), batch_size=3, device="cpu"))
    assert [len(b.images) for b in batches] == [3, 3, 1]
    assert torch.cat([b.images for b in batches])[:, 0, 0, 0].mul(255).round().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.cat([b.labels for b in batches if b.labels is not None]).tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("decoded", "margin"), [(12, 2), (11, 1)])
def test_val_batches_take_the_centre_and_never_flip(decoded: int, margin: int) -> None:
    spec = spec_of(color="rgb", random_crop_from=decoded, flip=True)
    images = torch.cat([b.images for b in val_batches(gradient(16, decoded), spec, batch_size=5, device="cpu")])
    expected = torch.arange(margin, margin + 8.0)
    assert (images * 255).round()[:, 0].equal(expected[None, :, None].expand(16, 8, 8))
    assert (images * 255).round()[:, 1].equal(expected[None, None, :].expand(16, 8, 8))


def test_batches_own_their_pixels() -> None:
    """Writing into a batch must not reach the dataset that all trials share."""
    shared = ImageSet(np.array(numbered(4).images), np.arange(4))
    for batch in (
        train_batch(shared, spec_of(), batch_size=4, batch=0, seed=0, device="cpu"),
        next(val_batches(shared, spec_of(), batch_size=4, device="cpu")),
    ):
        batch.images.zero_()
        assert batch.labels is not None
        batch.labels.zero_()
    assert shared.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert shared.labels is not None
    assert shared.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_a_gpu() -> None:
    spec, images = spec_of(color="rgb", random_crop_from=12, flip=True), gradient(8, 12)
    on_gpu = train_batch(images, spec, batch_size=8, batch=0, seed=0, device="cuda")
    assert on_gpu.images.device.type == "cuda"
    assert torch.allclose(on_gpu.images.cpu(), draw(images, spec), atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_busy_gets_every_batch_whole() -> None:
    """Copies that are not waited for must not read memory that the next batch has taken over."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 64, 64, 3), dtype=np.uint8)
    images, spec = ImageSet(pixels, np.arange(256)), spec_of(color="rgb", resolution=64)
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy / 4096
    sent = [train_batch(images, spec, batch_size=32, batch=b, seed=0, device="cuda").images for b in range(16)]
    for number, batch in enumerate(sent):
        assert torch.allclose(batch.cpu(), draw(images, spec, batch=number, batch_size=32), atol=1e-7)
