"""Files that an ftae of version 1 wrote (no format, two fields and a key under other names) are used as if new.

``tests/files/version_1/make.py`` says how they were made.
"""

import json
import re
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import run_spec
from PIL import Image
from safetensors.torch import load_file, save_file

from ftae.engine.models.families import build_model
from ftae.engine.training.checkpoint import read_spec
from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.results.stored_spec import run_of, search_of
from ftae.specs.files import load_production
from ftae.specs.finetune.augmentation import AugmentSpec
from ftae.specs.reading.format_versions import FORMAT

FILES = Path(__file__).parent / "files" / "version_1"
BEST = "searches/old/trials/0001/checkpoints/step-00000400"

# What the old ftae measured at step 400, also after it resumed trial 2 and the run at step 200. Another CPU may differ
# in the last digits.
TRIAL_1, TRIAL_2, TRIAL_3, RUN = (
    pytest.approx(psnr, rel=1e-3) for psnr in (16.107797980, 15.417751021, 13.702811639, 16.050813874)
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder as the old ftae left it."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    for name in ("journal.jsonl", "search.yaml"):
        file = tmp_path / "searches/old" / name
        file.write_text(file.read_text().replace("SEARCHES", str(tmp_path / "searches")))
    for folder, steps in (
        ("searches/old/trials/0000", [0]),
        ("searches/old/trials/0001", [0, 200, 400]),
        ("searches/old/trials/0002", [0, 200]),
        ("runs/old", [0, 200]),
    ):
        (tmp_path / folder / "images").mkdir(parents=True)
        for step in steps:
            Image.new("L", (8, 8)).save(tmp_path / folder / f"images/step-{step:08d}.png")
    weights = load_file(tmp_path / BEST / "model.safetensors")
    own = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    save_file(own, tmp_path / "exports/old/model/model.safetensors")
    return tmp_path


def ftae(folder: Path, *arguments: str) -> str:
    """What a command prints to stdout; it must succeed."""
    command = [sys.executable, "-m", "ftae", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, events: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(event) + "\n" for event in events))


def finished(record: SearchRecord) -> list[int]:
    return [trial.number for trial in record.trials.values() if trial.status == "finished"]


def test_the_files_are_of_version_1() -> None:
    [opened, *_] = lines(FILES / "searches/old/journal.jsonl")
    assert "format" not in opened
    assert opened["search"]["finetune"]["prefix_cache_gb"] == 0.5
    assert {event["params"].get("model.outer_stages") for event in lines(FILES / "searches/old/journal.jsonl")
            if event["event"] == "suggest"} == {None, 0, 1}  # fmt: skip
    assert "vitals" in json.loads((FILES / BEST / "report.json").read_text())
    assert json.loads((FILES / "exports/old/model/ftae_model.json").read_text())["outer_stages"] == 1
    assert "prefix_cache_gb" in (FILES / "runs/old/production.yaml").read_text()


def test_a_search_is_read_with_its_trials_under_the_new_names(old: Path) -> None:
    record = replay(old / "searches/old")
    search = search_of(record)
    assert search.finetune.frozen_cache_gb == 0.5
    assert list(search.search_space) == ["optimizer.lr", "model.resolution_adapters"]
    assert [trial.params.get("model.resolution_adapters") for trial in record.trials.values()] == [None, 1, 0]
    assert run_of(record, record.trials[2]).model.model_dump()["resolution_adapters"] == 0
    assert finished(record) == [0, 1]


def test_nothing_else_of_a_spec_has_changed() -> None:
    """The digest of a run is that of version 1 as soon as its keys have their old names, and new ones are gone."""
    production = load_production(FILES / "exports/old/production.yaml")
    run = production.finetune.model_dump(mode="json")
    run["prefix_cache_gb"] = run.pop("frozen_cache_gb")
    run["model"]["outer_stages"] = run["model"].pop("resolution_adapters")
    new: dict[str, dict[str, Any]] = {
        "discriminator": {
            "conditional": None,
            "architecture": "patch",
            "channel_base": 16384,
            "channel_max": 512,
            "freeze_depth": 0,
            "lr_multipliers": {},
            "l2_sp": 0.0,
            "r1_every": 1,
            "augment": AugmentSpec().model_dump(mode="json"),
            "pool_size": 50,
        },
        "losses": {"path_length": 0.0, "cycle": 0.0, "identity": 0.0},
        "data": {"cache_gb": None},
    }
    assert run.pop("num_samples") is None
    assert run.pop("checkpoint_stages") == "auto"
    for section in new:
        assert {name: run[section].pop(name) for name in new[section]} == new[section]
    text = json.dumps(run, sort_keys=True, separators=(",", ":"))
    assert blake2b(text.encode(), digest_size=8).hexdigest() == "3d0e58786967a156"  # in provenance.json of the export


def test_a_search_is_listed_and_shown(old: Path) -> None:
    [status] = json.loads(ftae(old, "list", "--json"))["searches"]
    assert (status["search"], status["state"]) == ("old", "interrupted")
    assert "old" in ftae(old, "status", "old")
    rows = json.loads(ftae(old, "show", "old", "--json"))["trials"]
    by_number = {row["trial"]: row for row in rows}
    assert by_number[1]["params.model.resolution_adapters"] == 1
    assert by_number[1]["val/psnr"] == TRIAL_1
    best = ftae(old, "best", "old")
    assert "trial: 1\n" in best
    assert "model.resolution_adapters" in best


