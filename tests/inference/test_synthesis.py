"""Samples of a generator by seed, and the way from one to another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import MODELS, spec_of

from ftae.engine.models.families import build_model
from ftae.engine.training.evaluator import evaluate
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.inference.files import Model
from ftae.inference.model import TunedModel
from ftae.inference.sampling import sample_files
from ftae.inference.synthesis import between_seeds, synthesise


def untrained(name: str) -> TunedModel:
    spec = spec_of(MODELS[name])
    model = build_model(spec, None)
    with torch.no_grad():
        for parameter in model.parameters():  # a new mapping gives nearly the same style to all noise
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return TunedModel(model, spec, torch.device("cpu"), None)


@pytest.mark.parametrize("name", ["dcgan", "stylegan2"])
def test_a_seed_has_its_image_whatever_the_others_are(name: str) -> None:
    model = untrained(name)
    images = synthesise(model, [3, 8], None)
    assert images.shape == (2, 3, 16, 16)
    assert not torch.equal(images[0], images[1])
    assert torch.equal(synthesise(model, [8], None)[0], images[1])
    made = Model(model, "model").sample(6, seed=3)
    assert np.array_equal(made[[0, 5]], images.permute(0, 2, 3, 1).numpy())


def test_seeds_are_those_of_evaluations() -> None:
    trainer = Trainer(spec_of(MODELS["stylegan2"]))
    part = trainer.eval_sets[0]
    seen: list[Any] = []

    class Collect:
        """Stands in for the picture, which sees every batch."""

        def update(self, batch: Any) -> None:
            seen.append(batch.reconstruction)

    grid: Any = Collect()
    evaluate(part.context, part.images, grid)
    model = TunedModel(trainer.autoencoder, trainer.spec, torch.device("cpu"), None)
    torch.testing.assert_close(synthesise(model, [0, 1, 9], None), torch.cat(seen)[[0, 1, 9]], atol=1e-5, rtol=0)


def test_truncation_draws_towards_one_image() -> None:
    model = untrained("stylegan2")
    wide, half, none = (synthesise(model, [0, 1], psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(wide, synthesise(model, [0, 1], None))
    assert torch.equal(none[0], none[1])
    assert (half[0] - half[1]).abs().mean() < (wide[0] - wide[1]).abs().mean()
    with pytest.raises(FtaeError, match="dcgan has no mean style to truncate towards"):
        synthesise(untrained("dcgan"), [0], 0.5)


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_of_an_interpolation_are_the_samples(spherical: bool) -> None:
    model = untrained("stylegan2")
    images, description = between_seeds(model, (3, 8), 5, spherical=spherical, truncation=None)
    torch.testing.assert_close(images[[0, -1]], synthesise(model, [3, 8], None), atol=1e-5, rtol=0)
    steps = (images[1:] - images[:-1]).flatten(1).norm(dim=1)
    assert steps.min() > 0.0
    assert description == ("spherical interpolation of noise" if spherical else "linear interpolation of styles")


def test_files_are_named_by_seed(tmp_path: Path) -> None:
    options: Any = {"label": None, "fitted": False, "seed": 0, "truncation": 0.7, "overwrite": False}
    count, _ = sample_files(untrained("stylegan2"), tmp_path / "out", 36, seeds=[3, 20], **options)
    assert count == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seed-0003.png", "seed-0020.png", "sheet.png"]
    model = Model(untrained("stylegan2"), "model")
    model.interpolate_seeds(0, 1, tmp_path / "between", frames=3)
    assert Image.open(tmp_path / "between" / "frames.gif").n_frames > 2  # there and back


def test_other_models_have_no_seeds(tmp_path: Path) -> None:
    spec = spec_of(MODELS["conv_vae"])
    other = TunedModel(build_model(spec, 2), spec, torch.device("cpu"), None)
    with pytest.raises(FtaeError, match="conv_vae makes no images of noise, so it has no seeds"):
        synthesise(other, [0], None)
    options: Any = {"label": None, "fitted": False, "seed": 0, "truncation": None, "overwrite": False}
    with pytest.raises(FtaeError, match="conv_vae is no generator: it has neither seeds nor truncation"):
        sample_files(other, tmp_path / "out", 3, seeds=[1], **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", [[], [3, -1]])
def test_seeds_are_numbers_from_0_on(seeds: list[int]) -> None:
    with pytest.raises(FtaeError, match=r"seeds must be one number or more from 0 on, got \["):
        synthesise(untrained("stylegan2"), seeds, None)


def test_settings_without_effect_on_samples_are_refused() -> None:
    model = Model(untrained("stylegan2"), "model")
    with pytest.raises(FtaeError, match="stylegan2 makes images of noise: there are no latents to fit"):
        model.sample(1, fitted=True)
    with pytest.raises(FtaeError, match="truncation must be a finite number, got nan"):
        model.sample(1, truncation=float("nan"))
    spec = spec_of(MODELS["conv_vae"])
    other = Model(TunedModel(build_model(spec, 2), spec, torch.device("cpu"), None), "model")
    with pytest.raises(FtaeError, match="conv_vae is no generator"):
        other.sample(1, truncation=0.5)


def test_a_generator_takes_no_images() -> None:
    model = Model(untrained("stylegan2"), "model")
    images = np.zeros((1, 16, 16, 3), dtype=np.float32)
    for method in (model.reconstruct, model.translate, model.score):
        with pytest.raises(FtaeError, match="gets no images: use sample"):
            method(images)
    with pytest.raises(FtaeError, match="stylegan2 takes no images"):
        model.encode(images)
