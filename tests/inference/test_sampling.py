"""Samples of a model: where their latents come from, and the names of their files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained_models import untrained

from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.autoencoder import Codes, Encoding
from ftae.errors import FtaeError
from ftae.inference.interpolation import interpolate
from ftae.inference.model import TunedModel, load_model
from ftae.inference.sampling import sample
from ftae.inference.source import find_model


def test_a_seed_gives_the_same_images_and_moves_no_generator(model: TunedModel) -> None:
    before = torch.get_rng_state()
    for fitted in (False, True):
        first, description = sample(model, None, 20, seed=3, fitted=fitted)
        again, _ = sample(model, None, 20, seed=3, fitted=fitted)
        other, _ = sample(model, None, 20, seed=4, fitted=fitted)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == (20, 1, 16, 16)
        assert description.startswith(
            "a Gaussian fitted to the latents of 290 training" if fitted else "the standard normal"
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_of_the_prior_are_standard_normal(model: TunedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(TunedModel, "decode", lambda self, latents, labels=None: seen.append(latents) or latents)
    sample(model, None, 4000, seed=0, fitted=False)
    latents = torch.cat(seen)
    assert latents.mean(0).abs().max() < 0.06
    assert (latents.std(0) - 1).abs().max() < 0.06


def test_the_fitted_gaussian_has_the_moments_of_the_training_latents(
    model: TunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = load_dataset(model.spec.data).train.images
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    posterior = model.encode(images).posterior
    assert posterior is not None
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(TunedModel, "decode", lambda self, latents, labels=None: seen.append(latents) or latents)
    sample(model, None, 4000, seed=0, fitted=True)
    latents = torch.cat(seen)
    std = (posterior.mean.var(0, correction=0) + posterior.logvar.exp().mean(0)).sqrt()
    assert torch.allclose(latents.mean(0), posterior.mean.mean(0), atol=0.06)
    assert torch.allclose(latents.std(0) / std, torch.ones_like(std), atol=0.06)


def test_a_learned_prior_is_asked() -> None:
    model = untrained(family="hierarchical_vae", channels=4, latent_channels=2)
    images, description = sample(model, None, 3, seed=0, fitted=False)
    assert description == "the prior that the model has learned"
    assert images.shape == (3, 1, 16, 16)
    assert not torch.equal(images, sample(model, None, 3, seed=1, fitted=False)[0])


def test_a_plain_autoencoder_has_no_prior() -> None:
    model = untrained(family="conv_ae", channels=4, latent_channels=2)
    with pytest.raises(FtaeError, match="conv_ae has no prior to draw latents from; --fitted"):
        sample(model, None, 3, seed=0, fitted=False)
    assert sample(model, None, 3, seed=0, fitted=True)[0].shape == (3, 1, 16, 16)


def test_each_class_is_drawn_by_its_label() -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    labels, names = model.labels_to_sample(2, None)
    assert labels is not None
    assert (labels.tolist(), names) == ([0, 0, 1, 1], ["3-0000", "3-0001", "7-0000", "7-0001"])
    one, names = model.labels_to_sample(2, "7")
    assert one is not None
    assert (one.tolist(), names) == ([1, 1], ["7-0000", "7-0001"])
    images = [sample(model, each, 2, seed=0, fitted=False)[0] for each in (one, one - 1)]
    assert not torch.equal(*images)
    with pytest.raises(FtaeError, match="the label of an image must be one of 3, 7, got '4'"):
        model.labels_to_sample(2, "4")


def test_a_label_has_no_effect_on_other_models(model: TunedModel) -> None:
    with pytest.raises(FtaeError, match="conv_vae is not conditioned on labels: leave out the label '3'"):
        model.labels_to_sample(2, "3")


def test_codes_are_drawn_as_often_as_they_were_seen_at_each_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that quantises the mean of each quarter of the image to one bit."""
    model = untrained(family="conv_ae", channels=4, latent_channels=2)

    def encode(images: torch.Tensor, labels: object = None, noise: object = None) -> Encoding:
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2)
        codes = (quarters > 0.3).float()
        return Encoding(codes, codes=(Codes(codes.flatten(1).long(), 2, torch.zeros(()), None),))

    monkeypatch.setattr(model.autoencoder, "_encode", encode)
    monkeypatch.setattr(model.autoencoder, "_decode", lambda latents, labels: latents)
    drawn, description = sample(model, None, 4000, seed=0, fitted=False)
    assert description.startswith("the codes of 290 training images")
    pixels = load_dataset(model.spec.data).train.images
    seen = encode(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255).latents
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(drawn.mean(0), seen.mean(0), atol=0.04)
    with pytest.raises(FtaeError, match="a Gaussian cannot be fitted to codes; leave out --fitted"):
        sample(model, None, 3, seed=0, fitted=True)
    image = torch.zeros(1, 1, 16, 16)
    assert "between quantised latents" in interpolate(model, image, 1 - image, 3, spherical=False, label=None)[1]


@pytest.mark.parametrize("family", ["vq_vae", "vq_vae_2"])
def test_drawn_codes_are_codes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every level: each position of what is drawn holds what some training image has at that position."""
    model = untrained(family=family, channels=4, depth=1, code_dim=3, codebook_size=8)
    seen: list[torch.Tensor] = []
    decode = TunedModel.decode
    monkeypatch.setattr(
        TunedModel, "decode", lambda self, latents, *rest: seen.append(latents) or decode(self, latents)
    )
    images, _ = sample(model, None, 5, seed=0, fitted=False)
    assert images.shape == (5, 1, 16, 16)
    pixels = load_dataset(model.spec.data).train.images
    encoding = model.encode(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255)
    known, drawn = encoding.latents.flatten(1), torch.cat(seen).flatten(1)
    start = 0
    for codes in encoding.codes:
        count = codes.indices.shape[1]
        for position in range(count):
            columns = start + position + count * torch.arange(3)
            options = known[:, columns].unique(dim=0)
            distances = torch.cdist(drawn[:, columns].double(), options.double()).min(1).values
            assert distances.max() < 1e-5
        start += 3 * count
    assert start == known.shape[1]


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "..", "a\\b", "a\0b", "", 7, None])
def test_no_class_of_a_strangers_model_becomes_a_path(home: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(home / "exports" / "small", tmp_path / "run")
    (tmp_path / "run" / "model" / "classes.json").write_text(json.dumps(["3", name]))
    source = find_model(str(tmp_path / "run"), "searches", notify=lambda line: None)
    with pytest.raises(FtaeError, match=r"classes\.json: the name of a class must "):
        load_model(source)


@pytest.mark.parametrize("content", ["{}", "[", "7"])
def test_classes_that_are_no_list_are_refused(home: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(home / "exports" / "small", tmp_path / "run")
    (tmp_path / "run" / "model" / "classes.json").write_text(content)
    with pytest.raises(FtaeError, match=r"classes\.json"):
        load_model(find_model(str(tmp_path / "run"), "searches", notify=lambda line: None))


def test_a_class_that_cannot_name_a_file_is_not_drawn() -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    hostile = replace(model, class_names=("3", "../7"))
    assert hostile.labels_to_sample(1, "3")[1] == ["3-0000"]
    with pytest.raises(FtaeError, match="is used as a file name"):
        hostile.labels_to_sample(1, None)
