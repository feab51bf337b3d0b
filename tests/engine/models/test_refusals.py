"""Models that cannot be built: each is one message."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from safetensors.torch import load_file, save_file
from small_models import CUSTOM, MODELS, NAMED_STAGES, built, grey, model_in, refused, rgb, spec_of

from ftae.engine.models.families import build_model
from ftae.errors import FtaeError


def test_another_resolution_or_colour_is_refused(pretrained_models: Path, tmp_path: Path) -> None:
    built(MODELS["conv_vae"]).save(tmp_path)
    own = {"family": "conv_vae", "pretrained": str(tmp_path)}
    assert "takes images of 16 pixels a side, got data.resolution 32; each of model.resolution_adapters" in refused(
        own, data=rgb(32)
    )
    assert "takes 3 image channels" in refused(own, data=grey())
    assert "set data.color to rgb" in refused(model_in(pretrained_models, "autoencoder_kl"), data=grey())
    assert "multiple of 2" in refused(model_in(pretrained_models, "autoencoder_kl"), data=rgb(17))
    assert "multiple of 4 (2**depth), got 18" in refused(MODELS["conv_vae"], data=grey(18))
    assert "cannot take images of shape (1, 16, 16)" in refused(CUSTOM | {"kwargs": {}}, data=grey())


def test_other_options_than_the_pretrained_ones_are_refused(tmp_path: Path) -> None:
    built({"family": "conv_vae"}).save(tmp_path)
    own = {"family": "conv_vae", "pretrained": str(tmp_path)}
    assert "model.channels is 8, but" in refused(own | {"channels": 8})
    assert build_model(spec_of(own | {"channels": 32}), None)  # the default, said aloud
    assert "holds a conv_vae, not a mlp_vae" in refused({"family": "mlp_vae", "pretrained": str(tmp_path)})


def test_pretrained_that_is_not_there_is_refused(pretrained_models: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    assert "no ftae_model.json" in refused({"family": "conv_vae", "pretrained": absent})
    assert "neither an existing folder nor a hub id" in refused({"family": "autoencoder_kl", "pretrained": absent})
    assert "does not exist" in refused(CUSTOM | {"pretrained": absent})
    empty = {"family": "autoencoder_kl", "pretrained": str(tmp_path)}
    assert "has no config.json; it is empty" in refused(empty)


def test_weights_that_do_not_fit_are_refused(pretrained_models: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained_models / "kl", tmp_path / "kl")
    weights = load_file(tmp_path / "kl" / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "kl" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    lacking = {"family": "autoencoder_kl", "pretrained": str(tmp_path / "kl")}
    assert "1 missing (decoder.conv_out.bias)" in refused(lacking)
    assert "does not hold a state dict of the model" in refused(
        CUSTOM | {"pretrained": str(pretrained_models / "vae.pt"), "kwargs": {"width": 5}}
    )
    built(MODELS["conv_vae"]).save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "is damaged or cut short" in refused({"family": "conv_vae", "pretrained": str(tmp_path)})


class Payload:
    """What a malicious pickle does when it is loaded: create the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_weights_with_code_are_refused_and_not_run(pretrained_models: Path, tmp_path: Path) -> None:
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    assert "holds a whole module or other objects" in refused(CUSTOM | {"pretrained": str(tmp_path / "evil.pt")})
    assert not (tmp_path / "ran").exists()


def test_modules_that_cannot_be_staged_are_refused(pretrained_models: Path) -> None:
    twice = NAMED_STAGES | {"encoder": ["encoder", "encoder.1"]}
    assert "encoder.1.weight is in encoder and encoder.1: only one may hold it" in refused(CUSTOM | {"stages": twice})
    assert "the model has no sub-module or parameter 'decoder.9'" in refused(
        CUSTOM | {"stages": {"decoder": ["decoder.9"]}}
    )
    assert "must return a torch.nn.Module, got str" in refused(
        {"family": "user_models:not_a_module", "image_range": "0..1"}
    )


BROKEN = """
import torch
from torch import nn

class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        return self.conv(x) > 0, 3

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(1, 1, 3, padding=1)
        self.decoder = nn.Conv2d(1, 1, 3, padding=1)
    def encode(self, x):
        return self.encoder(x)
    def decode(self, z):
        return self.decoder(z)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"family": "broken_modules:Tuple", "image_range": "0..1"}},
            "forward must give the reconstruction, a float tensor",
        ),
        (
            {"model": {"family": "broken_modules:Plain", "image_range": "0..1", "kwargs": {"width": 3}}},
            "cannot be built with model.kwargs {'width': 3}",
        ),
        ({"losses": {"mse": 1.0, "kl": 1e-3}}, r"losses\.kl needs a posterior: .*must return \(mean, logvar\)"),
        ({"metrics": ["active_units"]}, "metrics: active_units needs a posterior"),
    ],
)
def test_a_users_mistake_is_one_message(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_modules.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)  # the current folder is importable, without any path set
    fields = {"model": {"family": "broken_modules:Plain", "image_range": "0..1"}, "losses": {"mse": 1.0}}
    with pytest.raises(FtaeError, match=message):
        build_model(run_spec(**fields | change), None)
    sys.modules.pop("broken_modules", None)
    sys.path.remove(str(tmp_path))
