"""From a search file to a production model by the command line, with a driver that is killed on the way."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.outcome import numbers, undisturbed
from faults.running import Driver, Drivers, wait_until
from mlflow import MlflowClient

from ftae.cli.main import main
from ftae.results.replay import replay
from ftae.results.search_record import Close, SearchRecord
from ftae.storage import journal
from ftae.tracking import store_uri

pytestmark = pytest.mark.faults

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


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path_factory.mktemp("user"))
    (drivers.folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    yield drivers
    drivers.clean_up()


def is_inside(folder: Path, first_trial: int) -> bool:
    """Whether the newest event is a report in the middle of a trial, ``first_trial`` or a later one."""
    if not (folder / journal.FILE_NAME).exists():
        return False
    *_, event = [{"event": "none"}, *(event for event, _ in journal.read(folder))]
    return event["event"] == "report" and event["trial"] >= first_trial and 0 < event["step"] < 12


def freeze_inside(driver: Driver, folder: Path, first_trial: int) -> None:
    """Stop the driver in the middle of a trial, so that there it is killed."""
    while True:
        wait_until(lambda: is_inside(folder, first_trial) or driver.poll() is not None)
        assert driver.poll() is None, driver.messages
        os.kill(driver.pid, signal.SIGSTOP)
        if is_inside(folder, first_trial):
            return
        os.kill(driver.pid, signal.SIGCONT)


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
    after_kill = replay(folder)
    second = drivers.start("search", "search.yaml", "--resume")
    freeze_inside(second, folder, len(after_kill.trials))
    os.kill(second.pid, signal.SIGCONT)
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does
    interrupted = second.result()
    after_interrupt = replay(folder)
    finished = drivers.start("search", "search.yaml", "--resume").result(300)
    return Disturbed(folder, after_kill, interrupted, after_interrupt, finished)


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
    assert "small is not complete (stopped by the user); to continue: ftae search search.yaml --resume" in errors
    assert "small is not complete" not in output
    record = disturbed.after_interrupt
    assert record.close is not None
    assert (record.close.status, record.close.reason) == ("interrupted", "stopped by the user")
    assert len(disturbed.after_kill.trials) < len(record.trials) < 11


def test_in_the_end_it_is_the_search_that_was_never_disturbed(disturbed: Disturbed, tmp_path: Path) -> None:
    status, output, errors = disturbed.finished
    assert (status, "Traceback" in errors) == (0, False)
    expected = undisturbed(disturbed.folder.parents[1] / "search.yaml", tmp_path / "undisturbed")
    record = replay(disturbed.folder)
    assert numbers(record) == numbers(expected)
    assert {t.status for t in record.trials.values()} >= {"finished", "pruned", "diverged"}
    assert output.startswith(f"small: best is trial {expected.ranked()[0].number}. val/psnr ")


def test_unfinished_trials_went_on_from_their_checkpoints(disturbed: Disturbed) -> None:
    for trial in replay(disturbed.folder).trials.values():
        for r in trial.reports:  # begun again from the start, it would have drawn its pictures again
            assert (disturbed.folder / r["images"]).stat().st_mtime <= r["time"]


def test_mlflow_has_it_all_once(disturbed: Disturbed) -> None:
    uri = store_uri(None, disturbed.folder.parent)
    client = MlflowClient(uri, registry_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    runs = {run.data.tags.get("ftae.trial"): run for run in found}
    assert len(runs) == len(found)
    record = replay(disturbed.folder)
    assert runs.keys() == {None, *(str(number) for number in record.trials)}
    assert {run.info.status for run in found} <= {"FINISHED", "KILLED", "FAILED"}
    assert runs[None].info.status == "FINISHED"
    for trial in record.trials.values():
        run = runs[str(trial.number)]
        assert run.data.tags["ftae.status"] == trial.status
        points = client.get_metric_history(run.info.run_id, "val/psnr")
        assert [(point.step, point.value) for point in points] == [(r["step"], r["value"]) for r in trial.reports]


def test_no_process_is_left(disturbed: Disturbed, drivers: Drivers) -> None:
    wait_until(lambda: drivers.left_over() == [])
    assert drivers.left_over() == []


# ------------------------------------------------------------------------------- into production


def test_the_winner_goes_into_production(
    disturbed: Disturbed, drivers: Drivers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(drivers.folder)
    best = replay(disturbed.folder).ranked()[0]

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
    again = replay(Path("again"))
    assert again.close == Close("complete")
    repeated, expected = ([(r["step"], r["metrics"]) for r in t.reports] for t in (again.trials[1], best))
    assert repeated == expected
    for file in Path("exports/small/model").iterdir():
        assert (Path("again/model") / file.name).read_bytes() == file.read_bytes()
    uri = store_uri(None, disturbed.folder.parent)
    client = MlflowClient(uri, registry_uri=uri)
    champion = client.get_model_version_by_alias("digits", "champion")
    assert client.get_run(champion.run_id).data.tags["ftae.trial"] == str(best.number)
    assert " at step 24; " in ftae("train", "exports/small", "--out", "longer", "--max-steps", "24")
