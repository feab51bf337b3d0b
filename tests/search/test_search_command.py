"""``ftae search`` as a user runs it: a command that starts its own Ray."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import small_search
from faults.running import Drivers, wait_until

from ftae.results.replay import fold, replay
from ftae.specs.files import dump

# Prints while the module is imported, built and run, like many networks.
NETWORK = """
import torch
from torch import nn

print("importing a network")


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        print("making a network")
        self.encoder = nn.Conv2d(1, channels, 3, 2, 1)
        self.decoder = nn.ConvTranspose2d(channels, 1, 4, 2, 1)

    def encode(self, images):
        print("encoding")
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)
"""


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    drivers = Drivers(tmp_path)
    yield drivers
    drivers.clean_up()


def write(folder: Path, **finetune: Any) -> None:
    search = small_search(**{f"finetune.{name}": value for name, value in finetune.items()})
    (folder / "search.yaml").write_text(dump(search))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_a_search_with_one_worker_per_trial_and_with_two(workers: int, drivers: Drivers) -> None:
    write(drivers.folder)
    sets = [f"search.resources.workers={workers}", "search.resources.cpus=0.5", "search.num_trials=1"]
    arguments = [part for text in sets for part in ("--set", text)]
    status, output, errors = drivers.start("search", "search.yaml", *arguments).result(600)
    assert status == 0, errors
    assert output.startswith("small: best is trial ")
    assert "Traceback" not in errors
    record = replay(drivers.folder / "searches" / "small")
    assert {trial.status for trial in record.trials.values()} == {"finished"}
    assert len(record.trials) == 2, "the baseline and the file's own"
    wait_until(lambda: drivers.left_over() == [])


@pytest.mark.faults
def test_output_of_a_network_is_not_among_the_results(drivers: Drivers) -> None:
    (drivers.folder / "nets.py").write_text(NETWORK)
    write(
        drivers.folder,
        model={"family": "nets:Net", "image_range": "0..1"},
        losses={"mse": 1.0},
        metrics=["psnr"],
    )
    status, output, errors = drivers.start("search", "search.yaml", "--allow-code").result(600)
    assert status == 0, errors
    [line] = output.splitlines()
    assert line.startswith("small: best is trial ")
    assert "making a network" not in errors, "it would hide the progress"


@pytest.mark.faults
def test_a_lost_terminal_ends_a_search_in_order(drivers: Drivers) -> None:
    write(drivers.folder, max_steps=100_000, num_evals=1000)
    driver, folder = drivers.start("search", "search.yaml"), drivers.folder / "searches" / "small"

    def trains() -> bool:
        assert driver.poll() is None, driver.messages
        return (folder / "journal.jsonl").exists() and len(fold(folder).trials) > 1

    wait_until(trains)
    os.killpg(driver.pid, signal.SIGHUP)  # the driver and all processes that it has started
    status, _, errors = driver.result()
    assert (status, "Traceback" in errors) == (130, False)
    close = replay(folder).close
    assert close is not None
    assert (close.status, close.reason) == ("interrupted", "stopped by the user")
    wait_until(lambda: drivers.left_over() == [])
