"""Parameter groups, optimizers, schedules and the moving average."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ftae.engine.models.autoencoder import Autoencoder, Encoding
from ftae.engine.models.families import build_model
from ftae.engine.models.staged_model import Stage
from ftae.engine.tasks.task import WeightAverage, base_lr, build_optimizer, lr_factor, set_lr
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.optimization import Optimizer, Schedule
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))
        self.code = nn.Linear(4, 2)
        self.up = nn.Linear(2, 4)


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    net = Net()
    stages = [
        Stage("encoder.down", "encoder", (net.down,)),
        Stage("code", "bottleneck", (net.code,)),
        Stage("decoder.up", "decoder", (net.up,)),
    ]
    return Autoencoder(
        net,
        stages,
        image_range=(0.0, 1.0),
        channels=1,
        encode=lambda images, labels, noise: Encoding(images),
        decode=lambda latents, labels: latents,
        save=lambda folder: None,
    )


def by_name(ae: Autoencoder, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    names = {id(p): name.removeprefix("net.") for name, p in ae.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def spec_of(**changes: Any) -> FinetuneSpec:
    fields = {"losses": {"mse": 1.0}, "optimizer.lr": 1e-3, "max_steps": 4, "num_evals": 1, "num_threads": 1}
    return run_spec(**fields | changes)


# ------------------------------------------------------------------------------------------- groups


def test_weight_decay_is_for_matrices_only() -> None:
    ae = autoencoder()
    decay = by_name(ae, build_optimizer(ae, Optimizer(lr=0.1, weight_decay=0.3)), "weight_decay")
    assert decay == {
        "down.0.weight": 0.3,
        "down.0.bias": 0.0,
        "down.1.weight": 0.0,
        "down.1.bias": 0.0,
        "code.weight": 0.3,
        "code.bias": 0.0,
        "up.weight": 0.3,
        "up.bias": 0.0,
    }


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_weight_decay_pulls_matrices_only(name: Any) -> None:
    ae = autoencoder()
    optimizer = build_optimizer(ae, Optimizer(name=name, lr=0.1, weight_decay=0.3))
    before = {n: p.detach().clone() for n, p in ae.named_parameters()}
    for parameter in ae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {n for n, p in ae.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"net.down.0.weight", "net.code.weight", "net.up.weight"}


def test_multipliers_are_a_product_over_group_stage_and_parameter() -> None:
    ae = autoencoder()
    multipliers = {"encoder": 0.5, "*.up": 3.0, "decoder": 0.1, "up.bias": 7.0, "down.0.*": 0.2}
    optimizer = build_optimizer(ae, Optimizer(lr=0.1, lr_multipliers=multipliers))
    expected = {
        "down.0.weight": 0.1,
        "down.0.bias": 0.1,
        "down.1.weight": 0.5,
        "down.1.bias": 0.5,
        "code.weight": 1.0,
        "code.bias": 1.0,
        "up.weight": 0.3,
        "up.bias": 2.1,
    }
    assert by_name(ae, optimizer, "multiplier") == pytest.approx(expected)
    assert by_name(ae, optimizer, "lr") == pytest.approx({name: 0.1 * m for name, m in expected.items()})


def test_every_trainable_parameter_is_in_one_group() -> None:
    ae = autoencoder()
    ae.freeze(1, ())
    groups = build_optimizer(ae, Optimizer(lr=0.1, weight_decay=0.1, lr_multipliers={"decoder": 2.0})).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in ae.parameters() if p.requires_grad)
    assert len(groups) == 4  # two multipliers, with and without decay


def test_a_multiplier_that_matches_nothing_is_refused() -> None:
    with pytest.raises(FtaeError) as caught:
        build_optimizer(autoencoder(), Optimizer(lr=0.1, lr_multipliers={"encoder": 1.0, "head": 2.0}))
    assert str(caught.value) == (
        "optimizer.lr_multipliers: 'head' matches nothing. "
        "Groups: encoder, bottleneck, decoder. Stages: encoder.down, code, decoder.up"
    )


def test_a_multiplier_of_a_frozen_stage_is_no_mistake() -> None:
    """A search varies freeze_depth and multipliers independently."""
    ae = autoencoder()
    ae.freeze(1, ())
    optimizer = build_optimizer(ae, Optimizer(lr=0.1, lr_multipliers={"encoder": 0.1}))
    assert set(by_name(ae, optimizer, "multiplier").values()) == {1.0}


# --------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "adamw"}, torch.optim.AdamW),
        ({"name": "adam", "betas": (0.5, 0.9)}, torch.optim.Adam),
        ({"name": "radam"}, torch.optim.RAdam),
        ({"name": "sgd"}, torch.optim.SGD),
        ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD),
    ],
)
def test_every_optimizer_lowers_the_loss(fields: dict[str, Any], kind: type[torch.optim.Optimizer]) -> None:
    ae = autoencoder()
    spec = Optimizer(lr=0.01, **fields)
    optimizer = build_optimizer(ae, spec)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group.get("betas") == (None if spec.name == "sgd" else spec.betas or (0.9, 0.999))
    assert group.get("momentum", 0.0) == (spec.momentum or 0.0)

    def loss() -> torch.Tensor:
        return sum((p.square().sum() for p in ae.parameters()), torch.zeros(()))

    before = loss().item()
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before


# ---------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ({"name": "constant", "warmup_fraction": 0.0}, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ({"name": "constant", "warmup_fraction": 0.2}, {0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        ({"name": "linear", "warmup_fraction": 0.2}, {0.05: 0.25, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        ({"name": "linear", "warmup_fraction": 0.0, "final_fraction": 0.2}, {0.0: 1.0, 0.5: 0.6, 1.0: 0.2}),
        ({"name": "cosine", "warmup_fraction": 0.0}, {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
        ({"name": "cosine", "warmup_fraction": 0.5, "final_fraction": 0.1}, {0.25: 0.5, 0.75: 0.55, 1.0: 0.1}),
        ({"name": "cyclical", "warmup_fraction": 0.0, "num_cycles": 1}, {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        (
            {"name": "cyclical", "warmup_fraction": 0.0, "num_cycles": 3, "final_fraction": 0.5},
            {0.0: 1.0, 0.1: 0.75, 0.2: 0.5, 0.4: 1.0, 0.6: 0.5, 0.8: 1.0, 1.0: 0.5},
        ),
    ],
)
def test_schedules_at_key_points(schedule: dict[str, Any], points: dict[float, float]) -> None:
    found = {progress: lr_factor(Schedule(**schedule), progress) for progress in points}
    assert found == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cyclical"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.4])
def test_the_rate_is_never_zero_and_rises_while_warming_up(name: str, warmup: float) -> None:
    spec = spec_of(max_steps=50, schedule={"name": name, "warmup_fraction": warmup})
    ae = autoencoder()
    optimizer = build_optimizer(ae, Optimizer(lr=1e-3, lr_multipliers={"decoder": 0.1}))
    rates = [base_lr(spec, step) for step in range(50)]
    assert min(rates) > 0.0
    assert max(rates) <= 1e-3
    warming = rates[: round(50 * warmup)]
    assert warming == sorted(set(warming))
    set_lr(optimizer, rates[-1])
    assert by_name(ae, optimizer, "lr")["up.bias"] == pytest.approx(0.1 * rates[-1])
    assert by_name(ae, optimizer, "lr")["code.bias"] == rates[-1]


def test_a_single_step_is_not_lost_to_warming_up() -> None:
    spec = spec_of(max_steps=1, schedule={"name": "cosine", "warmup_fraction": 0.5})
    assert base_lr(spec, 0) == 1e-3


# ----------------------------------------------------------------------------------- moving average


def test_after_its_half_life_the_average_is_halfway() -> None:
    ae = autoencoder()
    average = WeightAverage(ae, half_life_steps=7.0)
    start = {n: w.clone() for n, w in average.weights.items()}
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.add_(1.0)
    for _ in range(7):
        average.update()
    for name, weight in average.weights.items():
        torch.testing.assert_close(weight, start[name] + 0.5, atol=1e-5, rtol=0)
    for _ in range(7):
        average.update()
    for name, weight in average.weights.items():
        torch.testing.assert_close(weight, start[name] + 0.75, atol=1e-5, rtol=0)


def test_the_own_weights_are_restored_even_after_an_error() -> None:
    ae = autoencoder()
    average = WeightAverage(ae, half_life_steps=1.0)
    with torch.no_grad():
        for parameter in ae.parameters():
            parameter.add_(torch.randn_like(parameter))
    own = {n: p.detach().clone() for n, p in ae.named_parameters()}
    averaged = {n: w.clone() for n, w in average.weights.items()}

    def fail_with_averaged_weights() -> None:
        with average.applied():
            assert all(torch.equal(p, averaged[n]) for n, p in ae.named_parameters())
            assert not any(torch.equal(p, own[n]) for n, p in ae.named_parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_averaged_weights()
    assert all(torch.equal(p, own[n]) for n, p in ae.named_parameters())
    assert all(torch.equal(w, averaged[n]) for n, w in average.weights.items())


def test_the_half_life_is_a_fraction_of_the_budget(tmp_path: Path) -> None:
    spec = spec_of(ema_half_life_fraction=0.25, optimizer={"lr": 1e-2}, max_steps=8, num_evals=8)
    decay = 0.5 ** (1 / (0.25 * 8))
    expected = build_model(spec, None).net.out.weight.detach()
    for report in finetune(spec, tmp_path):
        if report.checkpoint is not None:
            checkpoint = tmp_path / report.checkpoint
            live = load_file(checkpoint / "model.safetensors")["net.out.weight"]
            expected = decay * expected + (1 - decay) * live
            averaged = load_file(checkpoint / "average.safetensors")["net.out.weight"]
            torch.testing.assert_close(averaged, expected)
            assert not torch.equal(averaged, live)


# --------------------------------------------------------------------------------------- clipping


def test_the_reported_gradient_norm_is_that_before_clipping(tmp_path: Path) -> None:
    def run(limit: float | None) -> tuple[float, torch.Tensor]:
        spec = spec_of(max_grad_norm=limit, max_steps=1, optimizer={"name": "sgd", "lr": 1.0})
        *_, last = finetune(spec, tmp_path)
        checkpoint = latest_checkpoint(tmp_path)
        assert checkpoint is not None
        after, before = load_file(checkpoint / "model.safetensors"), build_model(spec, None).state_dict()
        moved = torch.cat([(after[n] - before[n]).flatten() for n in before])
        return last.metrics["train/grad_norm"], moved / last.metrics["train/lr"]

    free_norm, free_step = run(None)
    clipped_norm, clipped_step = run(0.1 * free_norm)
    assert clipped_norm == free_norm
    assert free_step.norm().item() == pytest.approx(free_norm, rel=1e-3)
    assert clipped_step.norm().item() == pytest.approx(0.1 * free_norm, rel=1e-3)
    torch.testing.assert_close(clipped_step, 0.1 * free_step, atol=1e-6, rtol=1e-2)
