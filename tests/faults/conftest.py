"""A user's folder with a search and images, the same search undisturbed, and the table of faults."""

import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.outcome import Tally, undisturbed
from faults.running import Drivers
from faults.surroundings import Disk, MlflowServer, Nodes, write_images

from ftae.results.search_record import SearchRecord

SEARCH: dict[str, Any] = {
    "name": "faults",
    "finetune": {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "image_folder", "train": "images", "val": 0.2, "color": "grey", "resolution": 16},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-3},
        "ema_half_life_fraction": 0.1,
        "batch_size": 256,
        "max_steps": 24,
        "num_evals": 12,
        "metrics": ["psnr", "ssim"],
    },
    "search_space": {
        "optimizer.lr": {"low": 1e-4, "high": 10.0, "log": True},
        "losses.kl": {"low": 1e-5, "high": 1e-2, "log": True},
        "max_grad_norm": {"choices": [1.0, None]},
    },
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search": {
        "num_trials": 8,
        "scheduler": {"name": "asha", "reduction_factor": 2},
        "max_concurrent": 1,
        "max_failures": 20,
        "keep_checkpoints": 1,
        "seed": 2,
    },
}
tallies: list[Tally] = []


def write_search(folder: Path) -> None:
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    write_images(folder / "images")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path_factory.mktemp("user"))
    write_search(drivers.folder)
    yield drivers
    drivers.clean_up()


@pytest.fixture(scope="module")
def server(drivers: Drivers) -> Iterator[MlflowServer]:
    """A server that is not started yet."""
    server = MlflowServer(drivers.folder, drivers.environment())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def disk(drivers: Drivers) -> Iterator[Disk | None]:
    """A small disk; None where none can be mounted."""
    try:
        disk = Disk(drivers.folder / "disk")
    except subprocess.CalledProcessError:
        yield None
        return
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def nodes(drivers: Drivers) -> Iterator[Nodes]:
    nodes = Nodes(drivers)
    yield nodes
    nodes.end()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], SearchRecord]:
    """The same search without faults, by its number of trials."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_search(folder)

    @cache
    def run(num_trials: int) -> SearchRecord:
        sets = f"search.num_trials={num_trials}", f"finetune.data.train={folder / 'images'}"
        return undisturbed(folder / "search.yaml", folder / str(num_trials), *sets)

    return run


@pytest.fixture
def tally() -> Callable[[str], Tally]:
    """Adds a row to the table at the end of the test run."""

    def line(fault: str) -> Tally:
        tallies.append(Tally(fault))
        return tallies[-1]

    return line


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(tally.seconds for tally in tallies):
        terminalreporter.section("faults")
        head = "times  trials lost  metrics lost  metrics doubled   median    worst"
        terminalreporter.line(f"{'fault':56s} {head} seconds to recover")
        for tally in filter(lambda tally: tally.seconds, tallies):
            terminalreporter.line(str(tally))
