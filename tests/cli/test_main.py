"""The command line: exit statuses, what goes to stdout and what to stderr, and what machines read."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from builders import eval_report, search_dict
from commands import Ftae, Result, commands_in
from mlflow import MlflowClient

from ftae import __version__
from ftae.cli import main as cli
from ftae.results.search_record import SearchRecord
from ftae.results.summary import leaderboard
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.files import load_search
from ftae.storage.backends import FolderStore
from ftae.storage.store import open_store
from ftae.tracking import store_uri

COMMANDS = {"convert", "validate", "search", "submit", "resume", "extend", "confirm", "list", "status", "logs", "stop"}
COMMANDS |= {
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
SEARCH = search_dict(
    **{
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space.max_grad_norm": {"choices": [1.0, None]},
        "search": {"num_trials": 3},
    }
)


@pytest.fixture
def ftae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ftae:
    """Runs a command in ``tmp_path``, which holds search.yaml and production.yaml."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    (tmp_path / "production.yaml").write_text(yaml.safe_dump({key: SEARCH[key] for key in ("name", "finetune")}))
    return commands_in(tmp_path, monkeypatch, capsys)


def make_search(folder: Path, *psnr: float, status: str | None = "complete") -> SearchRecord:
    """A search folder whose trials, the baseline first, ended with these values; the one after them diverged."""
    folder.mkdir(parents=True)
    spec = SearchSpec.model_validate(SEARCH | {"name": folder.name})
    state = SearchState(spec, FolderStore(folder))
    for number, value in enumerate(psnr):
        state.next_trial()
        checkpoint = folder / f"trials/{number:04d}/checkpoints/step-00000012"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        state.report(number, eval_report(12 if number else 0, value, checkpoint="checkpoints/step-00000012"))
    state.next_trial()
    state.end(len(psnr), "diverged", "non-finite loss at step 3")
    if status is not None:
        state.close(status)
    return state.record


