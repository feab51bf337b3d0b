"""Files of checkpoints: written whole or not at all, damage is found, old ones are removed."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ftae.engine.process import rng_state, same_state
from ftae.engine.training.checkpoint import (
    CheckpointWriter,
    damage,
    evaluated_weights,
    latest_checkpoint,
    load_checkpoint,
    usable_checkpoint,
)
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from tests.checkpoints import FILES, report_of, save, spec_of, task_of

# ------------------------------------------------------------------------------------------ atomic


def test_a_failed_save_leaves_the_old_checkpoint_alone(tmp_path: Path) -> None:
    task = task_of(spec_of())
    save(tmp_path / "step-1", spec_of(), task)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TypeError):
        save(tmp_path / "step-1", spec_of(), task, report_of(metrics={"val/mse": object()}))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_state_before_the_evaluation_is_saved_with_the_random_generators_after_it(tmp_path: Path) -> None:
    task = task_of(spec_of(), num_steps=2)
    weights = {name: tensor.clone() for name, tensor in task.networks[0].tensors()["model"].items()}
    with CheckpointWriter(tmp_path / "step-1", spec_of(), task) as writer:
        for parameter in task.networks[0].parameters:
            parameter.detach().zero_()
        torch.rand(3)
        drawn = rng_state()
        writer.finish(report_of(), {})
    loaded = task_of(spec_of())
    load_checkpoint(tmp_path / "step-1", spec_of(), loaded)
    assert same_state(rng_state(), drawn)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.networks[0].tensors()["model"].items())
    assert damage(tmp_path / "step-1") is None


def test_a_checkpoint_whose_evaluation_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FtaeError), CheckpointWriter(tmp_path / "step-1", spec_of(), task_of(spec_of())):
        raise FtaeError("the evaluation failed")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_an_os_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "step-2", spec_of(), task_of(spec_of()))
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
    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    assert damage(tmp_path / "step-1") is None


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    task = task_of(spec_of())
    net = task.networks[0].model.get_submodule("net")
    net.add_module("also_out", net.get_submodule("out"))
    save(tmp_path / "step-1", spec_of(), task)
    saved = load_file(tmp_path / "step-1" / "model.safetensors")
    assert torch.equal(saved["net.also_out.weight"], saved["net.out.weight"])


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path: Path) -> None:
    for num_steps in (1, 2):
        task = task_of(spec_of(), num_steps)
        save(tmp_path / "step-1", spec_of(), task)
    found, expected = load_file(tmp_path / "step-1" / "model.safetensors"), task.networks[0].tensors()["model"]
    assert found.keys() == expected.keys()
    assert torch.equal(found["net.out.bias"], expected["net.out.bias"])
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
    """The process dies after the old folder was renamed and before the new one has its name."""
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


def test_a_run_that_starts_again_is_not_resumed_from_its_predecessor(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "zeros", "a bit flipped"])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found(name: str, how: str, tmp_path: Path) -> None:
    older, newer = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    for folder in (older, newer):
        save(folder, spec_of(), task_of(spec_of()))
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
    save(folder, spec_of(), task_of(spec_of()))
    with pytest.raises(FtaeError, match="the weights cannot be read: "):
        evaluated_weights(folder)


@pytest.mark.parametrize("hashes", ["[]", "{}", "5", '{"model.safetensors": "x"}', "[" * 100_000])
def test_hashes_that_name_no_files_are_damage(hashes: str, tmp_path: Path) -> None:
    save(tmp_path / "step-1", spec_of(), task_of(spec_of()))
    (tmp_path / "step-1" / "sha256.json").write_text(hashes)
    assert "sha256.json" in (damage(tmp_path / "step-1") or "")


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None
