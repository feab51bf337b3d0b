"""The command line: exit statuses, and what goes to stdout and what to stderr."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from commands import Ftae

from ftae.cli import main as cli
from ftae.engine.data.dataset import load_dataset
from ftae.specs.finetune.sources.builtin import Digits

COMMANDS = {"init", "convert", "validate", "search", "submit", "resume", "extend", "confirm", "list", "status", "logs"}
COMMANDS |= {
    "cache",
    "stop",
    "compare",
    "best",
    "show",
    "report",
    "export",
    "train",
    "translate",
    "sync",
    "ui",
    "evaluate",
    "reconstruct",
    "interpolate",
    "sample",
}


# ---------------------------------------------------------------------------------------- exit statuses


def test_the_help_lists_every_command(ftae: Ftae) -> None:
    result = ftae("--help")
    assert (result.status, result.err) == (0, "")
    listed = {line.split()[1] for line in result.out.partition("Commands")[2].splitlines() if len(line.split()) > 2}
    assert listed & COMMANDS == COMMANDS
    assert set(typer.main.get_command(cli.app).commands) == COMMANDS  # type: ignore[attr-defined]


def test_the_cache_is_listed_and_cleaned(ftae: Ftae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    load_dataset.cache_clear()
    load_dataset(Digits(resolution=8))
    (entry,) = [each for each in json.loads(ftae("cache", "--json").out)["entries"] if each["kind"] == "images"]
    assert (entry["what"], entry["in_use"]) == ("digits, 8x8x1", True)
    assert "digits, 8x8x1" in ftae("cache").out
    assert json.loads(ftae("cache", "--clean", "--older-than", "1", "--json").out)["removed"] == []
    refused = ftae("cache", "--to-gb", "1")
    assert (refused.status, "no effect without --clean" in refused.err) == (1, True)
    load_dataset.cache_clear()
    gc.collect()
    assert ftae("cache", "--clean").status == 0
    assert json.loads(ftae("cache", "--json").out) == {"entries": [], "num_bytes": 0}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(ftae: Ftae, command: str) -> None:
    result = ftae(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"ftae {command}" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["validate"],
        ["validate", "search.yaml", "--no-such-option"],
        ["train", "production.yaml", "--max-steps", "many"],
        ["search", "search.yaml", "--set"],
    ],
)
def test_a_wrong_call_is_2(ftae: Ftae, arguments: list[str]) -> None:
    assert ftae(*arguments).status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "production.yaml", "--register", "team/vae"], "must be a name without / and :, got 'team/vae'"),
        (["train", "production.yaml", "--register", ""], "must be a name without / and :, got ''"),
        (["train", "production.yaml", "--storage", "s3://bucket/p"], "must be a folder of this machine"),
        (["train", "production.yaml", "--out", "s3://bucket/p"], "must be a folder of this machine"),
        (["export", "small", "--out", "gs://bucket/p"], "must be a folder of this machine"),
        (["sample", "small", "--out", "s3://bucket/p"], "must be a folder of this machine"),
        (["evaluate", "small", "--out", "s3://bucket/p"], "must be a folder of this machine"),
        (["reconstruct", "small", "images", "s3://bucket/p"], "must be a folder of this machine"),
        (["interpolate", "small", "a.png", "b.png", "--out", "s3://bucket/p"], "must be a folder of this machine"),
        (["ui", "--storage", "s3://bucket/p"], "must be a folder of this machine"),
        (["show", "small", "--storage", "s3://key:hush@bucket"], "must not hold a password"),
        (["list", "--storage", "sftp://me:hush@host/p"], "must not hold a password"),
        (["resume", "small", "--storage", "https://hush@host/p"], "must not hold a login"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(ftae: Ftae, arguments: list[str], message: str) -> None:
    before = sorted(Path().rglob("*"))
    result = ftae(*arguments)
    assert (result.status, result.out) == (2, "")
    said = " ".join(result.err.replace("\u2502", " ").split())
    assert message in said
    assert "hush" not in said
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "none.yaml"], "error: none.yaml: cannot be read: No such file or directory"),
        (["validate", "."], "error: .: cannot be read: Is a directory"),
        (["search", "production.yaml"], "error: production.yaml:1: is a production file"),
        (["train", "search.yaml"], "error: search.yaml:1: is a search file: run it with `ftae search`"),
        (["search", "search.yaml", "--resume"], "error: there is nothing to resume in "),
        (["search", "search.yaml", "--set", "optimiser.lr=1"], "error: --set optimiser.lr=1: unknown key"),
        (["train", "production.yaml", "--max-steps", "0"], "error: --set finetune.max_steps=0: finetune.max_steps: "),
        (["best", "none"], "error: there is no search 'none' in searches; it holds none"),
        (["show", "none", "--storage", "elsewhere"], "error: there is no search 'none' in elsewhere; it holds none"),
        (["export", "none"], "error: there is no search 'none' in searches"),
        (["sync", "none"], "error: there is no search 'none' in searches"),
        (
            ["list", "--storage", "sftp://b/p"],
            "error: search.storage must be a folder, or the URL of an object store by",
        ),
        (
            ["best", "none", "--storage", "nfs://b/p"],
            "error: search.storage must be a folder, or the URL of an object ",
        ),
        (["ui"], "error: searches has no embedded MLflow store (mlflow.db); run a search first, or name --storage"),
        (["train", "production.yaml", "--workers", "3"], "error: 3 workers cannot share batch_size 8 evenly; use a "),
        (["train", "production.yaml", "--resume"], "error: runs/small has no checkpoint to resume from"),
        (["train", "production.yaml", "--out", "search.yaml/below"], "error: [Errno 20] Not a directory: "),
    ],
)
def test_what_the_user_can_fix_is_1_with_one_message(ftae: Ftae, arguments: list[str], message: str) -> None:
    result = ftae(*arguments)
    assert (result.status, result.out) == (1, "")
    said = [line for line in result.err.splitlines() if not line.endswith("starting Ray")]
    assert len(said) == 1
    assert said[0].startswith(message)
    assert "Traceback" not in result.err
    assert not Path("s3:").exists()


def test_every_problem_of_a_file_is_a_line(ftae: Ftae) -> None:
    search = yaml.safe_load(Path("search.yaml").read_text())
    search["objective"]["direction"] = "up"
    search["finetune"]["batch_size"] = 0
    Path("bad.yaml").write_text(yaml.safe_dump(search))
    result = ftae("validate", "bad.yaml")
    assert (result.status, result.out) == (1, "")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: bad.yaml:") for line in lines)
    assert any("finetune.batch_size" in line for line in lines)
    assert any("objective.direction" in line for line in lines)


@pytest.mark.parametrize(("arguments", "has_traceback"), [(["--debug"], True), ([], False)])
def test_debug_shows_where_an_error_came_from(tmp_path: Path, arguments: list[str], has_traceback: bool) -> None:
    command = [sys.executable, "-m", "ftae", *arguments, "validate", "none.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "FTAE_DEBUG"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert ("Traceback" in result.stderr) is has_traceback
    assert "none.yaml: cannot be read" in result.stderr
