"""The adversarial task: who gets which gradient, when each network is trained, and what is kept of it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.families import build_model
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.sizing import probe, summarize
from ftae.engine.tasks import TASKS, task_kind
from ftae.engine.tasks.adversarial import Adversarial
from ftae.engine.tasks.adversarial_losses import gradient_penalty
from ftae.engine.tasks.discriminator import build_discriminator
from ftae.engine.tasks.task import NetworkInTraining
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint
from ftae.engine.training.export_model import export_model
from ftae.engine.training.local_workers import local_workers
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec

AT_ONCE = {"start_fraction": 0.0, "ramp_fraction": 0.0, "warmup_fraction": 0.0}


def spec_of(discriminator: dict[str, Any] | None = None, **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_ae", "channels": 4, "latent_channels": 2},
        "losses": {"mse": 1.0, "adversarial": 0.5},
        "discriminator": {"channels": 4, "lr": 1e-3, **(discriminator or {})},
        "optimizer.lr": 1e-3,
        "max_steps": 10,
        "num_evals": 5,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def task_of(**discriminator: Any) -> Adversarial:
    spec = spec_of({**AT_ONCE, **discriminator})
    autoencoder = build_model(spec, None)
    noise = torch.randn_like
    return Adversarial(
        spec, autoencoder, AuxiliaryNetworks(), FrozenFeatureCache(autoencoder), noise=noise, averaged=True
    )


def turn(task: Adversarial, *pairs: tuple[Tensor, Tensor], step: int = 0) -> dict[str, float]:
    """The discriminator's turn on pairs of images and reconstructions; the means of what it measures."""
    network, parts = task.discriminator, []
    network.begin_step()
    for real, fake in pairs:
        loss = task.discriminator_loss(real, fake, real)
        (loss.total / len(pairs)).backward()  # type: ignore[no-untyped-call]
        parts.append({name: term.item() for name, term in loss.terms.items()})
    norm = network.grad_norm().item()
    network.take_step(step, norm)
    return task.stepped(network, parts, norm)


def trained(spec: FinetuneSpec, steps: int) -> Trainer:
    trainer = Trainer(spec)
    trainer.train_to(steps)
    return trainer


def task_in(trainer: Trainer) -> Adversarial:
    assert isinstance(trainer.task, Adversarial)
    return trainer.task


def numbers(state: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in state.items()}


def images(seed: int, count: int = 4) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


REAL, FAKE = images(0), images(1)


def test_the_loss_term_makes_a_run_adversarial() -> None:
    assert task_kind(spec_of()) == "adversarial"
    assert task_kind(spec_of(losses={"mse": 1.0})) == "reconstruct"
    assert [network.name for network in task_of().networks] == ["model", "discriminator"]
    assert TASKS["adversarial"] is Adversarial


# ------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_both_losses_by_hand(loss: Any) -> None:
    task = task_of(loss=loss, lr=1e-9, norm="group")
    of_real, of_fake = (task.discriminator.model(x).detach().double() for x in (REAL, FAKE))
    measured = turn(task, (REAL, FAKE))
    if loss == "hinge":
        own, model = (1 - of_real).clamp_min(0).mean() + (1 + of_fake).clamp_min(0).mean(), -of_fake.mean()
    else:
        own = -(of_real.sigmoid().log().mean() + (1 - of_fake.sigmoid()).log().mean())
        model = -of_fake.sigmoid().log().mean()
    assert measured["discriminator"] == pytest.approx(own.item(), rel=1e-5)
    assert measured["logits_real"] == pytest.approx(of_real.mean().item(), rel=1e-5)
    assert measured["logits_fake"] == pytest.approx(of_fake.mean().item(), rel=1e-5)
    assert task.model_loss(FAKE, FAKE).item() == pytest.approx(model.item(), rel=1e-5)


def test_r1_is_the_squared_gradient_summed_over_pixels() -> None:
    slope = torch.linspace(-1.0, 1.0, 16)
    net = nn.Conv2d(1, 1, 4, bias=False)
    with torch.no_grad():
        net.weight.copy_(slope.reshape(1, 1, 4, 4))
    assert gradient_penalty(net, torch.rand(3, 1, 4, 4)).item() == pytest.approx(float(slope.square().sum()))
    # 8x8 gives 25 logits an image, of which the mean counts
    logit = F.conv_transpose2d(torch.full((1, 1, 5, 5), 1 / 25), net.weight)
    assert gradient_penalty(net, torch.rand(3, 1, 8, 8)).item() == pytest.approx(logit.square().sum().item())


