"""Checkpoints: whole or not at all, nothing but data, and the same run only."""

import errno
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_model
from ftae.engine.rng import rng_state, same_state, set_rng_state
from ftae.engine.tasks.optim import WeightAverage, build_optimizer
from ftae.engine.training.checkpoint import (
    CheckpointWriter,
    EvalReport,
    damage,
    evaluated_weights,
    latest_checkpoint,
    load_checkpoint,
    read_spec,
    save_checkpoint,
    usable_checkpoint,
)
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 4, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-2},
        "ema_half_life_fraction": 0.5,
        "max_steps": 4,
        "num_evals": 2,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def report_of(step: int = 2, **changes: Any) -> EvalReport:
    fields = {"metrics": {"val/mse": 0.1}, "timing": {"time/eval_seconds": 1.0}, "images": "images/a.png"}
    return EvalReport(**{"step": step, "checkpoint": f"checkpoints/step-{step:08d}", **fields, **changes})


State = tuple[Autoencoder, torch.optim.Optimizer, WeightAverage]


def state_of(spec: FinetuneSpec, num_steps: int = 0) -> State:
    """Model, optimizer and average after some steps on random gradients."""
    autoencoder = build_model(spec, None)
    optimizer = build_optimizer(autoencoder, spec.optimizer)
    average = WeightAverage(autoencoder, 2.0)
    for _ in range(num_steps):
        for parameter in autoencoder.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        average.update()
    return autoencoder, optimizer, average


def save(folder: Path, spec: FinetuneSpec, state: State, report: EvalReport | None = None) -> None:
    save_checkpoint(folder, report or report_of(), spec, *state, collapse_signs={"posterior collapse": 3.0})


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for key in value for x in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in flat(item)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


# ------------------------------------------------------------------------------------- round trip


def test_the_whole_state_comes_back(tmp_path: Path) -> None:
    saved, loaded = state_of(spec_of(), num_steps=3), state_of(spec_of())
    torch.manual_seed(11)
    save(tmp_path / "step-1", spec_of(), saved)
    drawn = torch.rand(3)
    report, collapse_signs = load_checkpoint(tmp_path / "step-1", spec_of(), *loaded)
    assert report == report_of()
    assert collapse_signs == {"posterior collapse": 3.0}
    assert torch.equal(torch.rand(3), drawn)
    assert flat(loaded[0].state_dict()) == flat(saved[0].state_dict())
    assert flat(loaded[1].state_dict()) == flat(saved[1].state_dict())
    assert flat(loaded[2].weights) == flat(saved[2].weights)
    assert flat(loaded[2].weights) != flat(loaded[0].state_dict())


def test_loading_happens_in_place(tmp_path: Path) -> None:
    """The optimizer goes on with the model's own tensors."""
    save(tmp_path / "step-1", spec_of(), state_of(spec_of(), num_steps=1))
    autoencoder, optimizer, average = state_of(spec_of())
    before = [p.data_ptr() for p in autoencoder.parameters()]
    load_checkpoint(tmp_path / "step-1", spec_of(), autoencoder, optimizer, average)
    assert [p.data_ptr() for p in autoencoder.parameters()] == before


def test_channels_last_weights_come_back(tmp_path: Path) -> None:
    saved = state_of(spec_of())
    saved[0].to(memory_format=torch.channels_last)
    save(tmp_path / "step-1", spec_of(), saved)
    loaded = state_of(spec_of(seed=1))
    load_checkpoint(tmp_path / "step-1", spec_of(), *loaded)
    assert flat(loaded[0].state_dict()) == flat(saved[0].state_dict())


def test_judged_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    autoencoder, optimizer, average = state_of(spec_of(freeze_depth=1), num_steps=2)
    save(tmp_path / "averaged", spec_of(), (autoencoder, optimizer, average))
    save_checkpoint(tmp_path / "live", report_of(), spec_of(), autoencoder, optimizer, None, collapse_signs={})
    live, averaged = evaluated_weights(tmp_path / "live"), evaluated_weights(tmp_path / "averaged")
    assert flat(live) == flat(dict(sorted(autoencoder.state_dict().items())))
    assert averaged.keys() == live.keys()
    for name in live:
        assert torch.equal(averaged[name], average.weights.get(name, live[name]))
    frozen = {name for name in live if name not in average.weights}
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


# ------------------------------------------------------------------------------------------ atomic


def test_a_failed_save_leaves_the_old_checkpoint_alone(tmp_path: Path) -> None:
    state = state_of(spec_of())
    save(tmp_path / "step-1", spec_of(), state)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TypeError):
        save(tmp_path / "step-1", spec_of(), state, report_of(metrics={"val/mse": object()}))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_is_saved_is_the_state_before_the_evaluation_but_for_the_random_numbers_it_draws(tmp_path: Path) -> None:
    autoencoder, optimizer, average = state_of(spec_of(), num_steps=2)
    weights = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    with CheckpointWriter(tmp_path / "step-1", spec_of(), autoencoder, optimizer, average) as saving:
        for parameter in autoencoder.parameters():
            parameter.detach().zero_()
        torch.rand(3)
        drawn = rng_state()
        saving.finish(report_of(), {})
    loaded = state_of(spec_of())
    load_checkpoint(tmp_path / "step-1", spec_of(), *loaded)
    assert same_state(rng_state(), drawn)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded[0].state_dict().items())
    assert damage(tmp_path / "step-1") is None