def test_a_checkpoint_is_read(old: Path) -> None:
    spec = read_spec(old / BEST)
    assert spec is not None
    assert (spec.frozen_cache_gb, spec.model.model_dump()["resolution_adapters"]) == (0.5, 1)


def test_a_model_folder_is_read_with_its_resolution_adapters(old: Path) -> None:
    model = {"family": "conv_vae", "pretrained": str(old / "exports/old")}
    autoencoder = build_model(run_spec(model=model), None)
    weights = autoencoder.state_dict()
    saved = load_file(old / BEST / "model.safetensors")
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    assert sum("residual" in name for name in weights) > 0


def test_a_search_is_exported_in_the_new_format(old: Path) -> None:
    ftae(old, "export", "old", "--out", "exports/new")
    production = yaml.safe_load((old / "exports/new/production.yaml").read_text())
    assert (production["format"], production["finetune"]["frozen_cache_gb"]) == (FORMAT, 0.5)
    model = json.loads((old / "exports/new/model/ftae_model.json").read_text())
    assert (model["format"], model["resolution_adapters"]) == (FORMAT, 1)
    new, before = (load_file(old / f"exports/{name}/model/model.safetensors") for name in ("new", "old"))
    assert new.keys() == before.keys()
    assert all(torch.equal(new[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["old", "exports/old", BEST])
def test_a_model_is_evaluated_to_the_same_value(old: Path, name: str) -> None:
    assert json.loads(ftae(old, "evaluate", name, "--json"))["metrics"]["psnr"] == TRIAL_1


def test_a_production_file_trains_to_the_same_value(old: Path) -> None:
    ftae(old, "train", "exports/old", "--out", "runs/new")
    assert newest(old / "runs/new")["metrics"]["val/psnr"] == TRIAL_1


def test_a_model_folder_is_what_a_new_run_starts_from(old: Path) -> None:
    pretrained = ["--set", "model.pretrained=exports/old", "--set", "max_steps=2"]
    ftae(old, "train", "exports/old", "--out", "runs/new", *pretrained)
    assert newest(old / "runs/new")["step"] == 2


def test_an_interrupted_production_run_is_resumed(old: Path) -> None:
    ftae(old, "train", "runs/old", "--out", "runs/old", "--resume")
    report = newest(old / "runs/old")
    assert (report["step"], report["metrics"]["val/psnr"]) == (400, RUN)


def newest(run: Path) -> dict[str, Any]:
    """The report of the newest checkpoint."""
    folder = max((run / "checkpoints").glob("step-*"))
    content = json.loads((folder / "report.json").read_text())
    assert content["format"] == FORMAT
    assert "collapse_signs" in content
    return dict(content["report"])


@pytest.mark.slow
def test_a_search_is_resumed_and_extended(old: Path) -> None:
    """One question before and after: the renamed fields do not count as changes."""
    before = (old / "searches/old/journal.jsonl").read_bytes()
    ftae(old, "resume", "old")
    journal = old / "searches/old/journal.jsonl"
    assert journal.read_bytes().startswith(before)
    opened = [event for event in lines(journal) if event["event"] == "open"]
    assert [event.get("format") for event in opened] == [None, FORMAT]
    record = replay(old / "searches/old")
    assert finished(record) == [0, 1, 2, 3]
    assert [record.trials[number].metrics["val/psnr"] for number in (1, 2, 3)] == [TRIAL_1, TRIAL_2, TRIAL_3]
    assert [event["step"] for event in record.trials[2].starts] == [0, 200]
    ftae(old, "extend", "old", "--trials", "1")
    assert finished(replay(old / "searches/old")) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_the_file_of_a_search_resumes_it_once_its_keys_are_renamed(old: Path) -> None:
    file = old / "search.yaml"
    text = file.read_text().replace("prefix_cache_gb", "frozen_cache_gb")
    file.write_text(text.replace("outer_stages", "resolution_adapters"))
    ftae(old, "search", "search.yaml", "--resume")
    assert finished(replay(old / "searches/old")) == [0, 1, 2, 3]


NEWER = f"was written by a newer ftae (format {FORMAT + 1}, this one reads up to {FORMAT})"


def refused(folder: Path, *arguments: str) -> str:
    """The message with which a command refuses."""
    command = [sys.executable, "-m", "ftae", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 1, result.stdout
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def make_newer(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT + 1}))


def test_a_journal_of_a_newer_format_is_refused(old: Path) -> None:
    journal = old / "searches/old/journal.jsonl"
    [opened, *others] = lines(journal)
    write(journal, [{**opened, "format": FORMAT + 1}, *others])
    assert NEWER in refused(old, "show", "old")


def test_a_model_folder_of_a_newer_format_is_refused(old: Path) -> None:
    make_newer(old / "exports/old/model/ftae_model.json")
    pretrained = ["--set", "model.pretrained=exports/old", "--set", "max_steps=2"]
    assert NEWER in refused(old, "train", "exports/old", "--out", "runs/new", *pretrained)


def test_a_checkpoint_of_a_newer_format_is_refused(old: Path) -> None:
    make_newer(old / BEST / "report.json")
    with pytest.raises(FtaeError, match=re.escape(NEWER)):
        read_spec(old / BEST)


def test_a_production_file_of_a_newer_format_is_refused(old: Path) -> None:
    file = old / "exports/old/production.yaml"
    file.write_text(f"format: {FORMAT + 1}\n{file.read_text()}")
    assert NEWER in refused(old, "train", "exports/old", "--out", "runs/new")
