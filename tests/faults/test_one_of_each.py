"""One search that meets every fault once."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.outcome import NOTHING, compare_with_mlflow, numbers, twice_in_journal
from faults.running import Driver, Drivers, Search, wait_until
from faults.surroundings import Disk, MlflowServer, Nodes, spoil_images, write_images

from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.search.tracking_sync import unsent
from ftae.storage import journal
from ftae.storage.backends import FolderStore

pytestmark = pytest.mark.faults

Result = tuple[int, str, str]


@dataclass
class Ordeal:
    """The search, and the output of its drivers."""

    search: Search
    simultaneous: Result  # of the slower of two drivers started together
    damaged: Path | None
    first: Driver
    stopped: Result
    late: Result  # of a driver started while the last one runs
    last: Result


@pytest.fixture(scope="module")
def ordeal(drivers: Drivers, server: MlflowServer, disk: Disk | None) -> Ordeal:
    chance = random.Random(0)
    storage = drivers.folder / "searches" if disk is None else disk.folder
    search = Search(drivers, storage / "faults", f"tracking.uri={server.uri}")
    first, simultaneous = search.start_two()
    search.wait_inside(1, first)
    spoil_images(drivers.folder / "images", chance)
    search.wait_between_trials(first)
    search.lose_worker(first)  # the new process has to load the images
    search.wait_inside(2, first)
    damaged = search.spoil_checkpoint(chance)
    search.lose_worker(first)
    search.wait_inside(3, first)
    if disk is not None:
        disk.refuse(10.0)
    search.wait_for_report(first)  # the trial has replaced the damaged checkpoint
    restore_images(drivers.folder / "images")
    search.wait_inside(4, first)
    first.lose()
    search.cut_last_line(chance)
    second = search.start()
    server.start()
    search.wait_for_report(second)
    search.stop_while_saving(second)
    stopped = second.result()
    third = search.start()
    search.wait_for(lambda record: record.close is None, third)
    late = search.start().result()
    return Ordeal(search, simultaneous, damaged, first, stopped, late, third.result(300))


def restore_images(folder: Path) -> None:
    shutil.rmtree(folder)
    write_images(folder)


# ---------------------------------------------------------------------------------------- the search


def test_the_results_are_those_of_an_undisturbed_search(
    ordeal: Ordeal, reference: Callable[[int], SearchRecord]
) -> None:
    status, output, errors = ordeal.last
    assert (status, "Traceback" in errors) == (0, False)
    record = replay(ordeal.search.folder)
    assert numbers(record) == numbers(reference(8))
    assert twice_in_journal(ordeal.search.folder) == []
    assert output.startswith(f"faults: best is trial {reference(8).ranked()[0].number}. val/psnr ")


def test_mlflow_has_everything_once(ordeal: Ordeal, server: MlflowServer) -> None:
    assert unsent(FolderStore(ordeal.search.folder)) == 0
    assert compare_with_mlflow(ordeal.search.folder, server.database) == NOTHING
    assert "the search continues and sends the rest later" in ordeal.first.messages


def test_no_process_is_left(ordeal: Ordeal, drivers: Drivers, server: MlflowServer) -> None:
    server.stop()
    wait_until(lambda: drivers.left_over() == [])


# ------------------------------------------------------------------------------------------ the faults


def test_lost_workers_are_noted(ordeal: Ordeal) -> None:
    trials = replay(ordeal.search.folder).trials.values()
    assert len([note for trial in trials for note in trial.notes if "its worker was lost" in note]) == 2
    assert len({start["pid"] for trial in trials for start in trial.starts}) >= 3


def test_a_damaged_checkpoint_is_noted_and_the_one_before_it_used(ordeal: Ordeal) -> None:
    assert ordeal.damaged is not None
    trial = int(ordeal.damaged.parts[-3])
    events = [event for event, _ in journal.read(ordeal.search.folder) if event.get("trial") == trial]
    [noted] = [number for number, event in enumerate(events) if "damaged" in event.get("text", "")]
    assert events[noted]["text"].startswith(f"the checkpoint {ordeal.damaged} is damaged (")
    assert events[noted]["text"].endswith("; going back to the one before it")
    assert events[noted + 1]["event"] == "start"
    assert 0 < events[noted + 1]["step"] < int(ordeal.damaged.name[5:])


def test_a_full_disk_is_noted_and_retried(ordeal: Ordeal, disk: Disk | None) -> None:
    if disk is None:
        pytest.skip("no disk can be mounted here")
    assert "the storage fails: [Errno 28] No space left on device" in ordeal.first.messages
    assert "the storage works again" in ordeal.first.messages


def test_one_of_two_simultaneous_drivers_is_refused(ordeal: Ordeal) -> None:
    status, output, errors = ordeal.simultaneous
    assert (status, output) == (1, "")
    running, begun = "is being run by another ftae process", "holds a search already"  # if the other one was faster
    assert refusal(errors).startswith(
        (f"error: {ordeal.search.folder} {running}", f"error: {ordeal.search.folder} {begun}")
    )


def test_a_second_driver_is_refused(ordeal: Ordeal) -> None:
    status, output, errors = ordeal.late
    assert (status, output) == (1, "")
    assert refusal(errors) == f"error: {ordeal.search.folder} is being run by another ftae process"


def refusal(errors: str) -> str:
    """The only error among the messages, without its advice. Ray writes warnings of its own on a busy machine."""
    found = [line.partition(";")[0] for line in errors.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, errors
    return found[0]


def test_a_stopped_driver_ends_in_order(ordeal: Ordeal) -> None:
    status, _, errors = ordeal.stopped
    assert (status, "Traceback" in errors) == (130, False)
    assert "faults is not complete (stopped by the user); to continue: ftae search search.yaml" in errors
    assert not list(ordeal.search.folder.glob("trials/*/checkpoints/.*"))


# ------------------------------------------------------------------------------------------ on a cluster


def test_a_trial_continues_elsewhere_when_its_node_is_gone(
    drivers: Drivers, nodes: Nodes, reference: Callable[[int], SearchRecord]
) -> None:
    search = Search(drivers, drivers.folder / "searches" / "nodes", **nodes.environment)
    driver = search.start()
    search.wait_inside(1, driver)
    lost = search.last_start
    nodes.kill(lost["node"])
    search.seconds_until("start", time.time(), driver, other_than=lost["pid"])
    assert search.last_start["node"] != lost["node"]
    status, _, errors = driver.result(600)
    assert (status, "Traceback" in errors) == (0, False)
    assert numbers(replay(search.folder)) == numbers(reference(8))
