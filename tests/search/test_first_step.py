"""What a rehearsal tells of a step that fails, whatever the reason."""

import platform
from pathlib import Path
from typing import Any

import pytest
from ftae.search.first_step import try_step

from ftae.engine.data import load_dataset
from ftae.specs.search import SearchSpec

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
    def encode(self, images):
        if self.training: raise KeyError("scale")
        return self.encoder(images)
    def decode(self, latents): return self.decoder(latents)
"""


def told(**changes: Any) -> str:
    finetune = {
        "model": {"family": "conv_ae", "channels": 4, "depth": 1},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 4,
        "num_evals": 1,
        "metrics": ["psnr"],
    }
    search = SearchSpec.model_validate(
        {
            "name": "small",
            "finetune": finetune | changes,
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            "objective": {"metric": "val/psnr", "direction": "maximize"},
        }
    )
    found = try_step(search, load_dataset(search.finetune.data).fingerprint)
    assert isinstance(found, str)
    return found


def test_a_blow_up_of_the_discriminator_is_told_with_advice() -> None:
    why = told(losses={"mse": 1.0, "adversarial": 0.1}, discriminator={"r1": 1e38, "norm": "group", "depth": 1})
    assert why.startswith(f"on {platform.node()}: adversarial blow-up at step ")
    assert "; lower finetune.discriminator.lr" in why


def test_what_the_model_raises_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    why = told(model={"family": "raising_nets:Net", "image_range": [0, 1]})
    assert why == f"on {platform.node()}: raised KeyError: 'scale' (raising_nets.py:9) at step 0"