def test_the_weights_of_r1_and_lecam_scale_their_parts() -> None:
    def loss(**weights: float) -> float:
        return turn(task_of(norm="group", **weights), (REAL, FAKE))["discriminator"]

    plain = loss()
    for name in ("r1", "lecam"):
        once, tenfold = loss(**{name: 1.0}) - plain, loss(**{name: 10.0}) - plain
        assert once > 0
        assert tenfold == pytest.approx(10 * once, rel=1e-2)


def test_lecam_holds_the_logits_of_one_side_to_the_average_of_the_other() -> None:
    task = task_of(norm="group", lecam=1.0, loss="hinge")
    untrained = task_of(norm="group").discriminator.model
    first, without = turn(task, (REAL, FAKE)), turn(task_of(norm="group"), (REAL, FAKE))
    of_real, of_fake = untrained(REAL), untrained(FAKE)
    assert first["discriminator"] - without["discriminator"] == pytest.approx(
        (of_real.square().mean() + of_fake.square().mean()).item(),
        rel=1e-3,  # the averages begin at 0
    )
    averages = task.state()["logit_averages"].tolist()
    assert averages == pytest.approx([0.01 * first["logits_real"], 0.01 * first["logits_fake"]], rel=1e-4)


# ---------------------------------------------------------------------------------------- gradients


def test_neither_loss_leaves_a_gradient_in_the_other_network() -> None:
    trainer = Trainer(spec_of({**AT_ONCE, "adaptive": False}))
    task = task_in(trainer)
    reconstruction = images(1).requires_grad_(True)
    task.model_loss(reconstruction, reconstruction).backward()  # type: ignore[no-untyped-call]
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(p.grad is None for p in task.discriminator.parameters)
    trainer.train_step()
    of_model = [p.grad.clone() for p in task.model.parameters if p.grad is not None]
    turn(task, (REAL, FAKE))
    assert all(p.grad is not None for p in task.discriminator.parameters)
    left = [p.grad for p in task.model.parameters if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(of_model, left, strict=True))


def test_the_loss_of_the_model_changes_nothing_in_the_discriminator() -> None:
    task = task_of()
    net = task.discriminator.model
    before = numbers(net.state_dict())  # spectral normalisation has vectors that change in training mode
    for _ in range(3):
        task.model_loss(FAKE, FAKE)
    assert numbers(net.state_dict()) == before
    turn(task, (REAL, FAKE))
    after = numbers(net.state_dict())
    assert all(after[name] != value for name, value in before.items() if name.endswith("original"))
    assert any(after[name] != value for name, value in before.items() if name.endswith("_v"))


def test_the_gradient_of_the_discriminator_is_clipped_by_its_own_limit() -> None:
    for limit in (None, 1e-3):
        task = task_of(max_grad_norm=limit)
        before_clipping = turn(task, (REAL, FAKE))["discriminator_grad_norm"]
        left = task.discriminator.grad_norm().item()
        assert left == pytest.approx(before_clipping if limit is None else limit, rel=1e-3)
        assert before_clipping > 0.01


def test_the_weight_scales_the_share_of_the_term_in_the_total() -> None:
    def first_step(weight: float) -> dict[str, float]:
        losses = {"mse": 1.0, "adversarial": weight}
        return trained(spec_of({**AT_ONCE, "adaptive": False}, losses=losses), 1).measured()

    once, tenfold = first_step(0.1), first_step(1.0)
    assert tenfold["train/adversarial"] == once["train/adversarial"] != 0.0
    parts = [found["train/loss"] - found["train/mse"] for found in (once, tenfold)]
    assert parts == pytest.approx([0.1 * once["train/adversarial"], once["train/adversarial"]], rel=1e-4)


# ----------------------------------------------------------------------------------- adaptive weight


