"""What every staged model promises: its stages, the four meanings of frozen, and its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MODELS, built, images_for, model_in
from torch import Tensor

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.engine.tasks.discriminator import Discriminator, build_discriminator
from ftae.engine.tasks.task import build_optimizer
from ftae.specs.finetune.discriminator import DiscriminatorSpec
from ftae.specs.finetune.optimization import Optimizer

Build = Callable[[str | None], StagedModel]  # folder or file of pretrained weights, or None -> the model
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "discriminator_spectral": {"channels": 4, "norm": "spectral"},
    "discriminator_group": {"channels": 4, "norm": "group"},
    "discriminator_dcgan": {"channels": 4, "architecture": "dcgan"},
    "discriminator_stylegan2": {"channel_base": 64, "channel_max": 8, "architecture": "stylegan2"},
}


@pytest.fixture(scope="module", params=[*MODELS, *DISCRIMINATORS])
def build(request: pytest.FixtureRequest, pretrained_models: Path) -> Build:
    """Builds the same model each time."""
    name = request.param
    if name in DISCRIMINATORS:

        def discriminator(pretrained: str | None) -> StagedModel:
            fields = DISCRIMINATORS[name] | {"pretrained": pretrained and f"{pretrained}/model.safetensors"}
            return build_discriminator(DiscriminatorSpec(**fields), channels=3, resolution=16, seed=0)

        return discriminator
    model = model_in(pretrained_models, name)
    return lambda pretrained: built(model | ({} if pretrained is None else {"pretrained": pretrained}))


@pytest.fixture
def frozen(build: Build) -> StagedModel:
    """All stages but the last are frozen; then the model was in eval mode, and is in training mode again."""
    model = build(None)
    model.freeze(0, tuple(stage.name for stage in model.stages[:-1]))
    model.eval()
    return model.train()


def loss_of(model: StagedModel) -> Tensor:
    """A loss that depends on every stage."""
    if isinstance(model, Discriminator):
        result: Tensor = model(torch.rand(8, 3, 16, 16)).square().mean()
        return result
    assert isinstance(model, Autoencoder)
    images, labels = images_for(model, 8), torch.arange(8) % 2
    encoding, made = model.run(images, labels, torch.randn_like)
    made = made if model.reverse is None else model.reverse(made)
    codes = [choice.commitment + (choice.codebook or 0.0) for choice in encoding.codes]
    targets = torch.zeros_like(made) if images.shape != made.shape else images
    return (made - targets).square().mean() + sum(codes)


def state_of(stages: list[Stage]) -> list[Tensor]:
    return [t.clone() for stage in stages for module in stage.modules for t in module.state_dict().values()]


def same(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]


class TestContract:
    def test_stages_cover_every_parameter_exactly_once(self, build: Build) -> None:
        model = build(None)
        staged = [id(p) for stage in model.stages for p in stage.parameters()]
        assert len(staged) == len(set(staged))
        assert set(staged) == {id(p) for p in model.parameters()}
        assert len({stage.name for stage in model.stages}) == len(model.stages)

    def test_frozen_parameters_get_no_gradient(self, frozen: StagedModel) -> None:
        loss_of(frozen).backward()  # type: ignore[no-untyped-call]
        *first, last = frozen.stages
        assert all(not p.requires_grad and p.grad is None for stage in first for p in stage.parameters())
        assert all(p.grad is not None for p in last.parameters())

    def test_frozen_parameters_are_not_in_the_optimizer(self, frozen: StagedModel) -> None:
        anything: Any = frozen
        groups = build_optimizer(anything, Optimizer(lr=0.1, weight_decay=0.1)).param_groups
        optimized = {id(p) for group in groups for p in group["params"]}
        assert frozen.trainable_stages() == frozen.stages[-1:]
        assert optimized == {id(p) for p in frozen.stages[-1].parameters()}

    def test_frozen_stages_stay_in_eval_mode(self, frozen: StagedModel) -> None:
        assert frozen.training
        *first, last = frozen.stages
        assert not any(m.training for stage in first for module in stage.modules for m in module.modules())
        assert all(m.training for module in last.modules for m in module.modules())

    def test_buffers_of_frozen_stages_do_not_move(self, frozen: StagedModel) -> None:
        before = state_of(frozen.stages[:-1])
        for _ in range(2):
            loss_of(frozen)
        assert all(same(before, state_of(frozen.stages[:-1])))

    def test_a_step_moves_the_trained_stage_alone(self, frozen: StagedModel) -> None:
        anything: Any = frozen
        first, last = state_of(frozen.stages[:-1]), state_of(frozen.stages[-1:])
        optimizer = build_optimizer(anything, Optimizer(name="adamw", lr=0.1, weight_decay=0.1))
        loss_of(frozen).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert all(same(first, state_of(frozen.stages[:-1])))
        assert not all(same(last, state_of(frozen.stages[-1:])))

    def test_a_saved_model_is_loaded_with_every_tensor(self, build: Build, tmp_path: Path) -> None:
        model = build(None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save(tmp_path)
        loaded, expected = build(str(tmp_path)).state_dict(), model.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
        fresh = build(None).state_dict()
        assert not all(torch.equal(fresh[name], tensor) for name, tensor in expected.items())


def test_some_models_have_buffers_that_would_move() -> None:
    """Else the contract would promise nothing."""
    for model in (
        built(MODELS["vq_vae"]),
        build_discriminator(DiscriminatorSpec(channels=4), channels=3, resolution=16, seed=0),
    ):
        model.train()
        before = state_of(model.stages)
        loss_of(model)
        assert not all(same(before, state_of(model.stages)))
