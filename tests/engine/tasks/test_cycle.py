"""The task of two domains: both directions and both discriminators learn, and the pools survive a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from ftae.engine.models.families import build_model
from ftae.engine.sizing import summarize
from ftae.engine.tasks.adversarial_losses import ADVERSARIAL_LOSSES
from ftae.engine.tasks.cycle import Cycle, ImagePool
from ftae.engine.tasks.discriminator import TwoDiscriminators, alternating, apart, discriminator_of
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

RUN: dict[str, Any] = {
    "model": {"family": "cyclegan", "channels": 2, "blocks": 1},
    "data.source": "digit_domains",
    "losses": {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0},
    "discriminator": {"channels": 4, "depth": 1, "lr": 1e-3, "pool_size": 3},
    "batch_size": 4,
    "max_steps": 4,
    "num_evals": 2,
    "metrics": ["psnr"],
    "num_threads": 1,
}


def spec_of(**changes: Any) -> FinetuneSpec:
    return run_spec(**RUN | changes)


def trained(**changes: Any) -> tuple[Trainer, Cycle]:
    trainer = Trainer(spec_of(**changes))
    assert isinstance(trainer.task, Cycle)
    return trainer, trainer.task


def images(number: int) -> Tensor:
    """Images (number, 1, 1, 1), each of another value."""
    return torch.arange(1.0, number + 1).reshape(-1, 1, 1, 1)


def test_rows_alternate_and_come_apart() -> None:
    rows = alternating(images(2), -images(2))
    assert rows.flatten().tolist() == [1, -1, 2, -2]
    assert [part.flatten().tolist() for part in apart(rows)] == [[1, 2], [-1, -2]]


def test_each_discriminator_sees_its_own_domain() -> None:
    both = discriminator_of(spec_of()).eval()
    assert isinstance(both, TwoDiscriminators)
    b, a = torch.rand(2, 3, 1, 16, 16).unbind()
    of_b, of_a = apart(both(alternating(b, a)))
    assert torch.equal(of_b, both.net["b"](b))
    assert torch.equal(of_a, both.net["a"](a))
    assert not torch.equal(both.net["a"](b), of_b)  # they begin with other weights


def test_least_squares_by_hand() -> None:
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0])
    loss = ADVERSARIAL_LOSSES["lsgan"]
    assert loss.discriminator(real, fake).item() == pytest.approx((0.25 + 1.0) / 2 + (1.0 + 1.0) / 2)
    assert loss.model(fake, None).item() == pytest.approx((0.0 + 4.0) / 2)


def test_the_terms_are_means_of_both_directions() -> None:
    trainer, task = trained()
    batch, model = trainer._batch(0), trainer.autoencoder
    terms, made = task.forward(batch, ["cycle", "identity"], 0.0)
    assert model.reverse is not None
    a, b = model.to_range(batch.inputs), model.to_range(batch.images)
    made_b, made_a = model.run(a)[1], model.reverse(b)
    assert torch.equal(made, alternating(made_b, made_a))
    cycle = (model.reverse(made_b) - a).abs().mean() + (model.run(made_a)[1] - b).abs().mean()
    identity = (model.run(b)[1] - b).abs().mean() + (model.reverse(a) - a).abs().mean()
    assert terms["cycle"].item() == pytest.approx(cycle.item() / 2, rel=1e-5)
    assert terms["identity"].item() == pytest.approx(identity.item() / 2, rel=1e-5)


def test_both_directions_and_both_discriminators_learn() -> None:
    trainer, task = trained(losses={"adversarial": 1.0, "cycle": 10.0})
    nets = [trainer.autoencoder.net.ab, trainer.autoencoder.net.ba, *task.discriminator.model.net.children()]
    before = [[p.detach().clone() for p in net.parameters()] for net in nets]
    trainer.train_step()
    for net, weights in zip(nets, before, strict=True):
        moved = [not torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True)]
        assert sum(moved) > len(moved) / 2  # a bias before an instance norm has no effect
    found = trainer.measured()
    assert "train/identity" not in found
    assert found["train/loss"] == pytest.approx(found["train/adversarial"] + 10 * found["train/cycle"], rel=1e-5)


# ------------------------------------------------------------------------------------------- the pool


def test_a_full_pool_gives_back_earlier_images() -> None:
    torch.manual_seed(0)
    pool = ImagePool(50)
    assert torch.equal(pool.exchange(images(50)), images(50))
    shown = pool.exchange(-images(200)).flatten()
    earlier = int((shown != -images(200).flatten()).sum())
    assert 60 < earlier < 140  # about half
    assert len(pool.images) == 50
    none = ImagePool(0)
    assert torch.equal(none.exchange(images(3)), images(3))
    assert none.images == []


def test_pools_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The bits of a resumed run are held by the contract of all tasks; here the pools are full by then."""
    spec = spec_of()
    reports = list(finetune(spec, tmp_path / "whole"))
    for report in finetune(spec, tmp_path / "stopped"):
        if report.step == 2:
            break
    checkpoint = latest_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    pools = torch.load(checkpoint / "training.pt", weights_only=True)["task"]["pools"]
    assert [len(pool) for pool in pools] == [3, 3]
    assert (checkpoint / "discriminator.safetensors").is_file()
    *_, last = finetune(spec, tmp_path / "stopped", resume_from=checkpoint)
    assert last.metrics == reports[-1].metrics


