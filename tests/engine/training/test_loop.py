"""The training loop: what it reports, that it repeats itself exactly, and how it fails."""

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusers import save_tiny_kl

from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.families import build_model
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.metrics import EvalContext
from ftae.engine.objectives.mode_collapse import Sign
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint
from ftae.engine.training.evaluator import evaluate
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec

USER_MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Fails in the forward pass number ``fail_at`` (from 1) of training mode."""

    def __init__(self, failure=None, fail_at=1):
        super().__init__()
        self.encoder = nn.Conv2d(1, 2, 3, padding=1)
        self.decoder = nn.Conv2d(2, 1, 3, padding=1)
        self.failure, self.fail_at, self.count = failure, fail_at, 0

    def encode(self, images):
        self.count += self.training
        features = self.encoder(images)
        if self.failure == "evaluation" and not self.training and len(images) > 1:
            raise torch.OutOfMemoryError("tried to allocate too much")
        if not self.training or self.count != self.fail_at:
            return features
        if self.failure == "memory":
            raise torch.OutOfMemoryError("tried to allocate too much")
        if self.failure == "loss":
            return features * float("nan")
        if self.failure == "gradient":  # a finite value whose derivative at 0 is infinite, times 0
            return features + torch.sqrt(features * 0.0)
        return features

    def decode(self, latents):
        return self.decoder(latents)


class Halving(Net):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def encode(self, images):
        return super().encode(images.mul_(0.5) if self.in_place else images * 0.5)


class Damaged(Net):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self.decoder.bias, float("nan"))
'''


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small pretrained AutoencoderKL, and with a user's module that can be imported."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "loop_nets.py").write_text(USER_MODULE)
    save_tiny_kl(folder / "kl")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("loop_nets", None)


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model.depth": ...,
        "data.classes": [0, 1],
        "max_steps": 6,
        "num_evals": 3,
        "metrics": ["mse", "psnr"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def net(**kwargs: Any) -> dict[str, Any]:
    return {"family": "loop_nets:Net", "kwargs": kwargs, "image_range": "0..1"}


def kl_spec(home: Path, **changes: Any) -> FinetuneSpec:
    data = {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1]}
    return spec_of(model={"family": "autoencoder_kl", "pretrained": str(home / "kl")}, data=data, **changes)


def failure_of(spec: FinetuneSpec, folder: Path) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as caught:
        list(finetune(spec, folder))
    return caught.value


def metrics_of(reports: list[EvalReport]) -> list[tuple[int, dict[str, float]]]:
    return [(report.step, report.metrics) for report in reports]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    return load_file(checkpoint / "model.safetensors")


# ------------------------------------------------------------------------------------------ reports


def test_the_first_report_is_of_the_untuned_model(tmp_path: Path) -> None:
    spec = spec_of(ema_half_life_fraction=0.5)
    first = next(finetune(spec, tmp_path))
    autoencoder = build_model(spec, None).to(memory_format=torch.channels_last)
    data = load_dataset(spec.data)
    metrics, _ = evaluate(
        EvalContext(autoencoder, spec, AuxiliaryNetworks(), data.train, torch.device("cpu")), data.val
    )
    assert (first.step, first.checkpoint) == (0, None)
    assert first.metrics == {f"val/{name}": value for name, value in metrics.items()}
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("max_steps", "num_evals", "steps"), [(7, 3, [0, 2, 5, 7]), (3, 3, [0, 1, 2, 3]), (2, 1, [0, 2])]
)
def test_reports_come_at_the_steps_of_the_spec(
    max_steps: int, num_evals: int, steps: list[int], tmp_path: Path
) -> None:
    spec = spec_of(max_steps=max_steps, num_evals=num_evals)
    assert [report.step for report in finetune(spec, tmp_path)] == steps


def test_everything_a_report_names_is_on_disk(tmp_path: Path) -> None:
    for report in finetune(spec_of(), tmp_path):
        assert (tmp_path / report.images).is_file()
        if report.step > 0:
            assert report.checkpoint is not None
            files = {p.name for p in (tmp_path / report.checkpoint).iterdir()}
            assert files == {"model.safetensors", "training.pt", "report.json", "sha256.json"}


def test_the_picture_shows_input_reconstruction_and_difference(tmp_path: Path) -> None:
    report = next(finetune(spec_of(), tmp_path))
    with Image.open(tmp_path / report.images) as picture:
        assert picture.mode == "L"
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (6 * 96, 6 * 96)  # 12 images; 16 pixels a side, enlarged to at least 96
    cells = pixels[::6, ::6].reshape(6, 16, 6, 16).swapaxes(1, 2)  # (row, column, 16, 16)
    inputs, reconstructions, differences = (cells[:, start::3].reshape(12, 16, 16) for start in range(3))
    val = load_dataset(spec_of().data).val.images
    assert (inputs[0] == val[0, :, :, 0]).all()
    assert (inputs[-1] == val[-1, :, :, 0]).all()
    assert (abs(abs(inputs - reconstructions) - differences) <= 1).all()


def test_reports_have_every_term_rate_and_time(tmp_path: Path) -> None:
    first, *others = finetune(spec_of(schedule={"name": "linear", "warmup_fraction": 0.0}), tmp_path)
    assert first.timing.keys() == {"time/eval_seconds"}
    for report in others:
        train = {"train/loss", "train/mse", "train/kl", "train/grad_norm", "train/lr"}
        assert report.metrics.keys() == {"val/mse", "val/psnr"} | train
        assert report.timing.keys() == {"time/eval_seconds", "time/train_seconds", "time/images_per_second"}
        assert min(report.timing.values()) > 0
        weighted = report.metrics["train/mse"] + 1e-3 * report.metrics["train/kl"]
        assert report.metrics["train/loss"] == pytest.approx(weighted, rel=1e-5)
    # Means over the two steps before each report: the middles of 6 steps are at 1/12, 3/12, ...
    rates = [1e-2 * (1 - (a + b) / 24) for a, b in [(1, 3), (5, 7), (9, 11)]]
    assert [report.metrics["train/lr"] for report in others] == pytest.approx(rates)


def test_training_improves_the_model(tmp_path: Path) -> None:
    first, *_, last = finetune(spec_of(max_steps=40, num_evals=1, batch_size=16), tmp_path)
    assert last.metrics["val/psnr"] > first.metrics["val/psnr"] + 3


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    # Plain gradient descent: Adam would enlarge the last digits of small gradients.
    fields: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.5}, "max_steps": 3, "num_evals": 1}
    fields |= {"sample_posterior": False, "max_grad_norm": None}
    for name, size in [("large", {"batch_size": 12}), ("split", {"batch_size": 4, "grad_accumulation": 3})]:
        list(finetune(spec_of(**fields, **size), tmp_path / name))
    large, split = final_weights(tmp_path / "large"), final_weights(tmp_path / "split")
    for name in large:
        torch.testing.assert_close(split[name], large[name], atol=1e-5, rtol=1e-4)


def test_the_posterior_is_sampled_only_where_asked(tmp_path: Path) -> None:
    sampled, mode = (
        [r.metrics["train/mse"] for r in list(finetune(spec_of(sample_posterior=s), tmp_path))[1:]]
        for s in (True, False)
    )
    assert sampled[0] != mode[0]


def test_the_averaged_weights_are_evaluated(tmp_path: Path) -> None:
    spec = spec_of(ema_half_life_fraction=0.5, losses={"mse": 1.0})
    *_, last = finetune(spec, tmp_path)
    assert last.checkpoint is not None
    autoencoder = build_model(spec, None).to(memory_format=torch.channels_last)
    data = load_dataset(spec.data)
    subject = EvalContext(autoencoder, spec, AuxiliaryNetworks(), data.train, torch.device("cpu"))
    found = []
    for file in ("model.safetensors", "average.safetensors"):
        autoencoder.load_state_dict(load_file(tmp_path / last.checkpoint / file))
        found.append(evaluate(subject, data.val)[0]["mse"])
    assert last.metrics["val/mse"] == found[1] != found[0]


def test_a_module_may_write_into_the_images_it_is_given(tmp_path: Path) -> None:
    found = []
    for in_place in (False, True):
        model = net() | {"family": "loop_nets:Halving", "kwargs": {"in_place": in_place}}
        spec = spec_of(model=model, losses={"mse": 1.0, "l1": 0.1}, metrics=["mse"])
        found.append(metrics_of(list(finetune(spec, tmp_path))))
    assert found[0] == found[1]


@pytest.mark.parametrize("max_norm_over_norm", [1e-9, 0.5, 0.9995, 1.0, 1.0005, 2.0])
def test_gradients_are_clipped_as_torch_does_it(max_norm_over_norm: float) -> None:
    changes = {"optimizer": {"name": "sgd", "lr": 1.0}}
    expected = Trainer(spec_of(max_grad_norm=None, **changes))
    expected.train_step()
    norm = expected.task.networks[0].grad_norm()
    max_norm = max_norm_over_norm * norm.item()
    torch.nn.utils.clip_grads_with_norm_(expected.task.networks[0].parameters, max_norm, norm)
    clipped = Trainer(spec_of(max_grad_norm=max_norm, **changes))
    clipped.train_step()
    for its, wanted in zip(clipped.task.networks[0].parameters, expected.task.networks[0].parameters, strict=True):
        assert its.grad is not None
        assert wanted.grad is not None
        assert torch.equal(its.grad, wanted.grad)


# -------------------------------------------------------------------------------------- repeatable


def test_the_same_spec_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        metrics_of(list(finetune(spec_of(seed=seed), tmp_path / name)))
        for name, seed in [("first", 0), ("again", 0), ("other", 1)]
    )
    assert again == first
    assert [metrics for _, metrics in other] != [metrics for _, metrics in first]


def test_a_killed_process_is_resumed_by_another(tmp_path: Path) -> None:
    spec = spec_of(
        ema_half_life_fraction=0.3, data={"source": "digits", "resolution": 16, "classes": [0, 1], "flip": True}
    )
    code = f"""
        import os
        from pathlib import Path
        from ftae.engine.training.loop import finetune
        from ftae.specs.finetune.run import FinetuneSpec

        spec = FinetuneSpec.model_validate_json({spec.model_dump_json()!r})
        for report in finetune(spec, Path({str(tmp_path / "killed")!r})):
            if report.step == 4:
                os.kill(os.getpid(), 9)
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -9
    newest = latest_checkpoint(tmp_path / "killed")
    assert newest is not None
    assert newest.name == "step-00000004"
    resumed = list(finetune(spec, tmp_path / "killed", resume_from=newest))
    whole = list(finetune(spec, tmp_path / "whole"))
    assert metrics_of(resumed) == metrics_of(whole[-2:])
    ends = [final_weights(tmp_path / name) for name in ("killed", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "radam"}, {"name": "adam"}])