@pytest.fixture
def stored(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An object store with one search, of which this machine has nothing."""
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another machine's"))
    store = open_store(bucket, "small", "driver")
    state = SearchState(SearchSpec.model_validate(SEARCH), store)
    for number in (0, 1):
        state.next_trial()
        state.report(number, eval_report(12 * number, 18.0 + number, checkpoint="checkpoints/step-00000012"))
    store.write("trials/0001/checkpoints/step-00000012/model.safetensors", b"weights")
    state.close("interrupted")
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "this machine's"))
    return bucket


# ---------------------------------------------------------------------------------------- exit statuses


def test_the_help_lists_every_command(ftae: Ftae) -> None:
    result = ftae("--help")
    assert (result.status, result.err) == (0, "")
    listed = {line.split()[1] for line in result.out.partition("Commands")[2].splitlines() if len(line.split()) > 2}
    assert listed & COMMANDS == COMMANDS
    assert set(typer.main.get_command(cli.app).commands) == COMMANDS  # type: ignore[attr-defined]


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


# ---------------------------------------------------------------------------------------------- commands


def test_validate_prints_the_plan(ftae: Ftae) -> None:
    result = ftae("validate", "search.yaml")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[0] == "small: a valid search"
    assert f"storage      {Path.cwd()}/searches/small" in result.out
    assert ftae("validate", "production.yaml").out.startswith("small: a valid training run\n")


def test_set_overrides_any_value(ftae: Ftae) -> None:
    result = ftae(
        "validate", "search.yaml", "--set", "max_steps=24", "--set", "search.num_trials=5", "--set=name=other"
    )
    assert result.status == 0
    assert result.out.startswith("other: a valid search\n")
    assert "trials       5 tuned" in result.out
    assert "training     24 steps" in result.out


def test_best_is_read_by_machines_and_people(ftae: Ftae, tmp_path: Path) -> None:
    record = make_search(tmp_path / "searches" / "small", 20.0, 21.0, 23.5)
    result = ftae("best", "small", "--json")
    assert (result.status, result.err) == (0, "")
    assert json.loads(result.out) == {
        "search": "small",
        "trial": 2,
        "metric": "val/psnr",
        "value": 23.5,
        "baseline": 20.0,
        "beats_baseline": True,
        "verdict": "val/psnr 20.0000 -> 23.5000 (+3.5000)",
        "warning": False,
        "params": record.trials[2].params,
        "metrics": {"val/psnr": 23.5},
        "checkpoint": str(tmp_path / "searches/small/trials/0002/checkpoints/step-00000012"),
    }
    lines = ftae("best", "small").out.splitlines()
    assert lines[:6] == [
        "search: small",
        "trial: 2",
        "metric: val/psnr",
        "value: 23.5",
        "baseline: 20.0",
        "beats_baseline: True",
    ]
    assert f"  optimizer.lr: {record.trials[2].params['optimizer.lr']}" in lines


def test_best_says_loudly_that_the_untuned_model_won(ftae: Ftae, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 19.0)
    result = ftae("best", "small", "--json")
    found = json.loads(result.out)
    assert (result.status, found["beats_baseline"], found["warning"]) == (0, False, True)
    assert result.err.startswith("WARNING: the untuned model was not beaten. val/psnr 20.0000 -> 19.0000")


def test_a_trade_off_is_stated_by_weights_or_by_a_trial(ftae: Ftae, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0, 23.5)
    assert json.loads(ftae("best", "small", "--trial", "1", "--json").out)["trial"] == 1
    for command in ("best", "export"):
        result = ftae(command, "small", "--weights", "val/psnr=1")
        assert (result.status, result.err) == (
            1,
            "error: weights choose among several metrics, this search optimises val/psnr alone\n",
        )
        for text in ("val/psnr", "val/psnr=x", ""):
            assert ftae(command, "small", "--weights", text).status == 2
        assert ftae(command, "small", "--weights", "val/psnr=1", "--trial", "1").status == 2


def test_best_of_a_search_without_a_full_trial_is_1(ftae: Ftae, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0)
    result = ftae("best", "small", "--json")
    assert (result.status, result.out) == (1, "")
    assert result.err == "error: small: no tuned trial ran to its full budget yet\n"


def test_show_prints_every_trial(ftae: Ftae, tmp_path: Path) -> None:
    record = make_search(tmp_path / "elsewhere" / "small", 20.0, 21.0, 23.5)
    result = ftae("show", "small", "--storage", "elsewhere")
    assert (result.status, result.err) == (0, "")
    title, header, *rows = result.out.splitlines()
    assert title.strip() == "small: complete, 2 full trainings"
    assert header.split() == ["trial", "kind", "status", "val/psnr", "step", "optimizer.lr", "max_grad_norm", "reason"]
    assert [row.split()[:4] for row in rows] == [
        ["2", "sampled", "finished", "23.5"],
        ["1", "file", "finished", "21"],
        ["0", "baseline", "finished", "20"],
        ["3", "sampled", "diverged", "0"],
    ]
    assert rows[3].strip().endswith("non-finite loss at step 3")
    shown = json.loads(ftae("show", "elsewhere/small", "--json").out)
    assert (shown["search"], shown["state"]) == ("small", "complete")
    assert (shown["budget"], shown["used_budget"]) == (None, 2.0)
    assert shown["trials"] == json.loads(json.dumps(leaderboard(record)))


@pytest.mark.parametrize(("status", "state"), [(None, "running or killed"), ("interrupted", "interrupted")])
def test_show_tells_the_state(ftae: Ftae, tmp_path: Path, status: str | None, state: str) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, status=status)
    assert json.loads(ftae("show", "small", "--json").out)["state"] == state


def test_tables_are_printed_as_csv(ftae: Ftae, tmp_path: Path) -> None:
    record = make_search(tmp_path / "searches" / "small", 20.0, 21.0, 23.1)
    first, *_ = list(csv.DictReader(io.StringIO(ftae("show", "small", "--csv").out, newline="")))
    assert (first["trial"], first["val/psnr"]) == ("2", "23.1")
    assert float(first["params.optimizer.lr"]) == record.trials[2].params["optimizer.lr"]
    for command in (["list"], ["status", "small"]):
        [row] = list(csv.DictReader(io.StringIO(ftae(*command, "--csv").out, newline="")))
        assert (row["search"], row["done"], row["best_trial"], row["best"], row["budget"]) == (
            "small",
            "3",
            "2",
            "23.1",
            "",
        )
    assert ftae("list", "--storage", "none", "--csv").out == ""


@pytest.mark.parametrize("command", [["show", "small"], ["status", "small"], ["list"]])
def test_two_formats_at_once_are_a_wrong_call(ftae: Ftae, command: list[str]) -> None:
    result = ftae(*command, "--json", "--csv")
    assert (result.status, result.out) == (2, "")
    assert "use --json or --csv, not both" in result.err


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_baseline_that_runs_or_failed_is_told(ftae: Ftae, tmp_path: Path, status: str) -> None:
    folder = tmp_path / "searches" / "small"
    folder.mkdir(parents=True)
    state = SearchState(SearchSpec.model_validate(SEARCH), FolderStore(folder))
    state.next_trial()
    if status == "failed":
        state.end(0, "failed", "RuntimeError: boom")
        state.close("failed", "the untuned model cannot be evaluated: RuntimeError: boom")
    reason = "is running" if status == "running" else "failed: RuntimeError: boom"
    shown = ftae("show", "small").out
    assert f"0      baseline  {status}" in shown
    assert f"the baseline {reason}" in shown
    assert f"baseline     {reason}" in ftae("status", "small").out
    assert (
        ftae("best", "small").err == f"error: small: no tuned trial ran to its full budget yet; the baseline {reason}\n"
    )
    [row] = list(csv.DictReader(io.StringIO(ftae("status", "small", "--csv").out, newline="")))
    assert (row["baseline"], row["no_baseline"]) == ("", reason)


def test_sync_sends_what_mlflow_lacks(ftae: Ftae, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    num_events = len((tmp_path / "searches/small/journal.jsonl").read_text().splitlines())
    result = ftae("sync", "small")
    assert result.status == 0
    assert result.out == f"small: {num_events} events sent; MLflow has everything the journal holds\n"
    assert ftae("sync", "small").out == result.out  # sending everything again changes nothing
    uri = store_uri(None, tmp_path / "searches")
    client = MlflowClient(uri, registry_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert {run.data.tags.get("ftae.trial") for run in runs} == {None, "0", "1", "2"}


def test_train_writes_to_a_folder_of_its_own(ftae: Ftae, tmp_path: Path) -> None:
    nowhere = ["--set", "tracking.uri=http://127.0.0.1:9"]
    result = ftae("train", "production.yaml", "--max-steps", "6", *nowhere)
    assert result.status == 0
    [line] = result.out.splitlines()
    assert line.startswith("small: val/psnr ")
    assert line.endswith(" at step 6; the model is in runs/small/model")
    steps = [text.split()[1] for text in result.err.splitlines() if text.startswith("step ")]
    assert steps == ["0", "2", "4", "6"]
    assert "MLflow at http://127.0.0.1:9: " in result.err
    again = ftae("train", "production.yaml", *nowhere)
    assert (again.status, again.out) == (1, "")
    assert again.err.startswith("error: runs/small holds a run already; continue it with --resume")
    # An exported folder stands for the production file in it.
    longer = ftae("train", "runs/small", "--out", "runs/small", "--resume", "--max-steps", "8", *nowhere)
    assert longer.status == 0
    assert "at step 8; the model is in runs/small/model" in longer.out


def test_commands_find_their_files_from_any_folder(ftae: Ftae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ftae("best", "../searches/small").status == 0
    assert load_search(tmp_path / "search.yaml").name == "small"


# ---------------------------------------------------------------------------------- standard streams


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """A command line, where ``FTAE`` is the script."""
    command = line.replace("FTAE", f"{sys.executable} -m ftae")
    return subprocess.run(["bash", "-c", command], capture_output=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("FTAE list >&-", 0, b""),
        ("FTAE show small >&-", 0, b""),
        ("FTAE best small --json >&- 2>&- <&-", 0, b""),
        ("FTAE best none 2>&-", 1, b""),
        ("FTAE best none 2> /dev/full", 1, b""),
        ("FTAE best none >&-", 1, b"error: there is no search 'none' in searches; choose one of small\n"),
        ("FTAE list > /dev/full", 1, b"error: [Errno 28] No space left on device\n"),
        ("FTAE best small > /dev/full", 1, b"error: [Errno 28] No space left on device\n"),
        ("FTAE best small --trial 0 2>&1 | head -c 6", 0, b""),
        ("FTAE --version >&-", 0, b""),
    ],
)
def test_closed_and_full_streams_make_no_noise(line: str, status: int, err: bytes, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    result = shell(line, tmp_path)
    assert (result.returncode, result.stderr) == (status, err)


@pytest.mark.parametrize("command", ["list", "show small", "best small", "best small --json"])
def test_a_reader_that_has_gone_is_no_error_to_tell(command: str, tmp_path: Path) -> None:
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    read, write = os.pipe()
    os.close(read)
    run = [sys.executable, "-m", "ftae", *command.split()]
    result = subprocess.run(run, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, b"")


def test_nothing_is_written_into_a_file_that_has_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "import ftae.__main__ as m, os; m._open_streams(); f = open('file', 'w'); os.write(1, b'said'); print('x')"
    shell(f'{sys.executable} -c "{code}" >&- 2>&- <&-', tmp_path)
    assert (tmp_path / "file").read_text() == ""


def test_a_name_that_is_no_text_is_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfcn")
    make_search(tmp_path / "searches" / "small", 20.0, 21.0)
    (tmp_path / "searches" / "small").rename(tmp_path / "searches" / name)
    for command in ("list", "list --json", "best 'searches/'*", "show 'searches/'*", "status searches/*"):
        result = shell(f"FTAE {command}".replace("'", ""), tmp_path)
        assert (result.returncode, result.stderr) == (0, b""), command
    assert b"gr\\udcfcn" in shell("FTAE list", tmp_path).stdout
    missing = shell("FTAE best $'w\\xfcst'", tmp_path)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    assert b"'w\\udcfcst' in searches; choose one of gr\\udcfcn" in missing.stderr


@pytest.mark.parametrize(
    "arguments", [["train", "production.yaml", "--out"], ["train", "production.yaml", "--storage"]]
)
def test_a_folder_whose_name_is_no_text_is_not_begun(ftae: Ftae, arguments: list[str]) -> None:
    result = ftae(*arguments, os.fsdecode(b"gr\xfcn"))
    assert (result.status, result.out) == (1, "")
    assert "gr\\xfc" in result.err
    assert result.err.endswith(": the name of a folder to write to must be UTF-8\n")
    assert not Path("runs").exists()


def test_the_version_is_told(ftae: Ftae) -> None:
    assert ftae("--version") == Result(0, f"ftae {__version__}\n", "")


# ------------------------------------------------------------------------------------- an object store


def test_a_search_in_an_object_store_is_read_as_any(ftae: Ftae, stored: str) -> None:
    shown = json.loads(ftae("show", "small", "--storage", stored, "--json").out)
    assert [row["val/psnr"] for row in shown["trials"]] == [19.0, 18.0]
    found = json.loads(ftae("best", "small", "--storage", stored, "--json").out)
    assert Path(found["checkpoint"], "model.safetensors").read_bytes() == b"weights"
    missing = ftae("best", "other", "--storage", stored)
    assert (missing.status, missing.err) == (
        1,
        f"error: there is no search 'other' in {stored}; choose one of small\n",
    )


def test_an_object_store_has_no_room_for_the_embedded_tracking(ftae: Ftae) -> None:
    result = ftae("validate", "search.yaml", "--set", "search.storage=s3://bucket/searches")
    assert result.status == 1
    assert "tracking: needs a uri: the embedded store is a file beside the search" in result.err
    assert ftae("ui", "--storage", "s3://bucket/searches").status == 2