def test_an_export_has_both_discriminators_for_the_next_run(tmp_path: Path) -> None:
    spec = spec_of(max_steps=1, num_evals=1)
    list(finetune(spec, tmp_path / "run"))
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    export_model(spec, checkpoint, tmp_path / "model")
    prefixes = {name.partition(".")[0] for name in load_file(tmp_path / "model/discriminator.safetensors")}
    assert prefixes == {"netD_A", "netD_B"}
    settings = {**RUN["discriminator"], "pretrained": str(tmp_path / "model")}
    loaded = discriminator_of(spec_of(discriminator=settings)).net.state_dict()
    trained = load_file(checkpoint / "discriminator.safetensors")
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


# --------------------------------------------------------------------------------- stages, refusals


def test_freeze_depth_counts_in_each_direction() -> None:
    model = build_model(spec_of(freeze_depth=2, freeze=["ba.decoder.out"]), None)
    frozen = [stage.name for stage in model.stages if stage not in model.trainable_stages()]
    first = [f"{way}.{name}" for way in ("ab", "ba") for name in ("encoder.stem", "encoder.down.0")]
    assert frozen == [*first, "ba.decoder.out"]
    one_way = build_model(spec_of(freeze=["ab"]), None)
    assert {stage.group for stage in one_way.trainable_stages()} == {"ba"}
    with pytest.raises(FtaeError, match="at most 7, the number of stages of each direction, got 8"):
        build_model(spec_of(freeze_depth=8), None)


def test_the_size_of_a_checkpoint_counts_both_pools() -> None:
    sizes = [summarize(spec_of(**{"discriminator.pool_size": size}), None).checkpoint_bytes for size in (0, 50)]
    assert sizes[1] - sizes[0] == 2 * 50 * 16 * 16 * 4


def test_defaults_are_those_of_the_paper() -> None:
    settings = spec_of(discriminator={"depth": 1}).discriminator
    assert (settings.loss, settings.betas, settings.adaptive) == ("lsgan", (0.5, 0.999), False)
    assert (settings.start_fraction, settings.pool_size) == (0.0, 50)
    assert run_spec().discriminator.loss == "hinge"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data.source": "digits"}, "cyclegan learns from two domains (unpaired, digit_domains), got digits"),
        ({"model": {"family": "conv_ae"}}, "digit_domains needs a model that translates both ways (cyclegan)"),
        ({"losses": {"cycle": 1.0}}, "adversarial: must be above 0"),
        ({"losses": {"adversarial": 1.0, "l1": 1.0}}, "l1: compares each output with an image of its own"),
        ({"discriminator": {"adaptive": True}}, "adaptive: has no effect on cyclegan"),
        ({"data": {"source": "unpaired", "train": "x", "resolution": 16}}, "psnr compares each output with the true"),
    ],
)
def test_what_two_domains_do_not_have_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec_of(**changes)
    assert rule in str(caught.value)


def test_losses_of_both_ways_need_such_a_model() -> None:
    with pytest.raises(ValidationError, match="cycle: needs a model that translates both ways"):
        run_spec(losses={"mse": 1.0, "cycle": 1.0})