def test_every_optimizer_resumes_exactly_also_in_bf16(optimizer: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(optimizer={"lr": 1e-3, **optimizer}, precision="bf16")
    whole = list(finetune(spec, tmp_path / "whole"))
    for report in finetune(spec, tmp_path / "resumed"):
        if report.step == 2:
            break
    newest = latest_checkpoint(tmp_path / "resumed")
    assert metrics_of(list(finetune(spec, tmp_path / "resumed", resume_from=newest))) == metrics_of(whole[1:])
    ends = [final_weights(tmp_path / name) for name in ("resumed", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_bf16_is_used_and_leaves_fp32_weights(tmp_path: Path) -> None:
    losses = [
        list(finetune(spec_of(precision=precision), tmp_path / precision))[1].metrics["train/mse"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {w.dtype for w in final_weights(tmp_path / "bf16").values()} == {torch.float32}


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_wild_learning_rate_fails(name: str, max_grad_norm: float | None, home: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"name": name, "lr": 1e6}, "max_grad_norm": max_grad_norm}
    for spec in (spec_of(**changes), kl_spec(home, **changes)):
        failure = failure_of(spec, tmp_path)
        assert failure.reason in ("non-finite loss", "non-finite gradient")
        assert 1 <= failure.step <= 3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("loss", "non-finite loss"), ("gradient", "non-finite gradient"), ("memory", "out of memory")],
)
def test_failures_say_what_and_when(kind: str, reason: str, tmp_path: Path) -> None:
    spec = spec_of(model=net(failure=kind, fail_at=4), losses={"mse": 1.0}, metrics=["mse"])
    run = finetune(spec, tmp_path)
    assert [next(run).step, next(run).step] == [0, 2]
    with pytest.raises(TrainingFailed) as caught:
        next(run)
    assert (caught.value.reason, caught.value.step) == (reason, 3)
    # Nothing that is not finite has touched the last good state.
    assert all(weight.isfinite().all() for weight in final_weights(tmp_path).values())


def test_an_evaluation_that_does_not_fit_fails_too(tmp_path: Path) -> None:
    spec = spec_of(model=net(failure="evaluation"), losses={"mse": 1.0}, metrics=["mse"])
    failure = failure_of(spec, tmp_path)
    assert (failure.reason, failure.step) == ("out of memory", 0)


def test_a_pretrained_model_that_gives_nan_is_an_error_of_the_user(tmp_path: Path) -> None:
    spec = spec_of(model=net() | {"family": "loop_nets:Damaged", "kwargs": {}}, losses={"mse": 1.0}, metrics=["mse"])
    with pytest.raises(FtaeError, match=r"val/mse of the model as it was given is nan") as caught:
        next(finetune(spec, tmp_path))
    assert not isinstance(caught.value, TrainingFailed)


def collapsing(**changes: Any) -> FinetuneSpec:
    """A KL weight that nothing survives; an evaluation every 3 steps."""
    fields: dict[str, Any] = {"losses": {"mse": 1.0, "kl": 100.0}, "max_steps": 60, "num_evals": 20}
    return spec_of(**fields, metrics=["active_units"], **changes)


def test_posterior_collapse_fails_also_after_a_resume(tmp_path: Path) -> None:
    failure = failure_of(collapsing(), tmp_path / "whole")
    assert failure.reason == "posterior collapse"
    assert 3 < failure.step < 60
    for report in finetune(collapsing(), tmp_path / "resumed"):
        assert report.metrics["val/active_units"] > 0
        if report.step == failure.step - 3:
            break
    with pytest.raises(TrainingFailed) as caught:
        list(finetune(collapsing(), tmp_path / "resumed", resume_from=latest_checkpoint(tmp_path / "resumed")))
    assert str(caught.value) == str(failure)


def test_a_model_from_scratch_without_active_units_is_trained_on(tmp_path: Path) -> None:
    spec = spec_of(
        model={"family": "mlp_vae", "hidden": 32, "latent_dim": 4},
        losses={"mse": 1.0},
        optimizer={"lr": 3e-3},
        batch_size=32,
        max_steps=40,
        num_evals=20,
        metrics=["active_units"],
    )
    units = [report.metrics["val/active_units"] for report in finetune(spec, tmp_path)]
    assert units[:2] == [0.0, 0.0]
    assert units[-1] > 0


def test_failures_can_be_pickled() -> None:
    failure = pickle.loads(pickle.dumps(TrainingFailed("non-finite loss", 17)))
    assert (failure.reason, failure.step) == ("non-finite loss", 17)
    assert str(failure) == "non-finite loss at step 17"


def test_mode_collapse_fails_at_the_second_evaluation_in_a_row_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate with which all images grow alike; the bound is where that shows after few steps."""
    monkeypatch.setattr("ftae.engine.objectives.mode_collapse.PIXELS", Sign("pixel variance", 0.6, 0.6))
    generator = {"family": "dcgan", "channels": 4, "latent_dim": 8}
    fields: dict[str, Any] = {
        "model": generator,
        "losses": {"adversarial": 1.0},
        "discriminator": {"channels": 4},
        "optimizer": {"lr": 1.0},
        "metrics": ["sharpness"],
        "max_steps": 12,
        "num_evals": 12,
    }
    failure = failure_of(spec_of(**fields), tmp_path / "whole")
    assert failure.reason == "mode collapse"
    assert failure.step > 2
    for report in finetune(spec_of(**fields), tmp_path / "resumed"):
        if report.step == failure.step - 1:
            break
    with pytest.raises(TrainingFailed) as caught:
        list(finetune(spec_of(**fields), tmp_path / "resumed", resume_from=latest_checkpoint(tmp_path / "resumed")))
    assert str(caught.value) == str(failure)
