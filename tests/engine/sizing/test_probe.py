"""The time and memory of a run, measured on a few steps."""

import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from vision_weights import random_weights

from ftae.engine.data.dataset import load_dataset
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.metrics import METRICS
from ftae.engine.sizing import TIMED_STEPS, Probe, probe, trial_seconds
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec

USER_MODULE = """
import time

import torch
from torch import nn


class Net(nn.Module):
    '''Sleeps, or takes and gives back memory, in every forward pass of more than one image.'''

    steps = 0

    def __init__(self, seconds=0.0, megabytes=0, failure=None):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.seconds, self.megabytes, self.failure = seconds, megabytes, failure

    def encode(self, images):
        if len(images) > 1:
            Net.steps += self.training
            time.sleep(self.seconds)
            torch.ones(self.megabytes, 250_000)
            if self.failure == "memory":
                raise torch.OutOfMemoryError("tried to allocate too much")
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)
"""


@pytest.fixture(scope="module", autouse=True)
def _user_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe_nets.py").write_text(USER_MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "ema_half_life_fraction": 0.1,
        "num_evals": 3,
        "metrics": ["psnr"],
    }
    return run_spec(**(fields | changes))


def net(**kwargs: Any) -> dict[str, Any]:
    return {"family": "probe_nets:Net", "kwargs": kwargs, "image_range": "0..1"}


def test_steps_and_evaluation_are_timed() -> None:
    spec = spec_of(model=net(seconds=0.03), batch_size=180)
    found = probe(spec)
    assert found.step_seconds >= 0.03
    batches = len(load_dataset(spec.data).val) / 180  # about two
    assert found.eval_seconds >= 0.03 * batches
    assert (found.device, found.memory_bytes) == ("cpu", None)
    assert Probe(**asdict(found)) == found
    assert str(found).startswith("a step ")


@pytest.mark.parametrize(("max_steps", "steps"), [(1, 1), (3, 3), (100, 1 + TIMED_STEPS)])
def test_no_more_steps_are_taken_than_there_are(max_steps: int, steps: int) -> None:
    import probe_nets

    probe_nets.Net.steps = 0
    assert probe(spec_of(model=net(), max_steps=max_steps, num_evals=1)).step_seconds > 0
    assert probe_nets.Net.steps == steps


def test_slow_steps_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    import probe_nets

    monkeypatch.setattr("ftae.engine.sizing.TIMED_SECONDS", 0.01)
    probe_nets.Net.steps = 0
    probe(spec_of(model=net(seconds=0.04)))
    assert probe_nets.Net.steps == 2  # one to warm up, one that is timed


@pytest.mark.parametrize("metrics", [["linear_probe"], ["rfid", "linear_probe"]])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_an_evaluation_takes_once_is_counted_once(
    metrics: list[str], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only metrics move: fitting takes 10 s, looking at an image 0.01 s, the result 5 s."""
    clock = [0.0]

    class Timed:
        def __init__(self, subject: EvalContext) -> None:
            clock[0] += 10.0

        def update(self, x: EvalBatch) -> None:
            clock[0] += 0.01 * len(x.target)

        def compute(self) -> float:
            clock[0] += 5.0
            return 0.0

    monkeypatch.setattr("ftae.engine.sizing.time.perf_counter", lambda: clock[0])
    for metric in metrics:
        monkeypatch.setitem(METRICS, metric, Timed)
    features = {"net": "resnet18", "weights": random_weights("resnet18")}
    spec = spec_of(metrics=metrics, batch_size=batch_size, features=features)
    count = len(load_dataset(spec.data).val)
    assert probe(spec).eval_seconds == pytest.approx(len(metrics) * (15.0 + 0.01 * count))


def test_the_peak_is_of_what_the_process_held() -> None:
    sizes = [probe(spec_of(model=net(megabytes=m), max_steps=1, num_evals=1)).peak_bytes for m in (0, 400, 0)]
    assert sizes[1] > max(sizes[0], sizes[2]) + 300e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_its_memory_counts() -> None:
    found = probe(spec_of(model={"family": "conv_vae", "channels": 64}, batch_size=64))
    assert found.memory_bytes is not None
    assert 10e6 < found.peak_bytes < found.memory_bytes
    assert found.device == torch.cuda.get_device_name()


def test_it_leaves_later_numbers_as_they_are(tmp_path: Path) -> None:
    before = [report.metrics for report in finetune(spec_of(), tmp_path / "before")]
    probe(spec_of())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    after = [report.metrics for report in finetune(spec_of(), tmp_path / "after")]
    assert after == before


def test_what_fails_is_told_as_in_a_run() -> None:
    with pytest.raises(TrainingFailed) as failure:
        probe(spec_of(model=net(failure="memory")))
    assert (failure.value.reason, failure.value.step) == ("out of memory", 0)
    wild = {"name": "sgd", "lr": 1e6}
    with pytest.raises(TrainingFailed, match="non-finite"):
        probe(spec_of(optimizer=wild, max_grad_norm=None, schedule={"name": "constant", "warmup_fraction": 0.0}))
    with pytest.raises(FtaeError, match="freeze leaves nothing to train"):
        probe(spec_of(losses={"kl": 1.0}, freeze_depth=2))


@pytest.mark.parametrize("setting", ["auto", False])
def test_what_is_out_of_memory_is_tried_with_activations_computed_again(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Trainer.train_step

    def step(training: Trainer, *batches: Any) -> None:
        if training.spec.checkpoint_stages is not True:
            raise torch.OutOfMemoryError("tried to allocate too much")
        take_step(training, *batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    if setting is False:
        with pytest.raises(TrainingFailed, match="out of memory"):
            probe(spec_of(checkpoint_stages=False))
    else:
        found = probe(spec_of())
        assert found.checkpoint_stages
        assert "activations computed again: checkpoint_stages" in str(found)


def test_the_seconds_of_a_trial_are_estimated() -> None:
    measured = Probe(step_seconds=0.1, eval_seconds=0.5, peak_bytes=10**9, memory_bytes=None, device="cpu", node="here")
    assert trial_seconds(measured, spec_of(max_steps=90, num_evals=9)) == pytest.approx(90 * 0.1 + 10 * 0.5)
