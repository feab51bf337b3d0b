"""Searches to which one thing happens again and again, at any moment."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.outcome import Tally
from faults.running import Driver, Drivers, Search, wait_until
from faults.surroundings import Disk, MlflowServer, Nodes, spoil_images

from ftae.journal import SearchRecord
from ftae.tracking import store_uri

pytestmark = pytest.mark.slow

TIMES = 20
NUM_TRIALS = 40
Reference = Callable[[int], SearchRecord]
Line = Callable[[str], Tally]


@pytest.fixture(scope="module")
def nodes(drivers: Drivers) -> Iterator[Nodes]:
    nodes = Nodes(drivers)
    yield nodes
    nodes.end()


def a_search(drivers: Drivers, name: str, *sets: str, **environment: str) -> Search:
    folder = drivers.folder / "searches" / name
    return Search(drivers, folder, f"search.num_trials={NUM_TRIALS}", *sets, **environment)


def finish(search: Search, driver: Driver, reference: Reference, *lines: Tally, uri: str | None = None) -> None:
    """Let the search end, and hold it against the one to which nothing happened."""
    status, _, errors = driver.result(600)
    assert (status, "Traceback" in errors) == (0, False), errors
    for line in lines:
        line.close(search.folder, reference(NUM_TRIALS), uri or store_uri(None, search.folder.parent))
    wait_until(lambda: not ours(search.drivers), seconds=30.0)


def test_workers(drivers: Drivers, reference: Reference, tally: Line) -> None:
    chance, search, line = random.Random(1), a_search(drivers, "workers"), tally("kill -9 of a trial's worker")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 2.0))
        line.seconds.append(search.lose_worker(driver))
    finish(search, driver, reference, line)


def test_checkpoints_and_images(drivers: Drivers, reference: Reference, tally: Line) -> None:
    chance, search = random.Random(2), a_search(drivers, "checkpoints")
    checkpoints, images = tally("truncated checkpoint"), tally("corrupt image new, another overwritten; new worker")
    damaged: list[Path] = []
    driver = search.start()
    while len(damaged) < TIMES:
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 1.0))
        spoil_images(drivers.folder / "images", chance)
        checkpoint = search.spoil_checkpoint(chance)
        images.seconds.append(search.lose_worker(driver))
        if checkpoint is not None:
            damaged.append(checkpoint)
            checkpoints.seconds.append(images.seconds[-1])
    finish(search, driver, reference, checkpoints, images)
    for checkpoint in damaged:
        trial = search.look().trials[int(checkpoint.parts[-3])]
        was_over = trial.step <= int(checkpoint.name[5:])
        assert was_over or any(f"the checkpoint {checkpoint} is damaged" in note for note in trial.notes)
