"""Trials with two workers, in a search on a local Ray: one is pruned, one loses a worker."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec

from ftae.engine.training.distributed import ALONE
from ftae.engine.training.loop import finetune
from ftae.results.search_record import SearchRecord
from ftae.search.driver import run_search
from ftae.search.ray.hang_detector import WORKER_TITLE
from ftae.search.ray.nodes import placement
from ftae.search.ray.trial import followers
from ftae.specs import SearchSpec
from ftae.specs.search.resources import Resources
from ftae.storage import journal
from ftae.storage.journal import FILE_NAME


def search(storage: Path) -> SearchSpec:
    """The file's own rate of 0.01 learns; the other one does not."""
    changes: dict[str, Any] = {
        "name": "shared",
        "finetune.data": {"source": "digits", "resolution": 16},
        "finetune.ema_half_life_fraction": 0.1,
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space": {"optimizer.lr": {"choices": [0.01, 1e-9]}},
        "search": {
            "num_trials": 2,
            "sampler": "random",
            "scheduler": {"name": "asha", "reduction_factor": 2},
            "resources": {"workers": 2},
            "storage": str(storage),
            "seed": 1,
        },
        "tracking": {"uri": "http://127.0.0.1:9"},
    }
    return search_spec(**changes)


def processes(title: str) -> list[int]:
    """This process's Ray workers with a title: ``_FollowerActor`` for a follower, ``ImplicitFunc`` for a trial."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found += [int(path.name)] if (path / "cmdline").read_text().startswith(f"{WORKER_TITLE}{title}") else []
        except OSError:  # gone meanwhile
            continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in found if is_ours(pid)]


def is_empty(title: str, seconds: float = 600.0) -> bool:
    """Whether all processes with the title end in time."""
    deadline = time.monotonic() + seconds
    while processes(title) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes(title) == []


class Killer(threading.Thread):
    """Kills the processes with a title after the first report of trial 1 that has a checkpoint."""

    def __init__(self, folder: Path, title: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.title, self.killed = folder, title, list[int]()

    def run(self) -> None:
        while not self.killed:
            time.sleep(0.005)
            events = list(journal.read(self.folder)) if (self.folder / FILE_NAME).exists() else []
            if any(e["event"] == "report" and e["trial"] == 1 and e["step"] > 0 for e, _ in events):
                self.killed = processes(self.title)
                for pid in self.killed:
                    os.kill(pid, signal.SIGKILL)


def test_tune_reserves_a_bundle_per_worker() -> None:
    assert placement(Resources()).bundles == [{"CPU": 1.0}]
    wanted = placement(Resources(cpus=2, gpus=1, workers=3))
    assert (wanted.bundles, wanted.strategy) == ([{"CPU": 2.0, "GPU": 1.0}] * 3, "PACK")


def test_one_worker_has_no_followers(tmp_path: Path) -> None:
    with followers(search(tmp_path).finetune, Resources()) as group:
        assert group is ALONE


@pytest.mark.faults
@pytest.mark.usefixtures("ray_session")
def test_trials_with_two_workers_have_the_numbers_of_one_and_leave_no_process(tmp_path: Path) -> None:
    record = run_search(search(tmp_path))
    assert [trial.status for trial in record.trials.values()] == ["finished", "finished", "pruned"]
    check_numbers(record, tmp_path)
    assert is_empty("_FollowerActor")


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["_FollowerActor", "ImplicitFunc"])
@pytest.mark.usefixtures("ray_session")
def test_a_trial_survives_the_loss_of_either_worker(victim: str, tmp_path: Path) -> None:
    killer = Killer(tmp_path / "shared", victim)
    killer.start()
    record = run_search(search(tmp_path))
    assert len(killer.killed) == 1
    starts = [e["step"] for e, _ in journal.read(tmp_path / "shared") if e["event"] == "start" and e["trial"] == 1]
    assert starts == [0, 4]
    check_numbers(record, tmp_path)
    assert is_empty("_FollowerActor")


def check_numbers(record: SearchRecord, folder: Path) -> None:
    alone = list(finetune(search(folder).trial_spec(record.trials[1].params), folder / "alone"))
    for report, expected in zip(record.trials[1].reports, alone, strict=True):
        assert (report["step"], report["metrics"]) == (expected.step, pytest.approx(expected.metrics, rel=1e-5))