def balanced_norms(trainer: Trainer) -> tuple[float, float, float]:
    """The adaptive weight of a batch, and the norms of the two gradients at the last weight of the decoder."""
    task, autoencoder = task_in(trainer), trainer.autoencoder
    last = autoencoder.stages[-1].modules[0].weight
    assert isinstance(last, nn.Parameter)
    batch = images(0)
    made = autoencoder.decode(autoencoder.encode(batch).latents)
    terms = {"mse": F.mse_loss(made, batch), "adversarial": task.model_loss(made, batch)}
    factor = task.adaptive_weight(terms, {"mse": 3.0, "adversarial": 0.5})
    norms = [torch.autograd.grad(term, [last], retain_graph=True)[0].norm().item() for term in terms.values()]
    return factor, 3.0 * norms[0], norms[1]


def test_both_gradients_get_the_same_norm_at_the_last_decoder_weight() -> None:
    factor, others, own = balanced_norms(Trainer(spec_of(AT_ONCE)))
    assert factor == pytest.approx(others / (own + 1e-4), rel=1e-4)
    assert balanced_norms(Trainer(spec_of({**AT_ONCE, "max_adaptive_weight": factor / 2})))[0] == factor / 2
    assert balanced_norms(Trainer(spec_of({**AT_ONCE, "adaptive": False})))[0] == 1.0


def test_the_adaptive_weight_is_1_with_a_warning_where_the_decoder_is_frozen(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(spec_of(AT_ONCE, freeze=["decoder"]), 2)
    assert trainer.measured()["train/adaptive_weight"] == 1.0
    said = [record.getMessage() for record in caplog.records]
    assert said == ["discriminator.adaptive has no effect: no weight of the decoder is trained"]


def test_the_adaptive_weight_is_1_where_no_other_term_depends_on_the_decoder() -> None:
    losses = {"kl": 1e-3, "adversarial": 0.5}
    trainer = trained(spec_of(AT_ONCE, losses=losses, model={"family": "conv_vae", "channels": 4}), 1)
    assert trainer.measured()["train/adaptive_weight"] == 1.0


# ------------------------------------------------------------------------------------- in the loop


def test_warm_up_and_ramp_begin_where_the_spec_says(tmp_path: Path) -> None:
    gates = {"start_fraction": 0.4, "warmup_fraction": 0.2, "ramp_fraction": 0.4, "adaptive": False}
    (*_,) = reports = list(finetune(spec_of(gates, num_evals=10), tmp_path))
    seen = {report.step - 1: report.metrics for report in reports[1:]}  # of one step each
    assert [step for step in seen if "train/discriminator" in seen[step]] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert [step for step in seen if "train/adversarial" in seen[step]] == [5, 6, 7, 8, 9]  # at 4 its weight is 0
    weights = [
        (seen[step]["train/loss"] - seen[step]["train/mse"]) / seen[step]["train/adversarial"] for step in range(5, 10)
    ]
    assert weights == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-3)


def test_until_the_warm_up_the_run_is_the_same_as_without_the_term(tmp_path: Path) -> None:
    late = {"start_fraction": 0.6, "warmup_fraction": 0.4, "ramp_fraction": 0.0}
    runs = {"with": spec_of(late), "without": spec_of(late, losses={"mse": 1.0})}
    found = {name: list(finetune(spec, tmp_path / name)) for name, spec in runs.items()}
    errors = {name: [report.metrics["val/mse"] for report in reports] for name, reports in found.items()}
    assert errors["with"][:4] == errors["without"][:4]
    assert errors["with"][4:] != errors["without"][4:]


def test_the_discriminator_learns_from_every_batch_of_a_step() -> None:
    settings = {**AT_ONCE, "norm": "group"}
    large = trained(spec_of(settings, batch_size=8), 1)
    split = trained(spec_of(settings, batch_size=2, grad_accumulation=4), 1)
    for name in ("discriminator", "discriminator_grad_norm", "logits_real", "logits_fake"):
        assert split.measured()[f"train/{name}"] == pytest.approx(large.measured()[f"train/{name}"], rel=1e-3)


