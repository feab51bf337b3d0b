"""Activations that are computed again: to the same bits, once each, and only where a gradient needs them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MODELS, assert_same, model_in, spec_of
from torch import nn

from ftae.engine.models.recomputation import recomputed_stages
from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.engine.training.trainer import Trainer
from ftae.specs.finetune.run import FinetuneSpec

MOST_PENALTIES = {"r1": 1.0, "r1_every": 1, "lecam": 0.1}
LOSSES: dict[str, dict[str, Any]] = {
    "conv_ae": {
        "losses": {"mse": 1.0, "adversarial": 0.1},
        "discriminator": {"channels": 4, "depth": 1, "adaptive": True},
    },
    "stylegan2": {"losses": {"adversarial": 1.0, "path_length": 2.0}},
}  # gradients of gradients, and several backward passes through one forward pass


def trained(spec: FinetuneSpec) -> tuple[Trainer, list[Any]]:
    trainer = Trainer(spec)
    trainer.train_to(2)
    states = [network.model.state_dict() for network in trainer.task.networks]
    return trainer, [states, trainer.measured(), torch.get_rng_state()]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_has_the_same_bits(name: str, pretrained_models: Path) -> None:
    """Weights, running statistics, codes, terms of the loss, and the state of the random generator."""
    changes = LOSSES.get(name, {}) | ({"discriminator": {"channels": 4, **MOST_PENALTIES}} if name == "dcgan" else {})
    specs = [spec_of(model_in(pretrained_models, name), checkpoint_stages=on, **changes) for on in (False, True)]
    (_, kept), (trainer, again) = map(trained, specs)
    assert_same(again, kept)
    assert all("forward" not in vars(module) for module in trainer.autoencoder.modules()), "as it was built"


def test_bf16_and_dropout_have_the_same_bits() -> None:
    specs = [spec_of(MODELS["unet_translator"], checkpoint_stages=on, precision="bf16") for on in (False, True)]
    assert_same(*(trained(spec)[1] for spec in specs))


@pytest.mark.parametrize(("on", "times"), [(False, 1), (True, 2)])
def test_stages_run_again_in_the_backward_pass_but_for_the_frozen_start(on: bool, times: int) -> None:
    trainer = Trainer(spec_of(MODELS["conv_vae"], checkpoint_stages=on, freeze_depth=1, frozen_cache_gb=0))
    convs = [module for module in trainer.autoencoder.modules() if isinstance(module, nn.Conv2d)]
    calls = dict.fromkeys(convs, 0)

    def count(module: nn.Module, *_: object) -> None:
        calls[module] += 1  # type: ignore[index]

    for conv in convs:
        conv.register_forward_hook(count)
    trainer.train_step()
    down, last = [*trainer.autoencoder.net.down], trainer.autoencoder.net.out  # type: ignore[misc]
    counts = {calls[conv] for conv in convs if conv not in (down[0][0], last)}
    assert (calls[down[0][0]], counts) == (1, {times})


def test_each_forward_pass_is_repeated_with_the_buffers_that_it_had() -> None:
    """A spectral norm moves in every forward pass of training mode, and its weight depends on where it is."""
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), nn.Tanh())
        model = StagedModel(net, [Stage("all", "encoder", (net,))], save=lambda folder: None)
        inputs = torch.randn(2, 4, 3)
        with recomputed_stages([model] if on else []):
            first, second = net(inputs[0]), net(inputs[1])
        (first.sum() + second.square().sum()).backward(retain_graph=True)
        second.sum().backward()
        found.append([model.state_dict(), [p.grad for p in net.parameters()]])
    assert_same(*found)
