"""Checkpoints: the whole state comes back, for the same run only, from any format, and without running code."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftae.engine.process import rng_state, set_rng_state
from ftae.engine.tasks.task import Task
from ftae.engine.training.checkpoint import evaluated_weights, latest_checkpoint, load_checkpoint, read_spec
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from tests.checkpoints import flat, report_of, save, spec_of, task_of


def tensors_of(task: Task) -> list[Any]:
    return flat([network.tensors() for network in task.networks])


# ------------------------------------------------------------------------------------- round trip


def test_the_whole_state_comes_back(tmp_path: Path) -> None:
    saved, loaded = task_of(spec_of(), num_steps=3), task_of(spec_of())
    torch.manual_seed(11)
    save(tmp_path / "step-1", spec_of(), saved)
    drawn = torch.rand(3)
    report, collapse_signs = load_checkpoint(tmp_path / "step-1", spec_of(), loaded)
    assert report == report_of()
    assert collapse_signs == {"posterior collapse": 3.0}
    assert torch.equal(torch.rand(3), drawn)
    assert tensors_of(loaded) == tensors_of(saved)
    (one,), (other,) = loaded.networks, saved.networks
    assert flat(one.optimizer.state_dict()) == flat(other.optimizer.state_dict())
    assert one.tensors().keys() == {"model", "average"}
    assert flat(one.tensors()["average"]) != flat(one.tensors()["model"])


def test_loading_happens_in_place(tmp_path: Path) -> None:
    """The optimizer continues with the tensors of the model itself."""
    save(tmp_path / "step-1", spec_of(), task_of(spec_of(), num_steps=1))
    task = task_of(spec_of())
    before = [p.data_ptr() for p in task.networks[0].model.parameters()]
    load_checkpoint(tmp_path / "step-1", spec_of(), task)
    assert [p.data_ptr() for p in task.networks[0].model.parameters()] == before
    assert {p.data_ptr() for p in task.networks[0].parameters} == set(before)


def test_channels_last_weights_come_back(tmp_path: Path) -> None:
    saved = task_of(spec_of())
    saved.networks[0].model.to(memory_format=torch.channels_last)
    save(tmp_path / "step-1", spec_of(), saved)
    loaded = task_of(spec_of(seed=1))
    load_checkpoint(tmp_path / "step-1", spec_of(), loaded)
    assert tensors_of(loaded) == tensors_of(saved)


def test_evaluated_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    task = task_of(spec_of(freeze_depth=1), num_steps=2)
    save(tmp_path / "averaged", spec_of(), task)
    network = task.networks[0]
    live, average = network.tensors()["model"], network.tensors()["average"]
    network.average = None
    save(tmp_path / "live", spec_of(), task)
    assert flat(evaluated_weights(tmp_path / "live")) == flat(dict(sorted(live.items())))
    averaged = evaluated_weights(tmp_path / "averaged")
    assert averaged.keys() == live.keys()
    for name in live:
        assert torch.equal(averaged[name], average.get(name, live[name]))
    frozen = {name for name in live if name not in average}
    assert frozen == {n for n in live if n.startswith("net.down.0.")}


def test_all_random_generators_come_back(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        gauss = [random.gauss(0, 1), float(np.random.standard_normal())]  # each keeps a second one back
        return [torch.rand(3).tolist(), torch.randn(1).item(), np.random.rand(3).tolist(), random.random(), *gauss]

    draw()
    torch.save(rng_state(), tmp_path / "rng.pt")
    first = [draw(), draw()]
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw(), draw()] == first
    assert first[0] != first[1]


# --------------------------------------------------------------------------------- the same run only


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"seed": 1}, "seed differ"),
        ({"batch_size": 3, "optimizer": {"lr": 1.0}}, "optimizer, batch_size differ"),
        ({"max_steps": 9, "losses": {"mse": 2.0}}, "losses differ"),
        ({"batch_size": 4, "grad_accumulation": 3}, "batch_size, grad_accumulation differ"),
    ],
)
def test_another_configuration_is_refused(changes: dict[str, Any], differing: str, tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    with pytest.raises(FtaeError) as caught:
        load_checkpoint(tmp_path / "step-1", spec_of(**changes), task_of(spec_of()))
    assert f"step-1 belongs to another configuration: {differing}. " in str(caught.value)
    assert "train into another folder" in str(caught.value)


def test_a_run_may_be_extended(tmp_path: Path) -> None:
    list(finetune(spec_of(), tmp_path))
    longer = spec_of(max_steps=8, num_evals=4, num_threads=None)
    reports = list(finetune(longer, tmp_path, resume_from=latest_checkpoint(tmp_path)))
    assert [report.step for report in reports] == [4, 6, 8]


def test_a_run_may_continue_with_smaller_batches_of_the_same_images(tmp_path: Path) -> None:
    list(finetune(spec_of(max_steps=2, num_evals=1), tmp_path))
    (whole, half) = (
        list(finetune(spec_of(**changes), tmp_path, resume_from=tmp_path / "checkpoints" / "step-00000002"))
        for changes in ({"batch_size": 8}, {"batch_size": 4, "grad_accumulation": 2})
    )
    assert half[0] == whole[0]
    assert half[-1].metrics["val/mse"] == pytest.approx(whole[-1].metrics["val/mse"], rel=1e-4)


def test_a_finished_run_only_repeats_its_report(tmp_path: Path) -> None:
    *_, last = finetune(spec_of(), tmp_path)
    assert list(finetune(spec_of(), tmp_path, resume_from=latest_checkpoint(tmp_path))) == [last]


# ----------------------------------------------------------------------------------------- versions


ADVERSARIAL: dict[str, Any] = {
    "losses": {"mse": 1.0, "adversarial": 0.1},
    "discriminator": {"depth": 1, "channels": 4, "lecam": 0.1, "start_fraction": 0.2, "warmup_fraction": 0.0},
    "ema_half_life_fraction": 0.5,
}


def turn_into_format_1(folder: Path) -> None:
    """Rewrite a checkpoint as the first versions of ftae wrote it."""
    content = json.loads((folder / "report.json").read_text())
    assert content.pop("format") == 2
    content["vitals"] = content.pop("collapse_signs")
    (folder / "report.json").write_text(json.dumps(content))
    state = torch.load(folder / "training.pt", weights_only=True)
    old = {"optimizer": state["optimizers"]["model"], "rng": state["rng"]}
    if "discriminator" in state["optimizers"]:
        averages = state["task"]["logit_averages"]
        old["adversary"] = {"optimizer": state["optimizers"]["discriminator"], "averages": averages}
    torch.save(old, folder / "training.pt")


@pytest.mark.parametrize("changes", [{}, ADVERSARIAL], ids=["one network", "two networks"])
def test_a_checkpoint_of_format_1_is_resumed_exactly(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(**changes)
    whole = list(finetune(spec, tmp_path))
    turn_into_format_1(tmp_path / "checkpoints/step-00000002")
    assert read_spec(tmp_path / "checkpoints/step-00000002") == spec
    resumed = list(finetune(spec, tmp_path / "resumed", resume_from=tmp_path / "checkpoints/step-00000002"))
    assert [report.metrics for report in resumed] == [report.metrics for report in whole[1:]]
    ends = [tmp_path / "checkpoints/step-00000004", tmp_path / "resumed/checkpoints/step-00000004"]
    for file in ends[0].glob("*.safetensors"):
        assert file.read_bytes() == (ends[1] / file.name).read_bytes()


def test_every_network_is_saved_by_its_name(tmp_path: Path) -> None:
    spec = spec_of(**ADVERSARIAL)
    saved, loaded = task_of(spec, num_steps=2), task_of(spec)
    save(tmp_path / "step-1", spec, saved)
    assert {p.stem for p in (tmp_path / "step-1").glob("*.safetensors")} == {"model", "average", "discriminator"}
    state = torch.load(tmp_path / "step-1" / "training.pt", weights_only=True)
    assert state["optimizers"].keys() == {"model", "discriminator"}
    load_checkpoint(tmp_path / "step-1", spec, loaded)
    assert tensors_of(loaded) == tensors_of(saved)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"spec": {}, "collapse_signs": {}},
        {"spec": [1], "collapse_signs": {}, "report": {}},
        {"spec": {}, "collapse_signs": {}, "report": {"speed": 1}},
    ],
)
def test_a_report_of_another_version_is_one_message(content: Any, tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    (tmp_path / "step-1" / "report.json").write_text(json.dumps(content))
    with pytest.raises(FtaeError, match=r"is damaged, or by another version of ftae: report\.json describes no run"):
        read_spec(tmp_path / "step-1")
    with pytest.raises(FtaeError, match=r"is damaged, or by another version of ftae: report\.json describes no run"):
        load_checkpoint(tmp_path / "step-1", spec_of(), task_of(spec_of()))


@pytest.mark.parametrize("change", [{"priority": 1}, {"batch_size": None}, {"model": {"family": "conv_vae_3"}}])
def test_a_run_of_another_version_is_one_message(change: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    save(folder, spec_of(), task_of(spec_of()))
    content = json.loads((folder / "report.json").read_text())
    content["spec"] |= change
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(FtaeError, match="was written by another version of ftae, or changed since: "):
        read_spec(folder)
    with pytest.raises(
        FtaeError, match=f"was written by another version of ftae, or changed since: {next(iter(change))}"
    ):
        load_checkpoint(folder, spec_of(), task_of(spec_of()))


# ------------------------------------------------------------------------------------------- safety


class Payload:
    """A malicious pickle: loading it makes the folder ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    training = torch.load(tmp_path / "step-1" / "training.pt", weights_only=True)
    torch.save(training | {"rng": Payload(tmp_path / "ran")}, tmp_path / "step-1" / "training.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    assert not (tmp_path / "ran").exists()


def test_the_report_is_readable_without_torch(tmp_path: Path) -> None:
    *_, last = finetune(spec_of(), tmp_path)
    assert last.checkpoint is not None
    content = json.loads((tmp_path / last.checkpoint / "report.json").read_text())
    assert content["report"]["metrics"] == last.metrics
    assert FinetuneSpec.model_validate(content["spec"]) == spec_of()