def test_the_discriminator_learns_to_tell_blurred_digits_from_real_ones() -> None:
    task = task_of(channels=16, loss="non_saturating")
    digits = torch.from_numpy(Trainer(spec_of()).data.train.images[:32].copy()).permute(0, 3, 1, 2) / 255
    blurred = F.avg_pool2d(digits, 5, stride=1, padding=2, count_include_pad=False)
    found = [turn(task, *[(digits, blurred)] * 6, step=step) for step in range(10)]
    assert found[-1]["discriminator"] < found[0]["discriminator"] - 0.02
    assert found[-1]["logits_real"] > found[-1]["logits_fake"]


def test_bf16_trains_fp32_weights_of_both_networks() -> None:
    settings = {**AT_ONCE, "r1": 1.0}
    precise, short = (trained(spec_of(settings, precision=p), 2) for p in ("fp32", "bf16"))
    for name, value in precise.measured().items():
        assert math.isfinite(short.measured()[name])
        assert short.measured()[name] == pytest.approx(value, rel=0.2, abs=0.05)
    assert short.measured() != precise.measured()
    assert {p.dtype for p in task_in(short).discriminator.parameters} == {torch.float32}


def metrics_of(reports: list[EvalReport]) -> list[tuple[int, dict[str, float]]]:
    return [(report.step, report.metrics) for report in reports]


