"""Stages of a user's own module: its children and parameters in order, or those that the spec names."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from safetensors.torch import load_file

from ftae.engine.models.families import build_model
from ftae.engine.sizing import StageSummary, summarize
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.search.plan import plan
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.search import ProductionSpec


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where the module lies."""
    (tmp_path / "staged_nets.py").write_text(STAGED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "staged_nets", raising=False)
    return tmp_path


def message_of(action: Any) -> str:
    """Of the one error that a user sees."""
    with pytest.raises(FtaeError) as caught:
        action()
    assert type(caught.value) is FtaeError
    assert "\n" not in str(caught.value)
    return str(caught.value)


STAGED = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.first, self.last = nn.Conv2d(1, 4, 4, 2, 1), nn.Conv2d(4, 2, 4, 2, 1)
    def forward(self, images): return self.last(self.first(images) + self.position)

class Net(nn.Module):
    def __init__(self, frozen=(), detached=False):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.encoder = Tokens()
        self.code = nn.Conv2d(2, 2, 1)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2, 4, 4, 2, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1))
        self.detached = detached
        for name in frozen:
            part = self.get_parameter(name) if name in dict(self.named_parameters()) else self.get_submodule(name)
            part.requires_grad_(False)
    def encode(self, images): return self.code(self.encoder(images))
    def decode(self, latents):
        return self.decoder(latents.detach() if self.detached else latents) * self.gain + self.shift
"""
STAGES = [
    ("gain", "encoder"),
    ("shift", "encoder"),
    ("encoder.position", "encoder"),
    ("encoder.first", "encoder"),
    ("encoder.last", "encoder"),
    ("code", "bottleneck"),
    ("decoder.0", "decoder"),
    ("decoder.1", "decoder"),
]


def staged(kwargs: dict[str, Any] | None = None, **changes: Any) -> FinetuneSpec:
    model = {"family": "staged_nets:Net", "kwargs": kwargs or {}, "image_range": [0, 1]} | changes.pop("model", {})
    fields = {"model": model, "losses": {"mse": 1.0}, "metrics": ["mse"]}
    return run_spec(**fields | {"max_steps": 2, "num_evals": 1, "num_threads": 1} | changes)


def summary(spec: FinetuneSpec) -> dict[str, StageSummary]:
    return {stage.name: stage for stage in summarize(spec, None).stages}


def test_parameters_in_no_child_are_stages_of_their_own(home: Path) -> None:
    spec = staged(freeze=["gain", "encoder.position"], optimizer={"lr": 1.0, "lr_multipliers": {"shift": 0.5}})
    model = build_model(spec, None)
    assert [(stage.name, stage.group) for stage in model.stages] == STAGES
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    *_, last = finetune(spec, home / "run")
    assert last.checkpoint is not None
    after = load_file(home / "run" / last.checkpoint / "model.safetensors")
    still = {name for name, tensor in before.items() if torch.equal(after[f"net.{name}"], tensor)}
    assert still == {"gain", "encoder.position"}


def test_parameters_can_be_named_as_stages(home: Path) -> None:
    named = {"encoder": ["encoder"], "bottleneck": ["code"], "decoder": ["decoder", "gain", "shift"]}
    stages = summary(staged(model={"stages": named}))
    assert [(s.name, s.group, s.num_parameters) for s in stages.values()][-2:] == [
        ("gain", "decoder", 1),
        ("shift", "decoder", 1),
    ]
    missing = staged(model={"stages": {**named, "decoder": ["decoder", "gain"]}})
    assert "shift is in none: name it, or the sub-module that holds it" in message_of(lambda: summary(missing))
    unknown = staged(model={"stages": {**named, "decoder": ["decoder", "gian"]}})
    assert "no sub-module or parameter 'gian', did you mean 'gain'?" in message_of(lambda: summary(unknown))


def test_parameters_frozen_by_the_module_are_not_called_trained(home: Path) -> None:
    spec = staged({"frozen": ["encoder", "decoder.0.bias"]})
    found = summarize(spec, None)
    stages = {stage.name: stage for stage in found.stages}
    assert not any(stages[name].trainable for name in ("encoder.position", "encoder.first", "encoder.last"))
    assert stages["decoder.0"].num_parameters - stages["decoder.0"].num_trainable == 4
    assert found.num_parameters - found.num_trainable == 256 + 68 + 130 + 4
    lines = plan(ProductionSpec(name="p", finetune=spec))
    assert any(re.search(r"encoder\.first .* frozen by the module itself$", line) for line in lines)
    assert any(re.search(r"decoder\.0 .* trained, 4 of them frozen by the module itself$", line) for line in lines)
    model = build_model(spec, None)
    assert {stage.name for stage in model.trainable_stages()} == {"gain", "shift", "code", "decoder.0", "decoder.1"}


def test_a_multiplier_for_parameters_frozen_by_the_module_is_refused(home: Path) -> None:
    optimizer = {"lr": 1e-3, "lr_multipliers": {"encoder.*": 0.1}}
    summarize(staged(optimizer=optimizer), None)
    summarize(staged(optimizer=optimizer, freeze=["encoder"]), None)  # a search may freeze less
    message = message_of(lambda: summarize(staged({"frozen": ["encoder"]}, optimizer=optimizer), None))
    assert "'encoder.*' has no effect: the module itself has frozen all that it matches" in message


def test_stages_that_no_gradient_reaches_are_named_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(finetune(staged({"detached": True}, max_steps=4, num_evals=2), home / "run"))
    messages = [record.getMessage() for record in caplog.records if "no gradient" in record.getMessage()]
    unreached = "encoder.position, encoder.first, encoder.last, code"
    assert messages == [f"no gradient reaches {unreached}: the losses of the first step do not depend on it"]
    caplog.clear()
    list(finetune(staged(), home / "other"))
    assert caplog.records == []
