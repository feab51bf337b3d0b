"""Production runs: the loop of a trial, run to its end and journaled as a search of one trial."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import search_spec
from PIL import Image
from production_runs import NOWHERE, interrupt_after, model_bytes, reports, silent, spec, steps

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.results.replay import replay
from ftae.results.search_record import STOPPED_BY_USER, Close
from ftae.results.stored_spec import run_of, search_of, spec_of
from ftae.results.summary import best, leaderboard, progress, state_of
from ftae.search.production import objective_of, train
from ftae.search.state import SearchState
from ftae.specs.files import load_production
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME as JOURNAL


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def finished(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run that was never interrupted, and its messages."""
    out, said = tmp_path_factory.mktemp("runs") / "digits", list[str]()
    train(spec(), out, storage=storage, notify=said.append)
    return out, said


@pytest.fixture
def copied(finished: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]


# ------------------------------------------------------------------------------------------ one whole run


def test_a_run_leaves_model_journal_pictures_and_its_file(finished: tuple[Path, list[str]]) -> None:
    out, said = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"production.yaml", JOURNAL, "images", "checkpoints", "model"}
    assert load_production(out / "production.yaml") == spec()
    assert steps(out) == [0, 4, 8, 12]
    assert all((out / report["images"]).is_file() for report in reports(out))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    lines = [line for line in said if line.startswith("step")]
    assert [line.split()[:2] for line in lines] == [["step", str(step)] for step in (0, 4, 8, 12)]
    assert lines[3].startswith(f"step 12  val/psnr {reports(out)[3]['metrics']['val/psnr']:.5g}  train/loss ")


