"""Searches that meet one fault again and again, at any moment."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.outcome import Tally
from faults.running import Driver, Drivers, Search, wait_until
from faults.surroundings import Disk, MlflowServer, Nodes, spoil_images

from ftae.results.search_record import SearchRecord
from ftae.search.tracking_sync import unsent
from ftae.storage.backends import FolderStore
from ftae.tracking import store_uri

pytestmark = pytest.mark.slow

TIMES = 20
NUM_TRIALS = 40
Reference = Callable[[int], SearchRecord]
Line = Callable[[str], Tally]


def a_search(drivers: Drivers, name: str, *sets: str, **environment: str) -> Search:
    sets = (f"search.num_trials={NUM_TRIALS}", *sets)
    return Search(drivers, drivers.folder / "searches" / name, *sets, **environment)


def finish(search: Search, driver: Driver, reference: Reference, *lines: Tally, uri: str | None = None) -> None:
    """Let the search end, and compare it with the undisturbed one."""
    status, output, errors = driver.result(600)
    assert (status, "Traceback" in errors) == (0, False), errors
    assert output.startswith(f"{search.folder.name}: best is trial {reference(NUM_TRIALS).ranked()[0].number}. ")
    for line in lines:
        line.close(search.folder, reference(NUM_TRIALS), uri or store_uri(None, search.folder.parent))


def test_workers(drivers: Drivers, reference: Reference, tally: Line) -> None:
    chance, search, line = random.Random(1), a_search(drivers, "workers"), tally("kill -9 of a trial's worker")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 2.0))
        line.seconds.append(search.lose_worker(driver))
    finish(search, driver, reference, line)
    wait_until(lambda: drivers.left_over() == [], seconds=30.0)


def test_checkpoints_and_images(drivers: Drivers, reference: Reference, tally: Line) -> None:
    chance, search = random.Random(2), a_search(drivers, "checkpoints")
    checkpoints, images = tally("truncated checkpoint"), tally("corrupt image, and one overwritten; new worker")
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


def test_drivers(drivers: Drivers, reference: Reference, nodes: Nodes, tally: Line) -> None:
    """One of two drivers that start together runs until it is killed, now and then during its start."""
    chance, search = random.Random(3), a_search(drivers, "drivers", **nodes.environment)
    kills, pairs = tally("kill -9 of the driver"), tally("two drivers at the same time")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 1.5))
        killed = driver.lose()
        if chance.random() < 0.3:
            driver = search.start()
            time.sleep(chance.uniform(0.0, 8.0))
            killed = driver.lose()
        driver, (status, _, errors) = search.start_two()
        assert (status, errors.count("is being run by another ftae process")) == (1, 1)
        kills.seconds.append(search.seconds_until("start", killed, driver))
        pairs.seconds.append(kills.seconds[-1])
    finish(search, driver, reference, kills, pairs)


def test_half_written_lines(
    drivers: Drivers, reference: Reference, nodes: Nodes, server: MlflowServer, tally: Line
) -> None:
    """MLflow cannot be reached until the end, so that it gets nothing that the journal has lost."""
    chance = random.Random(4)
    search = a_search(drivers, "lines", f"tracking.uri={server.uri}", **nodes.environment)
    line = tally("kill -9 of the driver, its last line cut")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 1.5))
        killed = driver.lose()
        search.cut_last_line(chance)
        driver = search.start()
        line.seconds.append(search.seconds_until("start", killed, driver))
    assert driver.wait(600) == 0
    server.start()
    assert drivers.start("sync", "lines").result()[0] == 0
    finish(search, driver, reference, line, uri=server.database)


def test_stops(drivers: Drivers, reference: Reference, nodes: Nodes, tally: Line) -> None:
    chance, search = random.Random(5), a_search(drivers, "stops", **nodes.environment)
    line = tally("stopped while a checkpoint is written")
    driver = search.start()
    while len(line.seconds) < TIMES:
        search.wait_for_report(driver)
        stopped, hit = search.stop_while_saving(driver, chance.choice([signal.SIGINT, signal.SIGTERM]))
        status, _, errors = driver.result()
        assert (status, "Traceback" in errors) == (130, False), errors
        driver = search.start()
        seconds = search.seconds_until("start", stopped, driver)
        line.seconds += [seconds] if hit else []
    finish(search, driver, reference, line)


def test_nodes(drivers: Drivers, reference: Reference, nodes: Nodes, tally: Line) -> None:
    chance, search = random.Random(6), a_search(drivers, "nodes", **nodes.environment)
    line = tally("kill -9 of a node of 3, or of its raylet")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 2.0))
        lost = search.last_start
        killed = nodes.kill(lost["node"], chance.choice(["all", "raylet"]))
        line.seconds.append(search.seconds_until("start", killed, driver, other_than=lost["pid"]))
        nodes.add()
    finish(search, driver, reference, line)


def test_disk_and_mlflow(
    drivers: Drivers, reference: Reference, disk: Disk | None, server: MlflowServer, tally: Line
) -> None:
    """Both fail at the same time, and MLflow from the start on."""
    if disk is None:
        pytest.skip("no disk can be mounted here")
    chance = random.Random(7)
    sets = f"search.num_trials={NUM_TRIALS}", f"tracking.uri={server.uri}"
    search, store = Search(drivers, disk.folder / "both", *sets), FolderStore(disk.folder / "both")
    full, away = tally("storage full for 10 s"), tally("MLflow away for 60 s")
    driver = search.start()
    for _ in range(TIMES):
        search.wait_for_report(driver)
        time.sleep(chance.uniform(0.0, 1.0))
        server.stop(chance.choice([signal.SIGKILL, signal.SIGSTOP]))
        gone = time.monotonic()
        search.wait_for_report(driver)
        disk.refuse(10.0, chance.choice(["bytes", "files"]))
        full.seconds.append(search.seconds_until("report", time.time(), driver))
        with search.paused():  # or the search would end too soon
            time.sleep(max(0.0, 60.0 - (time.monotonic() - gone)))
            server.start()
            back = time.monotonic()
            wait_until(lambda: unsent(store) == 0)
            away.seconds.append(time.monotonic() - back)
    finish(search, driver, reference, full, away, uri=server.database)
