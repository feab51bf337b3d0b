"""Translation in both directions, and in the one that a model has learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import MODELS, spec_of

from ftae.engine.models.families import build_model
from ftae.errors import FtaeError
from ftae.inference.files import Model
from ftae.inference.model import TunedModel

IMAGES = np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)


def tuned(name: str) -> TunedModel:
    spec = spec_of(MODELS[name])
    return TunedModel(build_model(spec, None).eval(), spec, torch.device("cpu"), None)


def test_a_model_of_both_ways_translates_there_and_back(pictures: Path, tmp_path: Path) -> None:
    loaded = tuned("cyclegan")
    model = Model(loaded, "untuned")
    there, back = model.translate(IMAGES), model.translate(IMAGES, reverse=True)
    assert there.shape == back.shape == IMAGES.shape
    net: Any = loaded.autoencoder.net
    given = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)) * 2 - 1
    for way, made in ((net.ab, there), (net.ba, back)):
        with torch.no_grad():
            expected = (way.decode(way.encode(given, None, None).latents, None) + 1) / 2
        np.testing.assert_allclose(made, expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    assert model.translate_folder(pictures, tmp_path / "there") == 12
    assert model.translate_folder(pictures, tmp_path / "back", reverse=True) == 12
    assert (tmp_path / "there/sheet.png").read_bytes() != (tmp_path / "back/sheet.png").read_bytes()


def test_a_model_of_one_way_refuses_the_way_back(pictures: Path, tmp_path: Path) -> None:
    model = Model(tuned("resnet_translator"), "untuned")
    with pytest.raises(FtaeError, match="resnet_translator cannot translate in reverse: it has learned one way"):
        model.translate(IMAGES, reverse=True)
    with pytest.raises(FtaeError, match="cannot translate in reverse"):
        model.translate_folder(pictures, tmp_path / "out", reverse=True)
    assert not (tmp_path / "out").exists()