def test_a_run_is_the_loop_of_a_trial(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert [r.metrics for r in finetune(spec().finetune, tmp_path)] == [r["metrics"] for r in reports(finished[0])]


def test_a_run_that_is_out_of_memory_continues_with_activations_computed_again(
    finished: tuple[Path, list[str]], tmp_path: Path, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Trainer.train_step

    def step(training: Trainer, *batches: Any) -> None:
        if training.step == 6 and training.spec.checkpoint_stages is not True:
            raise torch.OutOfMemoryError("tried to allocate too much")
        take_step(training, *batches)

    monkeypatch.setattr(Trainer, "train_step", step)
    said = list[str]()
    train(spec(), tmp_path / "out", storage=storage, notify=said.append)
    assert "out of memory at step 6; continues with checkpoint_stages" in said
    whole = [report["metrics"] for report in reports(finished[0])]
    assert [report["metrics"] for report in reports(tmp_path / "out")] == whole
    with pytest.raises(TrainingFailed, match="out of memory at step 6"):
        train(spec(checkpoint_stages=False), tmp_path / "other", storage=storage, notify=silent)


def test_the_model_is_the_one_that_was_measured(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    again = spec(**{"model.pretrained": str(finished[0] / "model")})
    untouched = next(finetune(again.finetune, tmp_path))
    assert untouched.metrics["val/psnr"] == reports(finished[0])[-1]["metrics"]["val/psnr"]


def test_the_journal_is_that_of_a_search_of_one_trial(finished: tuple[Path, list[str]]) -> None:
    out, _ = finished
    written = events(out)
    kinds = [event["event"] for event in written]
    assert kinds == ["open", "suggest", "start", *["report"] * 4, "end", "close"]
    assert (written[0]["format"], written[0]["kind"]) == (2, "production")
    assert written[0]["facts"]["dataset_fingerprint"] == load_dataset(spec().finetune.data).fingerprint
    record = replay(out)
    assert (record.name, record.num_trials, record.searched, record.close) == ("digits", 1, [], Close("complete"))
    assert spec_of(record) == spec()
    assert run_of(record, record.trials[1]) == spec().finetune
    with pytest.raises(FtaeError, match="digits is a production run, not a search; its model is in the folder model"):
        search_of(record)


def test_the_first_report_of_a_run_is_its_baseline(finished: tuple[Path, list[str]]) -> None:
    out, _ = finished
    before, *_, after = [report["metrics"]["val/psnr"] for report in reports(out)]
    found = best(FolderStore(out))
    assert (found["trial"], found["value"], found["baseline"], found["beats_baseline"]) == (1, after, before, True)
    assert found["verdict"] == f"val/psnr {before:.4f} -> {after:.4f} ({after - before:+.4f})"
    assert found["checkpoint"] == str(out / "checkpoints/step-00000012")
    record = replay(out)
    assert [(row["trial"], row["status"], row["val/psnr"]) for row in leaderboard(record)] == [(1, "finished", after)]
    found = progress(record)
    assert (found["step"], found["max_steps"], found["done"], found["baseline"]) == (12, 12, 1, before)
    assert state_of(record) == "complete"


def test_a_run_is_judged_by_the_objective_of_its_search() -> None:
    sharper = {"metric": "val/sharpness", "direction": "minimize"}
    run = spec(metrics=["kl", "sharpness", "psnr"])
    assert str(objective_of(run)) == "maximize val/psnr", "the first metric that has a better side"
    assert str(objective_of(spec(metrics=["kl"]))) == "maximize val/kl"
    came_from = run.model_copy(update={"from_search": {"objective": sharper}})
    assert str(objective_of(came_from)) == "minimize val/sharpness"
    without = spec().model_copy(update={"from_search": {"objective": sharper}})
    assert str(objective_of(without)) == "maximize val/psnr", "the run does not measure what its search optimised"
    broken = run.model_copy(update={"from_search": {"objective": {"metric": "val/psnr"}}})
    with pytest.raises(FtaeError, match=r"from_search\.objective is not valid: "):
        objective_of(broken)


# -------------------------------------------------------------------------------- interrupted and resumed


@pytest.mark.parametrize("after", [2, 3, 4])
def test_an_interrupted_run_continues_as_if_it_never_stopped(
    after: int, finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(spec(), tmp_path, storage=storage, notify=interrupt_after(after))
    assert not (tmp_path / "model").exists()
    assert replay(tmp_path).close == STOPPED_BY_USER
    assert events(tmp_path)[-1]["by"] == "user"
    with pytest.raises(FtaeError, match="holds a run already; continue it with --resume"):
        train(spec(), tmp_path, storage=storage, notify=silent)
    said: list[str] = []
    train(spec(), tmp_path, storage=storage, resume=True, notify=said.append)
    assert reports(tmp_path) == reports(finished[0])
    assert model_bytes(tmp_path) == model_bytes(finished[0])
    assert [line.split()[1] for line in said if line.startswith("step")] == ["0", "4", "8", "12"][after - 1 :]
    assert sum(event["event"] == "report" for event in events(tmp_path)) == 4, "none is written twice"


def test_a_run_interrupted_before_its_first_checkpoint_can_only_be_started_again(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(spec(), tmp_path, storage=storage, notify=interrupt_after(1))
    with pytest.raises(FtaeError, match="has no checkpoint to resume from; start the run without --resume"):
        train(spec(), tmp_path, storage=storage, resume=True, notify=silent)
    train(spec(), tmp_path, storage=storage, notify=silent)
    assert reports(tmp_path) == reports(finished[0])
    assert [event["event"] for event in events(tmp_path)].count("open") == 1, "with a new journal"


def test_a_finished_run_can_continue_for_longer(finished: tuple[Path, list[str]], copied: Path, storage: Path) -> None:
    longer = spec(max_steps=24, num_evals=6)
    report, _ = train(longer, copied, storage=storage, resume=True, notify=silent)
    assert report.step == 24
    assert steps(copied) == [0, 4, 8, 12, 16, 20, 24]
    assert reports(copied)[:4] == reports(finished[0])
    assert model_bytes(copied) != model_bytes(finished[0])
    record = replay(copied)
    assert [(trial.number, trial.step) for trial in record.ranked()] == [(1, 24)]
    assert (record.ended["finished"], record.running) == (1, {})


def test_reports_behind_the_checkpoint_are_replaced(copied: Path, storage: Path) -> None:
    """Those of the finished run were made with another budget, so with other learning rates."""
    shutil.rmtree(copied / "checkpoints/step-00000012")
    before = reports(copied)
    train(spec(max_steps=16, num_evals=4), copied, storage=storage, resume=True, notify=silent)
    assert steps(copied) == [0, 4, 8, 12, 16]
    assert reports(copied)[:3] == before[:3]
    assert reports(copied)[3]["metrics"]["train/lr"] != before[3]["metrics"]["train/lr"]


def test_one_process_can_continue_what_two_workers_began(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(spec(), tmp_path, storage=storage, workers=2, notify=interrupt_after(2))
    assert multiprocessing.active_children() == []
    train(spec(), tmp_path, storage=storage, resume=True, notify=silent)
    for report, expected in zip(reports(tmp_path), reports(finished[0]), strict=True):
        assert report["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)


def as_version_1(out: Path) -> None:
    """Turn the journal of a run into what version 1 wrote."""
    written = [event for event in events(out) if event["event"] == "report"]
    kept = ("time", "step", "metrics", "timing", "checkpoint", "images")
    lines = [json.dumps({key: event[key] for key in kept}) + "\n" for event in written]
    (out / "reports.jsonl").write_text("".join(lines))
    (out / JOURNAL).unlink()


def test_a_run_of_version_1_is_converted_when_it_is_resumed(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(spec(), tmp_path, storage=storage, notify=interrupt_after(3))
    began = reports_with_times(tmp_path)
    as_version_1(tmp_path)
    train(spec(), tmp_path, storage=storage, resume=True, notify=silent)
    assert reports(tmp_path) == reports(finished[0])
    assert reports_with_times(tmp_path)[:3] == began
    assert events(tmp_path)[0]["time"] == began[0], "by which its run in MLflow is known"
    assert not (tmp_path / "reports.jsonl").exists()


def reports_with_times(out: Path) -> list[float]:
    return [report["time"] for report in replay(out).trials[1].reports]


@pytest.mark.parametrize(
    "damaged",
    [b"\0" * 80, b'{"time": 1.0, "ste', b"[]", b'{"step": 8}', b"\xff\xfe"],
    ids=["zeros", "cut short", "no report", "without fields", "no text"],
)
def test_of_a_damaged_file_of_version_1_the_lines_before_the_damage_are_converted(
    damaged: bytes, copied: Path, storage: Path
) -> None:
    as_version_1(copied)
    lines = (copied / "reports.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "reports.jsonl").write_bytes(b"".join([*lines[:2], damaged + b"\n", *lines[2:]]))
    train(spec(), copied, storage=storage, resume=True, notify=silent)
    assert steps(copied) == [0, 4, 12]


# ------------------------------------------------------------------------------------ damage and refusals


def test_a_report_that_was_cut_short_is_made_again(
    finished: tuple[Path, list[str]], storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(spec(), tmp_path, storage=storage, notify=interrupt_after(3))
    written = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(written[:5]) + written[5][:-30])
    train(spec(), tmp_path, storage=storage, resume=True, notify=silent)
    assert reports(tmp_path) == reports(finished[0])


@pytest.mark.parametrize(
    "damaged",
    [b"\0" * 80, b'{"time": 1.0, "ste', b"[]", b'{"event": "end", "time": 1.0, "trial": 8}', b"\xff\xfe"],
    ids=["zeros", "cut short", "no event", "without fields", "no text"],
)
def test_a_damaged_line_is_removed_with_the_lines_behind_it(damaged: bytes, copied: Path, storage: Path) -> None:
    lines = (copied / JOURNAL).read_bytes().splitlines(keepends=True)
    (copied / JOURNAL).write_bytes(b"".join([*lines[:5], damaged + b"\n", *lines[5:]]))
    said: list[str] = []
    train(spec(), copied, storage=storage, resume=True, notify=said.append)
    assert len([line for line in said if line.endswith("; that line and the lines behind it were removed")]) == 1
    assert steps(copied) == [0, 4, 12]
    assert replay(copied).close == Close("complete")


def test_two_runs_never_share_a_folder(storage: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ftae.storage.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print('in', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FtaeError, match="is being run by another ftae process; wait for it or stop it first"):
            train(spec(), tmp_path, storage=storage, notify=silent)
        assert not (tmp_path / "checkpoints").exists()
        other.kill()
    train(spec(max_steps=1, num_evals=1), tmp_path, storage=storage, notify=silent)
    assert steps(tmp_path) == [0, 1]


def test_the_folder_of_a_search_is_refused(storage: Path, tmp_path: Path) -> None:
    search = search_spec(name="small")
    state = SearchState(search, FolderStore(tmp_path))
    state.next_trial()
    state.close("interrupted")
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(FtaeError, match="holds a search; choose another folder with --out"):
        train(spec(), tmp_path, storage=storage, notify=silent)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_another_configuration_is_not_a_resumption(copied: Path, storage: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    changes: dict[str, Any] = {"optimizer.lr": 1e-3}
    with pytest.raises(FtaeError, match="belongs to another configuration: optimizer differ"):
        train(spec(**changes), copied, storage=storage, resume=True, notify=silent)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_there_must_be_something_to_resume(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match="has no checkpoint to resume from"):
        train(spec(), tmp_path / "none", storage=storage, resume=True, notify=silent)
    assert not (tmp_path / "none").exists()


def test_a_run_that_diverges_says_so(storage: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer.name": "sgd", "optimizer.lr": 1e6, "max_grad_norm": None}
    diverging = spec(**changes)
    with pytest.raises(TrainingFailed, match="non-finite loss at step"):
        train(diverging, tmp_path, storage=storage, notify=silent)
    assert not (tmp_path / "model").exists()
    record = replay(tmp_path)
    assert record.trials[1].status == "diverged"
    assert record.close is not None
    assert record.close.status == "failed"
    assert str(record.close.reason).startswith("non-finite loss at step")


# ---------------------------------------------------------------------------------------------- warnings


def test_images_that_differ_from_those_of_the_search_are_reported(storage: Path, tmp_path: Path) -> None:
    run = spec(max_steps=3)
    was = {"search": "small", "trial": 7, "dataset_fingerprint": load_dataset(run.finetune.data).fingerprint}
    for number, (changes, warned) in enumerate([({}, False), ({"data.shift": "invert"}, True)]):
        said: list[str] = []
        changed = spec(max_steps=3, **changes).model_copy(update={"from_search": was})
        train(changed, tmp_path / str(number), storage=storage, notify=said.append)
        warnings = [
            line for line in said if line.startswith("warning: the images differ from those of the search small")
        ]
        assert bool(warnings) == warned


def test_ignored_files_are_reported(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(tmp_path / "d" / f"{i}.png")
    (tmp_path / "d" / "x.heic").touch()
    data = {"source": "image_folder", "train": str(tmp_path / "d"), "resolution": 16, "color": "grey"}
    said: list[str] = []
    train(spec(max_steps=3, data=data), tmp_path / "out", storage=storage, notify=said.append)
    assert said[0] == f"{tmp_path / 'd'}: 1 file of other kinds left out: .heic 1"


def test_without_a_tracker_the_run_is_whole(storage: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train(spec(), tmp_path, storage=storage, notify=said.append)
    assert [line.split()[0] for line in said] == ["MLflow", "step", "step", "step", "step", "MLflow"]
    assert said[0].startswith(f"MLflow at {NOWHERE}: ")
    assert said[0].endswith("; the run continues and sends the rest later")
    assert said[-1] == f"MLflow lacks a part of this run; once it can be reached, run: ftae sync {tmp_path}"
    with pytest.raises(FtaeError, match=r"the model is in .*/model, but was not registered: MLflow at"):
        train(spec(), tmp_path, storage=storage, resume=True, register="digits-vae", notify=silent)
    assert len(reports(tmp_path)) == 4
    assert model_bytes(tmp_path)
