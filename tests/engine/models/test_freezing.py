"""Which stages are frozen, by depth and by pattern, and what a run does with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from safetensors.torch import load_file
from torch import Tensor, nn

from ftae.engine.models.autoencoder import Autoencoder, ClassificationHead, Encoding
from ftae.engine.models.families import build_model
from ftae.engine.models.staged_model import Stage
from ftae.engine.tasks.task import WeightAverage, build_optimizer
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.optimization import Optimizer
from ftae.specs.finetune.run import FinetuneSpec


class Codebook(nn.Module):
    """A buffer that follows what passes through in training mode, as the codes of a VQ layer do."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, latents: Tensor) -> Tensor:
        if self.training:
            self.codes += 0.1 * (latents.detach().mean((0, 2, 3)) - self.codes)
        return latents * self.scale[:, None, None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.codebook = Codebook()
        self.last = nn.Conv2d(4, 1, 1)


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    net = Net()
    stages = [
        Stage("encoder.first", "encoder", (net.first,)),
        Stage("encoder.second", "encoder", (net.second,)),
        Stage("codebook", "bottleneck", (net.codebook,)),
        Stage("decoder.last", "decoder", (net.last,)),
    ]
    return Autoencoder(
        net,
        stages,
        image_range=(0.0, 1.0),
        channels=1,
        encode=lambda images, labels, noise: Encoding(net.codebook(net.second(net.first(images)))),
        decode=lambda latents, labels: net.last(latents),
        save=lambda folder: None,
    )


def with_head() -> Autoencoder:
    ae = autoencoder()
    ae.add_head(ClassificationHead(torch.zeros(1, 4, 8, 8), num_classes=3))
    return ae


def frozen_names(ae: Autoencoder) -> list[str]:
    trainable = ae.trainable_stages()
    return [stage.name for stage in ae.stages if stage not in trainable]


def train_step(ae: Autoencoder, optimizer: torch.optim.Optimizer) -> None:
    ae.train()
    images = torch.rand(4, 1, 8, 8)
    optimizer.zero_grad(set_to_none=True)
    (ae.decode(ae.encode(images).latents) - images).square().mean().backward()
    optimizer.step()


def state(stage: Stage) -> dict[str, Tensor]:
    return {f"{i}.{k}": v.clone() for i, m in enumerate(stage.modules) for k, v in m.state_dict().items()}


# --------------------------------------------------------------------------------- what frozen means


def test_frozen_parameters_get_no_gradient() -> None:
    ae = autoencoder()
    ae.freeze(2, ())
    train_step(ae, build_optimizer(ae, Optimizer(lr=0.1)))
    for i, stage in enumerate(ae.stages):
        for parameter in stage.parameters():
            assert parameter.requires_grad == (i >= 2)
            assert (parameter.grad is None) == (i < 2)


def test_frozen_parameters_are_not_in_the_optimizer_nor_averaged() -> None:
    ae = autoencoder()
    ae.freeze(2, ("decoder",))
    groups = build_optimizer(ae, Optimizer(lr=0.1, weight_decay=0.1)).param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(ae.net.codebook.scale)]
    assert list(WeightAverage(ae, 1.0).weights) == ["net.codebook.scale"]


def test_eval_mode_of_frozen_stages_survives_train() -> None:
    ae = autoencoder()
    ae.freeze(1, ())
    for switch in (ae.train, lambda: ae.eval().train(), lambda: ae.train(True)):
        switch()
        assert ae.training
        assert ae.net.second.training
        assert not any(module.training for module in ae.net.first.modules())
    ae.eval()
    assert not any(module.training for module in ae.modules())


def test_a_model_in_training_mode_is_frozen_at_once() -> None:
    ae = autoencoder().train()
    ae.freeze(1, ())
    assert not any(module.training for module in ae.net.first.modules())
    assert ae.net.second.training


def test_a_frozen_start_is_a_function_of_its_input_alone() -> None:
    ae, images = autoencoder(), torch.rand(2, 1, 8, 8)
    ae.train()
    assert not torch.equal(ae.net.first(images), ae.net.first(images))  # dropout
    ae.freeze(1, ())
    ae.train()
    assert torch.equal(ae.net.first(images), ae.net.first(images))
    # No batch statistics. Not to the bit: some processors take another kernel for one image than for two.
    torch.testing.assert_close(ae.net.first(images)[:1], ae.net.first(images[:1]))


