"""From a search file to a production model by the command line, with a driver that is killed on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from ftae import journal
from ftae.cli import main
from ftae.engine.loop import finetune
from ftae.errors import TrainingFailed
from ftae.journal import SearchRecord
from ftae.search.state import SearchState
from ftae.specs.yamlfile import load_search
from ftae.storage import Store
from ftae.tracking import store_uri

SEARCH: dict[str, Any] = {
    "name": "small",
    "finetune": {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-3},
        "ema_half_life_fraction": 0.1,
        "batch_size": 512,
        "max_steps": 12,
        "num_evals": 3,
        "metrics": ["psnr", "ssim"],
    },
    "search_space": {
        "optimizer.lr": {"low": 1e-4, "high": 10.0, "log": True},
        "losses.kl": {"low": 1e-5, "high": 1e-2, "log": True},
        "max_grad_norm": {"choices": [1.0, None]},
    },
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search": {
        "num_trials": 10,
        "scheduler": {"name": "asha", "reduction_factor": 2},
        "max_concurrent": 1,
        "keep_checkpoints": 1,
        "seed": 2,
    },
}


@dataclass
class Drivers:
    """Runs ``ftae`` in a folder of its own, each time as a process group of its own."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"FTAE_TEST": str(self.folder)}
        process = subprocess.Popen(
            [sys.executable, "-m", "ftae", *arguments],
            cwd=self.folder,
            env={name: value for name, value in environment.items() if not name.startswith("RAY_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def left_over(self) -> list[int]:
        """The processes that still run of all those started here, by the variable they inherited."""
        mark = f"FTAE_TEST={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:  # gone meanwhile, or another user's
                continue
        return found

    def clean_up(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        for pid in self.left_over():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path_factory.mktemp("user"))
    (drivers.folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    yield drivers
    drivers.clean_up()


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


def is_inside(folder: Path, first_trial: int) -> bool:
    """Whether the newest event is a report in the middle of a trial, ``first_trial`` or a later one."""
    if not (folder / journal.FILE_NAME).exists():
        return False
    *_, event = [{"event": "none"}, *(event for event, _ in journal.read(folder))]
    return event["event"] == "report" and event["trial"] >= first_trial and 0 < event["step"] < 12


def freeze_inside(driver: subprocess.Popen[str], folder: Path, first_trial: int) -> None:
    """Stop the driver in the middle of a trial, so that there it is killed."""
    while True:
        wait_until(lambda: is_inside(folder, first_trial) or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
        os.kill(driver.pid, signal.SIGSTOP)
        if is_inside(folder, first_trial):
            return
        os.kill(driver.pid, signal.SIGCONT)


def numbers(record: SearchRecord) -> list[Any]:
    """All that a search has found, but for times."""
    return [
        (t.number, t.kind, t.params, t.status, t.reason, [(r["step"], r["metrics"]) for r in t.reports])
        for t in record.trials.values()
    ]


def undisturbed(file: Path, folder: Path) -> SearchRecord:
    """The search as it is without Ray: one trial after the other in this process."""
    spec = load_search(file)
    folder.mkdir()
    state = SearchState(spec, Store(folder))
    while (trial := state.next_trial()) is not None:
        try:
            for report in finetune(spec.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
                if not state.report(trial.number, vars(report)):
                    break
        except TrainingFailed as failure:
            state.end(trial.number, "diverged", str(failure))
    state.close("complete")
    return journal.replay(folder)


@dataclass
class Disturbed:
    folder: Path
    after_kill: SearchRecord
    interrupted: tuple[int, str, str]  # exit status, stdout, stderr
    after_interrupt: SearchRecord
    finished: tuple[int, str, str]


@pytest.fixture(scope="module")
def disturbed(drivers: Drivers) -> Disturbed:
    """A search whose first driver was killed, and whose second was stopped by Ctrl-C, each inside a trial."""
    folder = drivers.folder / "searches" / "small"
    first = drivers.start("search", "search.yaml")
    freeze_inside(first, folder, 1)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    after_kill = journal.replay(folder)
    second = drivers.start("search", "search.yaml", "--resume")
    freeze_inside(second, folder, len(after_kill.trials))
    os.kill(second.pid, signal.SIGCONT)
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does
    output = second.communicate(timeout=120)
    after_interrupt = journal.replay(folder)
    third = drivers.start("search", "search.yaml", "--resume")
    last_output = third.communicate(timeout=300)
    return Disturbed(
        folder, after_kill, (second.returncode, *output), after_interrupt, (third.returncode, *last_output)
    )


def test_a_killed_driver_leaves_what_its_journal_says(disturbed: Disturbed) -> None:
    record = disturbed.after_kill
    assert record.close is None
    *ended, last = record.trials.values()
    assert all(trial.status != "running" for trial in ended)
    assert last.status == "running"
    assert last.checkpoint is not None
    assert (disturbed.folder / last.reports[-1]["images"]).is_file()


def test_ctrl_c_leaves_in_order(disturbed: Disturbed) -> None:
    status, output, errors = disturbed.interrupted
    assert status == 130
    assert "Traceback" not in errors
    assert "small is not complete (stopped by the user); go on with: ftae search search.yaml --resume" in errors
    assert "small is not complete" not in output
    record = disturbed.after_interrupt
    assert record.close is not None
    assert (record.close["status"], record.close["reason"]) == ("interrupted", "stopped by the user")
    assert len(disturbed.after_kill.trials) < len(record.trials) < 11


def test_in_the_end_it_is_the_search_that_was_never_disturbed(disturbed: Disturbed, tmp_path: Path) -> None:
    status, output, errors = disturbed.finished
    assert (status, "Traceback" in errors) == (0, False)
    expected = undisturbed(disturbed.folder.parents[1] / "search.yaml", tmp_path / "undisturbed")
    record = journal.replay(disturbed.folder)
    assert numbers(record) == numbers(expected)
    assert {t.status for t in record.trials.values()} >= {"finished", "pruned", "diverged"}
    assert output.startswith(f"small: best is trial {expected.ranked()[0].number}. val/psnr ")


def test_unfinished_trials_went_on_from_their_checkpoints(disturbed: Disturbed) -> None:
    for trial in journal.replay(disturbed.folder).trials.values():
        for r in trial.reports:  # begun again from the start, it would have drawn its pictures again
            assert (disturbed.folder / r["images"]).stat().st_mtime <= r["time"]


def test_mlflow_has_it_all_once(disturbed: Disturbed) -> None:
    uri = store_uri(None, disturbed.folder.parent)
    client = MlflowClient(uri, registry_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    runs = {run.data.tags.get("ftae.trial"): run for run in found}
    assert len(runs) == len(found)
    record = journal.replay(disturbed.folder)
    assert runs.keys() == {None, *(str(number) for number in record.trials)}
    assert {run.info.status for run in found} <= {"FINISHED", "KILLED", "FAILED"}
    assert runs[None].info.status == "FINISHED"
    for trial in record.trials.values():
        run = runs[str(trial.number)]
        assert run.data.tags["ftae.status"] == trial.status
        points = client.get_metric_history(run.info.run_id, "val/psnr")
        assert [(point.step, point.value) for point in points] == [(r["step"], r["value"]) for r in trial.reports]


def test_no_process_is_left(disturbed: Disturbed, drivers: Drivers) -> None:
    wait_until(lambda: drivers.left_over() == [], seconds=30.0)
    assert drivers.left_over() == []


# ------------------------------------------------------------------------------- into production


def test_the_winner_goes_into_production(
    disturbed: Disturbed, drivers: Drivers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(drivers.folder)
    best = journal.replay(disturbed.folder).ranked()[0]

    def ftae(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ftae", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    assert ftae("export", "small").startswith(f"trial {best.number} of small is in exports/small. val/psnr ")
    assert ftae("train", "exports/small", "--out", "again", "--register", "digits").startswith(
        f"small-trial-{best.number}: val/psnr {best.value:.4f}, "
    )
    reports = [json.loads(line) for line in Path("again/reports.jsonl").read_text().splitlines()]
    assert [(r["step"], r["metrics"]) for r in reports] == [(r["step"], r["metrics"]) for r in best.reports]
    for file in Path("exports/small/model").iterdir():
        assert (Path("again/model") / file.name).read_bytes() == file.read_bytes()
    uri = store_uri(None, disturbed.folder.parent)
    client = MlflowClient(uri, registry_uri=uri)
    champion = client.get_model_version_by_alias("digits", "champion")
    assert client.get_run(champion.run_id).data.tags["ftae.trial"] == str(best.number)
    assert " at step 24; " in ftae("train", "exports/small", "--out", "longer", "--max-steps", "24")


@pytest.mark.slow
def test_a_search_survives_twenty_kills_at_any_moment(drivers: Drivers, tmp_path: Path) -> None:
    moments = random.Random(0)
    folder = drivers.folder / "searches" / "often"
    arguments = ["search", "search.yaml", "--set", "name=often", "--set", "search.num_trials=60"]
    for kill in range(20):
        driver = drivers.start(*arguments)
        if kill % 4:  # in or between trials; else at any moment of its start
            wait_until(partial(is_growing_or_over, folder / journal.FILE_NAME, size_of(folder), driver))
        time.sleep(moments.uniform(0.0, 3.0))
        assert driver.poll() is None, driver.communicate()
        driver.kill()
        driver.communicate()
        if "--resume" not in arguments and (folder / journal.FILE_NAME).exists():
            arguments.append("--resume")
    driver = drivers.start(*arguments)
    _, errors = driver.communicate(timeout=600)
    assert driver.returncode == 0, errors
    expected = undisturbed(folder / "search.yaml", tmp_path / "undisturbed")
    assert numbers(journal.replay(folder)) == numbers(expected)


def size_of(folder: Path) -> int:
    path = folder / journal.FILE_NAME
    return path.stat().st_size if path.exists() else 0


def is_growing_or_over(path: Path, size: int, driver: subprocess.Popen[str]) -> bool:
    """Whether more than the line that opens a search was written."""
    return (path.exists() and path.stat().st_size > size + 3000) or driver.poll() is not None