def test_a_checkpoint_whose_evaluation_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FtaeError), CheckpointWriter(tmp_path / "step-1", spec_of(), *state_of(spec_of())):
        raise FtaeError("the evaluation failed")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_an_os_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "step-2", spec_of(), state_of(spec_of()))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert damage(tmp_path / "step-1") is None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux' names of open files")
def test_every_file_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def checked(path: Path, target: Path) -> Path:
        assert synced == set(FILES) == {file.name for file in path.iterdir()}
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    assert damage(tmp_path / "step-1") is None


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    autoencoder, optimizer, average = state_of(spec_of())
    autoencoder.net.also_out = autoencoder.net.out
    save(tmp_path / "step-1", spec_of(), (autoencoder, optimizer, average))
    saved = load_file(tmp_path / "step-1" / "model.safetensors")
    assert torch.equal(saved["net.also_out.weight"], saved["net.out.weight"])


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path: Path) -> None:
    for num_steps in (1, 2):
        state = state_of(spec_of(), num_steps)
        save(tmp_path / "step-1", spec_of(), state)
    assert load_file(tmp_path / "step-1" / "model.safetensors").keys() == state[0].state_dict().keys()
    assert torch.equal(
        load_file(tmp_path / "step-1" / "model.safetensors")["net.out.bias"], state[0].state_dict()["net.out.bias"]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_what_a_killed_process_left_is_ignored_and_cleaned(tmp_path: Path) -> None:
    """The process dies between the last byte and the rename."""
    spec = spec_of()
    code = f"""
        import os
        from pathlib import Path
        from ftae.engine.training.loop import finetune
        from ftae.specs.finetune.run import FinetuneSpec

        rename = Path.rename
        Path.rename = lambda self, to: os._exit(9) if to.name.startswith("step-") else rename(self, to)
        list(finetune(FinetuneSpec.model_validate_json({spec.model_dump_json()!r}), Path({str(tmp_path)!r})))
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == 9
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.name.startswith(".step-00000002.")
    assert (left / "model.safetensors").is_file()
    assert latest_checkpoint(tmp_path) is None
    list(finetune(spec, tmp_path))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-00000002", "step-00000004"}


def test_a_checkpoint_outlives_the_process_that_was_replacing_it(tmp_path: Path) -> None:
    """The process dies where the old one has no name any more, and the new one has none yet."""
    spec = spec_of()
    list(finetune(spec, tmp_path))
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints/step-00000004").iterdir()}
    code = f"""
        import os
        from pathlib import Path
        from ftae.engine.run_folder import AtomicFolder

        rename = Path.rename
        Path.rename = lambda self, to: os._exit(9) if self.name.endswith(".tmp") else rename(self, to)
        AtomicFolder(Path({str(tmp_path)!r}) / "checkpoints/step-00000004").complete("sha256.json")
        """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == 9
    assert not (tmp_path / "checkpoints/step-00000004").exists()
    usable = usable_checkpoint(tmp_path, lambda message: None)
    assert usable == tmp_path / "checkpoints/step-00000004"
    assert {p.name: p.read_bytes() for p in usable.iterdir()} == before
    (tmp_path / "checkpoints/.step-00000004.1.old").mkdir()  # died a moment later
    list(finetune(spec, tmp_path))
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-00000002", "step-00000004"}


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for report in finetune(spec_of(num_evals=4), tmp_path):
        kept = sorted(p.name for p in tmp_path.glob("checkpoints/*"))
        assert kept == [f"step-{step:08d}" for step in (report.step - 1, report.step) if step > 0]
        newest = latest_checkpoint(tmp_path)
        assert (newest and str(newest.relative_to(tmp_path))) == report.checkpoint


def test_a_run_begun_again_is_not_resumed_from_its_predecessor(tmp_path: Path) -> None:
    list(finetune(spec_of(), tmp_path))
    for report in finetune(spec_of(seed=1), tmp_path):
        if report.step == 2:
            break
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000002"
    assert [report.step for report in finetune(spec_of(seed=1), tmp_path, resume_from=newest)] == [2, 4]


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    if how == "missing":
        file.unlink()
    elif how == "a bit flipped":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes({"truncated": content[:middle], "empty": b"", "zeros": bytes(len(content))}[how])


FILES = ("model.safetensors", "average.safetensors", "training.pt", "report.json", "sha256.json")


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "zeros", "a bit flipped"])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found(name: str, how: str, tmp_path: Path) -> None:
    older, newer = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    for folder in (older, newer):
        save(folder, spec_of(), state_of(spec_of()))
    assert {p.name for p in newer.iterdir()} == set(FILES)
    assert damage(newer) is None
    said: list[str] = []
    assert usable_checkpoint(tmp_path, said.append) == newer
    damaged(newer / name, how)
    wrong = damage(newer)
    assert wrong is not None
    assert how == "a bit flipped" or name in wrong
    assert usable_checkpoint(tmp_path, said.append) == older
    assert said == [f"the checkpoint {newer} is damaged ({wrong}); going back to the one before it"]
    with pytest.raises(FtaeError, match=r"the checkpoint .*step-00000002 is damaged: "):
        evaluated_weights(newer)


def test_a_run_whose_newest_checkpoint_is_damaged_ends_like_any_other(tmp_path: Path) -> None:
    *_, last = finetune(spec_of(num_evals=4), tmp_path)
    assert last.checkpoint is not None
    damaged(tmp_path / last.checkpoint / "model.safetensors", "truncated")
    usable = usable_checkpoint(tmp_path, lambda message: None)
    *_, again = finetune(spec_of(num_evals=4), tmp_path, resume_from=usable)
    assert again.metrics == last.metrics
    assert damage(tmp_path / last.checkpoint) is None


def test_with_nothing_usable_a_run_begins_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    said: list[str] = []
    assert usable_checkpoint(tmp_path, said.append) is None
    assert ["sha256.json is missing" in message for message in said] == [True]


def test_weights_that_cannot_be_opened_are_one_message(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"gr\xfcn")  # safetensors wants text
    save(folder, spec_of(), state_of(spec_of()))
    with pytest.raises(FtaeError, match="the weights cannot be read: "):
        evaluated_weights(folder)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"spec": {}, "vitals": {}},
        {"spec": [1], "vitals": {}, "report": {}},
        {"spec": {}, "vitals": {}, "report": {"speed": 1}},
    ],
)
def test_a_report_of_another_version_is_one_message(content: Any, tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    (tmp_path / "step-1" / "report.json").write_text(json.dumps(content))
    with pytest.raises(FtaeError, match=r"is damaged, or by another version of ftae: report\.json describes no run"):
        read_spec(tmp_path / "step-1")
    with pytest.raises(FtaeError, match=r"is damaged, or by another version of ftae: report\.json describes no run"):
        load_checkpoint(tmp_path / "step-1", spec_of(), *state_of(spec_of()))


@pytest.mark.parametrize("change", [{"priority": 1}, {"batch_size": None}, {"model": {"family": "conv_vae_3"}}])
def test_a_run_of_another_version_is_one_message(change: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    save(folder, spec_of(), state_of(spec_of()))
    content = json.loads((folder / "report.json").read_text())
    content["spec"] |= change
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(FtaeError, match="was written by another version of ftae, or changed since: "):
        read_spec(folder)
    with pytest.raises(
        FtaeError, match=f"was written by another version of ftae, or changed since: {next(iter(change))}"
    ):
        load_checkpoint(folder, spec_of(), *state_of(spec_of()))


@pytest.mark.parametrize("hashes", ["[]", "{}", "5", '{"model.safetensors": "x"}', "[" * 100_000])
def test_hashes_that_name_no_files_are_damage(hashes: str, tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    (tmp_path / "step-1" / "sha256.json").write_text(hashes)
    assert "sha256.json" in (damage(tmp_path / "step-1") or "")


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None


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
    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    with pytest.raises(FtaeError) as caught:
        load_checkpoint(tmp_path / "step-1", spec_of(**changes), *state_of(spec_of()))
    assert f"step-1 belongs to another configuration: {differing}. " in str(caught.value)
    assert "train into another folder" in str(caught.value)


def test_a_run_may_go_on_for_longer(tmp_path: Path) -> None:
    list(finetune(spec_of(), tmp_path))
    longer = spec_of(max_steps=8, num_evals=4, num_threads=None)
    reports = list(finetune(longer, tmp_path, resume_from=latest_checkpoint(tmp_path)))
    assert [report.step for report in reports] == [4, 6, 8]


def test_a_run_may_go_on_with_smaller_batches_of_the_same_images(tmp_path: Path) -> None:
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


# ------------------------------------------------------------------------------------------- safety


class Payload:
    """What a malicious pickle does when it is loaded: make the folder ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), state_of(spec_of()))
    training = torch.load(tmp_path / "step-1" / "training.pt", weights_only=True)
    torch.save(training | {"rng": Payload(tmp_path / "ran")}, tmp_path / "step-1" / "training.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path / "step-1", spec_of(), *state_of(spec_of()))
    assert not (tmp_path / "ran").exists()


def test_the_report_is_readable_without_torch(tmp_path: Path) -> None:
    *_, last = finetune(spec_of(), tmp_path)
    assert last.checkpoint is not None
    content = json.loads((tmp_path / last.checkpoint / "report.json").read_text())
    assert content["report"]["metrics"] == last.metrics
    assert FinetuneSpec.model_validate(content["spec"]) == spec_of()