# Before its warm-up, in it, and on the ramp.
@pytest.mark.parametrize(("stop", "norm"), [(2, "spectral"), (4, "spectral"), (8, "spectral"), (8, "group")])
def test_a_resumed_run_is_the_same_to_the_bit(stop: int, norm: str, tmp_path: Path) -> None:
    spec = spec_of(
        {"norm": norm, "start_fraction": 0.5, "warmup_fraction": 0.2, "ramp_fraction": 0.4, "lecam": 0.1, "r1": 0.1},
        ema_half_life_fraction=0.3,
    )
    whole = list(finetune(spec, tmp_path / "whole"))
    for report in finetune(spec, tmp_path / "cut"):
        if report.step == stop:
            break
    newest = latest_checkpoint(tmp_path / "cut")
    resumed = list(finetune(spec, tmp_path / "cut", resume_from=newest))
    assert metrics_of(resumed) == metrics_of(whole)[stop // 2 :]
    ends = [latest_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    for file in ("model.safetensors", "discriminator.safetensors"):
        states = [numbers(load_file(end / file)) for end in ends if end is not None]
        assert states[0] == states[1]


def test_a_checkpoint_gives_the_next_run_its_discriminator_and_the_exported_model_has_none(tmp_path: Path) -> None:
    spec = spec_of(AT_ONCE, max_steps=2, num_evals=1)
    list(finetune(spec, tmp_path))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    saved = load_file(newest / "discriminator.safetensors")
    fresh, again = (
        build_discriminator(spec.discriminator.model_copy(update={"pretrained": file}), channels=1, seed=0).net
        for file in (None, str(newest / "discriminator.safetensors"))
    )
    assert numbers(again.state_dict()) == numbers(saved) != numbers(fresh.state_dict())
    export_model(spec, newest, tmp_path / "model")
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == build_model(spec, None).net.state_dict().keys()


def test_plan_and_probe_include_the_discriminator(tmp_path: Path) -> None:
    late, without = spec_of({"start_fraction": 0.9}), spec_of(losses={"mse": 1.0})
    added = summarize(late, None).checkpoint_bytes - summarize(without, None).checkpoint_bytes
    list(finetune(late, tmp_path))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    weights = (newest / "discriminator.safetensors").stat().st_size
    assert 3 * weights * 0.7 < added <= 3 * weights
    seen: list[str] = []
    original = NetworkInTraining.take_step

    def noted(network: NetworkInTraining, step: int, norm: float) -> None:
        seen.append(network.name)
        original(network, step, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkInTraining, "take_step", noted)
        probe(late)
    assert seen[:4] == ["model", "discriminator"] * 2  # trained from the first step on


# ----------------------------------------------------------------------------------------- failures


def failure_of(spec: FinetuneSpec, folder: Path) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as caught:
        list(finetune(spec, folder))
    return caught.value


def test_images_worse_than_flat_ones_are_a_blow_up(tmp_path: Path) -> None:
    """A model that reconstructs, then a weight that drowns every other term."""
    model = {"family": "conv_ae", "channels": 8, "latent_channels": 8, "depth": 1}
    begin = spec_of(model=model, losses={"mse": 1.0}, optimizer={"lr": 1e-2}, max_steps=40, num_evals=1, batch_size=32)
    *_, last = finetune(begin, tmp_path / "begin")
    assert last.checkpoint is not None
    export_model(begin, tmp_path / "begin" / last.checkpoint, tmp_path / "model")
    wild = {**AT_ONCE, "adaptive": False, "lr": 1e-2, "max_grad_norm": None}
    spec = spec_of(
        wild,
        model={"family": "conv_ae", "pretrained": str(tmp_path / "model")},
        losses={"mse": 1.0, "adversarial": 1e4},
        optimizer={"lr": 3e-2},
        max_steps=60,
        num_evals=12,
    )
    failure = failure_of(spec, tmp_path / "wild")
    assert failure.reason == Reason.BLOW_UP
    assert failure.step <= 60
    tame = spec.model_copy(update={"losses": begin.losses})
    assert [report.step for report in finetune(tame, tmp_path / "tame")][-1] == 60  # without the term nothing fails


def test_a_discriminator_that_is_not_finite_is_a_blow_up(tmp_path: Path) -> None:
    settings = {**AT_ONCE, "warmup_fraction": 0.5, "start_fraction": 0.5, "norm": "group", "lr": 1e38}
    failure = failure_of(spec_of({**settings, "max_grad_norm": None}), tmp_path)
    assert failure.reason == Reason.BLOW_UP
    assert 1 <= failure.step < 5  # before the term enters the loss of the model


def test_several_workers_are_refused() -> None:
    with pytest.raises(FtaeError, match=r"2 workers cannot share losses\.adversarial"), local_workers(spec_of(), 2):
        pass


# ------------------------------------------------------------------------------------------------ pairs

PIX2PIX: dict[str, Any] = {
    "model": {"family": "unet_translator", "channels": 4, "depth": 2},
    "data": {"source": "digit_edges", "resolution": 16, "classes": [3, 7], "flip": True},
    "losses": {"l1": 100.0, "adversarial": 1.0},
}


@pytest.mark.parametrize(
    ("changes", "conditional", "sees"),
    [
        (PIX2PIX, None, True),
        (PIX2PIX, False, False),
        ({}, None, False),
        ({"data.degrade": {"noise": 0.1}}, None, False),
        ({"data.degrade": {"noise": 0.1}}, True, True),
    ],
)
def test_a_conditional_discriminator_sees_the_input(
    changes: dict[str, Any], conditional: bool | None, sees: bool
) -> None:
    trainer = Trainer(spec_of({**AT_ONCE, "conditional": conditional, "r1": 1.0}, **changes))
    trainer.train_step()
    task = task_in(trainer)
    task.discriminator.rest()
    made, real, given, other = torch.rand(4, 2, 1, 16, 16).unbind()
    losses = [task.model_loss(made, seen).item() for seen in (given, other)]
    assert (losses[0] != losses[1]) == sees
    losses = [task.discriminator_loss(real, made, seen).total.item() for seen in (given, other)]
    assert (losses[0] != losses[1]) == sees


def test_translation_resumes_to_the_bit_and_leaves_frozen_stages(tmp_path: Path) -> None:
    settings = {"start_fraction": 0.5, "warmup_fraction": 0.2, "ramp_fraction": 0.4, "adaptive": False}
    spec = spec_of(settings, **PIX2PIX, freeze_depth=1)
    whole = list(finetune(spec, tmp_path / "whole"))
    for report in finetune(spec, tmp_path / "cut"):
        if report.step == 8:
            break
    resumed = list(finetune(spec, tmp_path / "cut", resume_from=latest_checkpoint(tmp_path / "cut")))
    assert metrics_of(resumed) == metrics_of(whole)[4:]
    ends = [latest_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    models, discriminators = (
        [load_file(end / file) for end in ends if end is not None]
        for file in ("model.safetensors", "discriminator.safetensors")
    )
    assert [numbers(state) for state in models] == [numbers(models[0])] * 2
    assert [numbers(state) for state in discriminators] == [numbers(discriminators[0])] * 2
    untrained = build_model(spec, None).state_dict()
    moved = {
        name.split(".")[1] + name.split(".")[2] for name in untrained if not untrained[name].equal(models[0][name])
    }
    assert moved == {"down1", "up0", "up1"}
