"""What every task keeps to, and what the trainer and checkpoints may therefore expect of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftae.engine.data.batches import Batch
from ftae.engine.models.families import build_model
from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.engine.tasks import TASKS, check_workers, task_kind
from ftae.engine.tasks.task import MODEL, Loss, NetworkInTraining, WeightAverage
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec
from tests.small_models import MODELS

AT_ONCE = {"start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0}
CHANGES: dict[str, dict[str, Any]] = {
    "reconstruct": {},
    "adversarial": {
        "losses.adversarial": 0.1,
        "discriminator": {"channels": 4, "r1": 0.1, "lecam": 0.1, "norm": "group", **AT_ONCE},
    },
    "synthesise": {
        "model": MODELS["stylegan2"],
        "losses": {"adversarial": 1.0, "path_length": 2.0},
        "discriminator": {"channel_base": 64, "channel_max": 8, "r1": 0.1, "r1_every": 2, "augment": {"name": "ada"}},
        "metrics": ["sharpness"],
    },
    "cycle": {
        "model": {"family": "cyclegan", "channels": 2, "blocks": 1},
        "data.source": "digit_domains",
        "losses": {"adversarial": 1.0, "cycle": 10.0, "identity": 1.0},
        "discriminator": {"channels": 4, "r1": 0.1, "lecam": 0.1, "norm": "group", "depth": 1, "pool_size": 10},
    },
}
TERM = {"reconstruct": "mse", "adversarial": "mse", "synthesise": "adversarial"}


def spec_of(kind: str, **changes: Any) -> FinetuneSpec:
    fields = {"ema_half_life_fraction": 0.5, "max_steps": 4, "num_evals": 2, "metrics": ["mse"], "num_threads": 1}
    return run_spec(**fields | CHANGES[kind] | changes)


@pytest.mark.parametrize("kind", TASKS)
class TestEveryTask:
    def test_the_spec_decides_the_kind(self, kind: str) -> None:
        assert task_kind(spec_of(kind)) == kind

    def test_the_model_is_the_first_of_its_networks_and_names_are_unique(self, kind: str) -> None:
        trainer = Trainer(spec_of(kind))
        names = [network.name for network in trainer.task.networks]
        assert names[0] == MODEL
        assert trainer.task.networks[0].model is trainer.autoencoder
        assert len(set(names)) == len(names)

    def test_a_step_changes_every_network_that_is_due(self, kind: str) -> None:
        trainer = Trainer(spec_of(kind))
        before = [[p.detach().clone() for p in network.parameters] for network in trainer.task.networks]
        trainer.train_step()
        for network, weights in zip(trainer.task.networks, before, strict=True):
            assert trainer.task.is_due(network, 0)
            assert not all(torch.equal(p, w) for p, w in zip(network.parameters, weights, strict=True))
        terms = {f"train/{name}" for name in trainer.spec.losses.weights()}
        assert {"train/loss", "train/grad_norm", "train/lr"} | terms <= trainer.measured().keys()

    def test_two_batches_of_a_step_are_one_large_batch(self, kind: str) -> None:
        if kind == "synthesise":
            pytest.skip("each batch has noise of its own, and its images affect each other in the discriminator")
        sizes = [{"batch_size": 8}, {"batch_size": 4, "grad_accumulation": 2}]
        fixed = {"sample_posterior": False} if spec_of(kind).model.has_posterior else {}
        runs = [Trainer(spec_of(kind, **fixed, **size)) for size in sizes]
        for trainer in runs:
            trainer.train_step()
        large, split = (trainer.measured() for trainer in runs)
        assert split == pytest.approx(large, rel=2e-3)

    def test_a_resumed_run_is_the_same_to_the_bit(self, kind: str, tmp_path: Path) -> None:
        spec = spec_of(kind)
        whole = list(finetune(spec, tmp_path / "whole"))
        for report in finetune(spec, tmp_path / "stopped"):
            if report.step == 2:
                break
        newest = latest_checkpoint(tmp_path / "stopped")
        resumed = list(finetune(spec, tmp_path / "stopped", resume_from=newest))
        assert [report.metrics for report in resumed] == [report.metrics for report in whole[1:]]
        end, other = latest_checkpoint(tmp_path / "whole"), latest_checkpoint(tmp_path / "stopped")
        assert end is not None
        assert other is not None
        files = sorted(file.name for file in end.glob("*.safetensors"))
        assert {"model.safetensors", "average.safetensors"} <= set(files)
        assert all((end / name).read_bytes() == (other / name).read_bytes() for name in files)

    def test_several_workers_can_train_one_network_only(self, kind: str) -> None:
        check_workers(spec_of(kind), 1)
        if len(Trainer(spec_of(kind)).task.networks) == 1:
            check_workers(spec_of(kind), 2)
        else:
            with pytest.raises(FtaeError, match="2 workers cannot share"):
                check_workers(spec_of(kind), 2)


def test_networks_take_turns_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer asks the task alone what to do: here the second network is due in every other step."""
    trainer = Trainer(spec_of("adversarial", grad_accumulation=2))
    task, turns, batches = trainer.task, [], []
    loss = task.loss

    def noted(network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        turns.append((step, network.name))
        batches.append(batch)
        return loss(network, batch, step)

    monkeypatch.setattr(task, "loss", noted)
    monkeypatch.setattr(task, "is_due", lambda network, step: network.name == MODEL or step % 2 == 0)
    trainer.train_to(2)
    assert turns == [(0, "model")] * 2 + [(0, "discriminator")] * 2 + [(1, "model")] * 2
    assert [batches[0] is batches[2], batches[1] is batches[3]] == [True, True]


# ------------------------------------------------------------------------------- a network in training


def network_of(name: str = MODEL, **options: Any) -> NetworkInTraining:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model = StagedModel(net, [Stage("all", "encoder", (net,))], save=lambda folder: None)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return NetworkInTraining(name, model, optimizer, lambda step: 0.1 * (step + 1), **{"max_grad_norm": None} | options)


def backward(network: NetworkInTraining) -> float:
    network.begin_step()
    network.model.net(torch.eye(2)).square().sum().backward()
    return network.grad_norm().item()


def test_a_step_uses_the_rate_of_its_number() -> None:
    network = network_of()
    weight = network.parameters[0].detach().clone()
    norm = backward(network)
    gradient = network.parameters[0].grad
    assert gradient is not None
    network.take_step(4, norm)
    assert network.lr == pytest.approx(0.5)
    torch.testing.assert_close(network.parameters[0].detach(), weight - 0.5 * gradient)


def test_a_resting_network_passes_gradients_and_does_not_change() -> None:
    network = network_of()
    backward(network)
    network.begin_step()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    network.rest()
    inputs = torch.eye(2, requires_grad=True)
    network.model.net(inputs).square().sum().backward()
    assert inputs.grad is not None
    assert all(p.grad is None for p in network.parameters)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    network.begin_step()
    assert network.model.training
    assert backward(network) > 0


def test_frozen_parameters_are_not_in_training() -> None:
    spec = spec_of("reconstruct", freeze_depth=1)
    network = Trainer(spec).task.networks[0]
    frozen = {id(p) for p in network.model.parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & {id(p) for p in network.parameters}


def test_further_networks_have_files_of_their_own_names() -> None:
    spec = spec_of("reconstruct")
    average = WeightAverage(build_model(spec, None), 1.0)
    assert network_of(average=average).tensors().keys() == {"model", "average"}
    assert network_of("generator", average=average).tensors().keys() == {"generator", "generator_average"}
    assert network_of("generator").tensors().keys() == {"generator"}


def test_averaged_weights_are_used_inside_the_block_alone() -> None:
    trainer = Trainer(spec_of("reconstruct"))
    trainer.train_to(2)
    network = trainer.task.networks[0]
    assert network.average is not None
    name, weights = next(iter(network.average.weights.items()))
    parameter = dict(network.model.named_parameters())[name]
    own = parameter.detach().clone()
    with trainer.averaged():
        assert torch.equal(parameter, weights)
    assert torch.equal(parameter, own)
    assert not torch.equal(own, weights)