@pytest.mark.parametrize(
    ("depth", "patterns", "frozen"),
    [
        (0, (), []),
        (1, (), ["encoder.first"]),
        (3, (), ["encoder.first", "encoder.second", "codebook"]),
        (0, ("encoder",), ["encoder.first", "encoder.second"]),
        (0, ("encoder.s*", "bottleneck"), ["encoder.second", "codebook"]),
        (1, ("decoder.last",), ["encoder.first", "decoder.last"]),
    ],
)
def test_exactly_the_chosen_stages_are_unchanged_by_steps(
    depth: int, patterns: tuple[str, ...], frozen: list[str]
) -> None:
    ae = autoencoder()
    ae.freeze(depth, patterns)
    assert frozen_names(ae) == frozen
    before = [state(stage) for stage in ae.stages]
    optimizer = build_optimizer(ae, Optimizer(name="adamw", lr=0.1, weight_decay=0.1))
    for _ in range(3):
        train_step(ae, optimizer)
    for stage, old in zip(ae.stages, before, strict=True):
        new = state(stage)
        # Parameters, running statistics, batch counters, codes.
        same = {name: torch.equal(old[name], new[name]) for name in old}
        assert all(same.values()) if stage.name in frozen else not any(same.values()), (stage.name, same)


# --------------------------------------------------------------------------------------------- head


def test_depth_does_not_count_the_head() -> None:
    ae = with_head()
    ae.freeze(4, ())
    assert [stage.name for stage in ae.trainable_stages()] == ["head"]
    with pytest.raises(FtaeError, match=r"freeze_depth must be at most 4, the number of stages, got 5"):
        with_head().freeze(5, ())


def test_a_head_can_be_frozen_by_name() -> None:
    ae = with_head()
    ae.freeze(0, ("head",))
    assert frozen_names(ae) == ["head"]


# ----------------------------------------------------------------------------------------- messages


def test_a_depth_beyond_the_stages_is_refused() -> None:
    with pytest.raises(FtaeError, match=r"^freeze_depth must be at most 4, the number of stages, got 7$"):
        autoencoder().freeze(7, ())


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(FtaeError) as caught:
        autoencoder().freeze(0, ("encoder", "encoder.thrid"))
    assert str(caught.value) == (
        "freeze: 'encoder.thrid' matches no stage. Stages: encoder.first, encoder.second, codebook, decoder.last"
    )


@pytest.mark.parametrize(("depth", "patterns"), [(4, ()), (0, ("*",)), (3, ("decoder",))])
def test_nothing_left_to_train_is_refused(depth: int, patterns: tuple[str, ...]) -> None:
    with pytest.raises(FtaeError, match=r"leave nothing to train\. Stages: encoder\.first, "):
        autoencoder().freeze(depth, patterns)


# ------------------------------------------------------------------------------------- a whole run


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 4, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.1},
        "ema_half_life_fraction": 0.5,
        "max_steps": 4,
        "num_evals": 1,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


@pytest.mark.parametrize("patterns", [("decoder",), ("encoder", "bottleneck"), ("*.up.*",)])
def test_a_run_leaves_frozen_stages_bit_for_bit(patterns: tuple[str, ...], tmp_path: Path) -> None:
    spec = spec_of(freeze=patterns)
    before, after = build_model(spec, None), build_model(spec, None)
    list(finetune(spec, tmp_path))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    after.load_state_dict(load_file(checkpoint / "model.safetensors"))
    for old, new in zip(before.stages, after.stages, strict=True):
        same = [torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
        frozen = any(old.matches(pattern) for pattern in patterns)
        assert all(same) if frozen else not any(same), old.name


def test_losses_that_reach_nothing_trainable_are_refused(tmp_path: Path) -> None:
    spec = spec_of(losses={"kl": 1.0}, freeze=("encoder", "bottleneck"))
    with pytest.raises(FtaeError, match=r"freeze leaves nothing to train that losses \(kl\) depend on"):
        list(finetune(spec, tmp_path))
