"""Degraded images: checked by hand, and independent of batch size, order and neighbours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from PIL import Image

from ftae.engine.data.batches import Batch, train_batch, val_batches
from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.degradation import degraded
from ftae.engine.data.source_base import ImageSet
from ftae.engine.training.loop import finetune
from ftae.specs.finetune.images import Degradation
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.builtin import Digits

ALL = {"blur": 0.7, "noise": 0.1, "jpeg": 30, "blocks": {"share": 0.25, "size": 4}}


def of(pixels: np.ndarray, seed: int = 0, **degrade: Any) -> np.ndarray:
    image = degraded(pixels, Degradation.model_validate(degrade), np.random.default_rng(seed))
    assert image.shape == pixels.shape
    assert image.dtype == np.float32
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    return image


def flat(value: int, side: int = 64, channels: int = 3) -> np.ndarray:
    return np.full((side, side, channels), value, dtype=np.uint8)


def texture(side: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (side, side, channels), dtype=np.uint8)


# ------------------------------------------------------------------------------------------- one image


def test_noise_has_its_sigma_and_is_clipped() -> None:
    noise = of(flat(128), noise=0.1) - np.float32(128 / 255)
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(0.1, rel=0.03)
    assert (of(flat(255), noise=0.1) == 1.0).mean() == pytest.approx(0.5, abs=0.03)
    assert not np.array_equal(of(flat(128), seed=1, noise=0.1), of(flat(128), seed=2, noise=0.1))


def test_blur_spreads_a_point_by_its_sigma() -> None:
    point = flat(0, side=31, channels=1)
    point[15, 15] = 255
    blurred = of(point, blur=2.0)[..., 0].astype(float)
    assert blurred.sum() == pytest.approx(1.0, rel=1e-3)
    offsets = np.arange(31) - 15
    assert (blurred.sum(0) * offsets**2).sum() == pytest.approx(4.0, rel=0.1)  # the variance
    assert np.allclose(blurred, blurred.T, atol=1e-6)
    assert np.allclose(of(flat(77), blur=2.0), 77 / 255, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_costs_more_the_lower_its_quality(channels: int) -> None:
    image = texture(channels=channels)
    errors = [np.abs(of(image, jpeg=quality) - image / 255).mean() for quality in (95, 50, 10)]
    assert 0.0 < errors[0] < errors[1] < errors[2]
    assert np.allclose(of(flat(128, channels=channels), jpeg=50), 128 / 255, atol=0.01)


def test_blocks_are_grey_and_of_their_share() -> None:
    image = of(flat(255, side=32), blocks={"share": 0.25, "size": 8})
    by_block = image.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
    assert sorted(by_block.mean(1)) == [0.5] * 4 + [1.0] * 12
    assert (by_block.std(1) == 0.0).all()


@pytest.mark.parametrize(("share", "cut"), [(0.01, 1), (0.99, 8)])
def test_a_block_is_cut_out_and_one_left_even_where_the_grid_is_cut_off(share: float, cut: int) -> None:
    image = of(flat(255, side=10, channels=1), blocks={"share": share, "size": 4})
    assert (image[1::4, 1::4] == 0.5).sum() == cut


# --------------------------------------------------------------------------------------------- batches


def data(**fields: Any) -> Digits:
    return Digits.model_validate({"source": "digits", "resolution": 16, "degrade": ALL, **fields})


def drawn(spec: Digits, batch: int = 3, seed: int = 1, **kwargs: Any) -> Batch:
    images = load_dataset(spec).train
    return train_batch(images, spec, batch_size=6, batch=batch, seed=seed, device="cpu", **kwargs)


def test_the_target_stays_clean() -> None:
    batch, plain = drawn(data()), drawn(data(degrade=None))
    assert batch.images.equal(plain.images)
    assert plain.inputs is plain.images
    assert batch.inputs.shape == batch.images.shape
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.is_contiguous()
    assert (batch.inputs - batch.images).abs().flatten(1).mean(1).gt(0.03).all()


def test_a_training_batch_is_a_function_of_seed_and_number() -> None:
    spec = data(random_crop_from=20, flip=True)
    first = drawn(spec)
    np.random.seed(1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert drawn(spec).inputs.equal(first.inputs)
    assert torch.get_rng_state().equal(before)
    # The same images, damaged anew: by another batch number and by another seed.
    few = ImageSet(np.zeros((1, 16, 16, 1), np.uint8), None)
    three = [
        train_batch(few, data(), batch_size=1, batch=batch, seed=seed, device="cpu").inputs
        for batch, seed in [(0, 0), (1, 0), (0, 1)]
    ]
    assert not any(a.equal(b) for a, b in [(three[0], three[1]), (three[0], three[2]), (three[1], three[2])])


def test_rows_are_damaged_as_in_the_whole_batch() -> None:
    spec = data()
    whole, first, last = (drawn(spec, rows=rows) for rows in (slice(None), slice(0, 2), slice(2, 6)))
    assert torch.cat([first.inputs, last.inputs]).equal(whole.inputs)
    same = ImageSet(np.full((1, 16, 16, 1), 90, np.uint8), None)
    twice = train_batch(same, spec, batch_size=2, batch=0, seed=0, device="cpu").inputs
    assert not twice[0].equal(twice[1])


def test_validation_images_are_always_damaged_alike() -> None:
    spec = data()
    images = load_dataset(spec).val
    by_7, by_50 = (
        torch.cat([b.inputs for b in val_batches(images, spec, batch_size=size, device="cpu")]) for size in (7, 50)
    )
    assert by_7.equal(by_50)
    chosen = np.array([3, 40, 41, 200])
    some = next(val_batches(images.subset(chosen), spec, batch_size=4, device="cpu"))
    assert some.inputs.equal(by_7[chosen])
    again = images.subset(slice(40, 60)).subset(np.array([1]))
    assert next(val_batches(again, spec, batch_size=1, device="cpu")).inputs.equal(by_7[[41]])


# ------------------------------------------------------------------------------------------------ runs


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_ae", "channels": 4, "latent_channels": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1], "degrade": ALL},
        "losses": {"mse": 1.0, "tv": 0.01},
        "max_steps": 4,
        "metrics": ["psnr", "input_psnr"],
        "num_threads": 1,
    }
    return run_spec(**(fields | changes))


def test_input_psnr_is_that_of_the_input_and_no_matter_of_the_model(tmp_path: Path) -> None:
    spec = spec_of()
    reports = list(finetune(spec, tmp_path))
    batch = next(val_batches(load_dataset(spec.data).val, spec.data, batch_size=1000, device="cpu"))
    mse = (batch.inputs - batch.images).double().square().flatten(1).mean(1)
    assert [r.metrics["val/input_psnr"] for r in reports] == pytest.approx([float((-10 * mse.log10()).mean())] * 3)
    assert reports[0].metrics["val/psnr"] != reports[2].metrics["val/psnr"]


def test_a_resumed_run_is_damaged_as_it_would_have_been(tmp_path: Path) -> None:
    whole = list(finetune(spec_of(), tmp_path / "whole"))
    part = finetune(spec_of(), tmp_path / "part")
    stopped = [next(part), next(part)]
    part.close()
    checkpoint = tmp_path / "part" / str(stopped[-1].checkpoint)
    resumed = list(finetune(spec_of(), tmp_path / "on", resume_from=checkpoint))
    assert [r.metrics for r in resumed] == [r.metrics for r in whole[1:]]


def test_a_model_learns_to_remove_noise(tmp_path: Path) -> None:
    data = {"source": "digits", "resolution": 16, "degrade": {"noise": 0.3}}
    model = {"family": "conv_ae", "channels": 8, "latent_channels": 4}
    spec = spec_of(data=data, model=model, losses={"mse": 1.0}, max_steps=200, num_evals=1, batch_size=32)
    last = list(finetune(spec, tmp_path))[-1].metrics
    assert last["val/psnr"] > last["val/input_psnr"] + 3.0


def test_the_picture_shows_what_is_given_what_is_made_of_it_and_what_was_wanted(tmp_path: Path) -> None:
    spec = spec_of()
    report = next(finetune(spec, tmp_path))
    picture = np.asarray(Image.open(tmp_path / report.images))[::6, ::6] / 255  # enlarged from 16 to 96 pixels
    batch = next(val_batches(load_dataset(spec.data).val, spec.data, batch_size=1, device="cpu"))
    assert np.allclose(picture[:16, :16], batch.inputs[0, 0].numpy(), atol=0.003)
    assert np.allclose(picture[:16, 32:48], batch.images[0, 0].numpy(), atol=0.003)
