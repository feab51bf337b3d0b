"""Pretrained weights for 3 channels serve images of any number of bands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DIFFUSERS, built, model_in, refused, save_pretrained_models, spec_of

from ftae.engine.models.families import build_model


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    save_pretrained_models(folder)
    return folder


def bands(number: int) -> dict[str, Any]:
    return {"source": "image_folder", "train": "d", "resolution": 16, "bands": number}


@pytest.mark.parametrize("family", DIFFUSERS)
def test_grey_in_all_bands_is_seen_as_grey_in_three(family: str, pretrained: Path) -> None:
    model = model_in(pretrained, family)
    five = build_model(spec_of(model, data=bands(5)), None)
    grey = torch.linspace(-1, 1, 2 * 16 * 16).reshape(2, 1, 16, 16)
    latents = built(model).encode(grey.expand(-1, 3, -1, -1)).mode
    torch.testing.assert_close(five.encode(grey.expand(-1, 5, -1, -1)).mode, latents, rtol=1e-4, atol=1e-5)
    given = five.decode(latents)
    assert given.shape == (2, 5, 16, 16)
    mean = built(model).decode(latents).mean(1, keepdim=True)
    torch.testing.assert_close(given, mean.expand_as(given), rtol=1e-4, atol=1e-5)
    new = [stage.name for stage in five.stages if stage.new]
    assert new == [five.stages[0].name, five.stages[-1].name]


@pytest.mark.parametrize("family", DIFFUSERS)
def test_a_saved_model_keeps_its_channels(family: str, pretrained: Path, tmp_path: Path) -> None:
    model = model_in(pretrained, family)
    five = build_model(spec_of(model, data=bands(5)), None)
    five.save(tmp_path)
    again = build_model(spec_of({**model, "pretrained": str(tmp_path)}, data=bands(5)), None)
    assert again.channels == 5
    assert not any(stage.new for stage in again.stages)
    for name, tensor in five.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_colour_that_the_model_does_not_take_stays_a_mistake(pretrained: Path) -> None:
    data = {"source": "image_folder", "train": "d", "resolution": 16, "color": "grey"}
    told = refused(model_in(pretrained, "autoencoder_kl"), data=data)
    assert "the model takes 3 image channels, but the data have 1; set data.color to rgb" in told
