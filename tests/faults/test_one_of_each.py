"""One search, to which happens once everything that may."""

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
from ftae.storage.stores import FolderStore

pytestmark = pytest.mark.faults

Result = tuple[int, str, str]


@dataclass
class Ordeal:
    """What was said on the way."""

    search: Search
    at_once: Result  # of the slower of two drivers started together
    damaged: Path | None
    first: Driver
    stopped: Result
    late: Result  # of a driver started beside the last one
    last: Result


@pytest.fixture(scope="module")
def ordeal(drivers: Drivers, server: MlflowServer, disk: Disk | None) -> Ordeal:
    chance = random.Random(0)
    storage = drivers.folder / "searches" if disk is None else disk.folder
    search = Search(drivers, storage / "faults", f"tracking.uri={server.uri}")
    first, at_once = search.start_two()
    search.wait_inside(1, first)
    spoil_images(drivers.folder / "images", chance)
    search.wait_between_trials(first)
    search.lose_worker(first)  # a new process, which has to load the images
    search.wait_inside(2, first)
    damaged = search.spoil_checkpoint(chance)
    search.lose_worker(first)
    search.wait_inside(3, first)
    if disk is not None:
        disk.refuse(10.0)
    search.wait_for_report(first)  # the damaged checkpoint was written anew
    restore_images(drivers.folder / "images")
    search.wait_inside(4, first)
    first.lose()
    search.cut_last_line(chance)
    second = search.start()
    server.come()
    search.wait_for_report(second)
    search.stop_while_saving(second)
    stopped = second.result()
    third = search.start()
    search.wait_for(lambda record: record.close is None, third)
    late = search.start().result()
    return Ordeal(search, at_once, damaged, first, stopped, late, third.result(300))


def restore_images(folder: Path) -> None:
    shutil.rmtree(folder)
    write_images(folder)


# ---------------------------------------------------------------------------------------- the search


def test_in_the_end_it_is_the_search_to_which_nothing_happened(
    ordeal: Ordeal, reference: Callable[[int], SearchRecord]
) -> None:
    status, output, errors = ordeal.last
    assert (status, "Traceback" in errors) == (0, False)
    record = replay(ordeal.search.folder)
    assert numbers(record) == numbers(reference(8))
    assert twice_in_journal(ordeal.search.folder) == []
    assert output.startswith(f"faults: best is trial {reference(8).ranked()[0].number}. val/psnr ")


def test_mlflow_has_all_of_it_once(ordeal: Ordeal, server: MlflowServer) -> None:
    assert unsent(FolderStore(ordeal.search.folder)) == 0
    assert compare_with_mlflow(ordeal.search.folder, server.database) == NOTHING
    assert "the search continues and sends the rest later" in ordeal.first.said


def test_no_process_is_left(ordeal: Ordeal, drivers: Drivers, server: MlflowServer) -> None:
    server.go()
    wait_until(lambda: drivers.left_over() == [])


# ---------------------------------------------------------------------------------- what happened to it


def test_lost_workers_are_told(ordeal: Ordeal) -> None:
    trials = replay(ordeal.search.folder).trials.values()
    assert len([note for trial in trials for note in trial.notes if "its worker was lost" in note]) == 2
    assert len({start["pid"] for trial in trials for start in trial.starts}) >= 3


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(ordeal: Ordeal) -> None:
    assert ordeal.damaged is not None
    trial = int(ordeal.damaged.parts[-3])
    events = [event for event, _ in journal.read(ordeal.search.folder) if event.get("trial") == trial]
    [told] = [number for number, event in enumerate(events) if "damaged" in event.get("text", "")]
    assert events[told]["text"].startswith(f"the checkpoint {ordeal.damaged} is damaged (")
    assert events[told]["text"].endswith("; going back to the one before it")
    assert events[told + 1]["event"] == "start"
    assert 0 < events[told + 1]["step"] < int(ordeal.damaged.name[5:])


def test_a_full_disk_is_told_and_waited_for(ordeal: Ordeal, disk: Disk | None) -> None:
    if disk is None:
        pytest.skip("no disk can be mounted here")
    assert "the storage fails: [Errno 28] No space left on device" in ordeal.first.said
    assert "the storage works again" in ordeal.first.said


def test_two_drivers_at_the_same_instant(ordeal: Ordeal) -> None:
    status, output, errors = ordeal.at_once
    assert (status, output) == (1, "")
    [refusal] = refusals(errors)
    running, begun = "is being run by another ftae process", "holds a search already"  # where the other was faster
    assert refusal.startswith((f"error: {ordeal.search.folder} {running}", f"error: {ordeal.search.folder} {begun}"))


def test_a_second_driver_is_refused(ordeal: Ordeal) -> None:
    status, output, errors = ordeal.late
    assert (status, output) == (1, "")
    assert refusals(errors) == [f"error: {ordeal.search.folder} is being run by another ftae process"]


def refusals(errors: str) -> list[str]:
    """What was said but for the greeting, up to the advice."""
    return [line.partition(";")[0] for line in errors.splitlines()[1:]]


def test_a_stopped_driver_leaves_in_order(ordeal: Ordeal) -> None:
    status, _, errors = ordeal.stopped
    assert (status, "Traceback" in errors) == (130, False)
    assert "faults is not complete (stopped by the user); to continue: ftae search search.yaml" in errors
    assert not list(ordeal.search.folder.glob("trials/*/checkpoints/.*"))


# ------------------------------------------------------------------------------------------ on a cluster


def test_a_trial_goes_on_elsewhere_when_its_node_is_gone(
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
