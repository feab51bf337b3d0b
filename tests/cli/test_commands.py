"""What the commands print, for people and for machines."""

import csv
import io
import json
from pathlib import Path

import pytest
from builders import eval_report
from commands import Ftae
from mlflow import MlflowClient
from stored_searches import SEARCH, make_search

from ftae.results.summary import leaderboard
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.specs.files import load_search
from ftae.storage.backends import FolderStore
from ftae.storage.store import open_store
from ftae.tracking import store_uri


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
