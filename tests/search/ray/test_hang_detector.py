"""Workers that hang. Time is simulated, except for the worker that really hangs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest
import ray

from ftae.search.ray import hang_detector as module
from ftae.search.ray.hang_detector import MIN_SILENCE_SECONDS, START_SECONDS, TOLERANCE, HangDetector
from ftae.search.ray.messages import Note, Report, Start
from ftae.search.ray.nodes import this_node

REPORT = Report(4, {}, {}, None, "images/a.png")


class Driver:
    """A driver that looks for hung workers every second, from ``now`` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, report_seconds: float = 0.0) -> None:
        self.now, self.killed, self.notes = 0.0, list[int](), list[str]()
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "kill_worker", lambda node, pid: self.killed.append(pid))
        self.detector = HangDetector(lambda number, text: self.notes.append(f"{number}: {text}"), report_seconds)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.detector.kill_hung()

    def start(self, number: int) -> None:
        self.detector.heartbeat(number, Start(f"node-{number}", 100 + number, 0))

    def report(self, number: int) -> None:
        self.detector.heartbeat(number, REPORT)

    def block(self, seconds: float) -> None:
        """Something blocks the driver, which neither reads messages nor looks for hung workers."""
        self.now += seconds
        self.detector.kill_hung()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def test_a_worker_is_killed_once_when_it_has_been_silent_for_too_long(driver: Driver) -> None:
    for number in (1, 2):
        driver.start(number)
        driver.report(number)
    for _ in range(13):
        driver.wait(10.0)
        driver.report(2)
    assert driver.killed == [101]
    assert driver.notes == ["1: no report for 120 s: its worker (process 101) was killed"]
    driver.wait(MIN_SILENCE_SECONDS - 1.0)
    assert driver.killed == [101]
    driver.wait(2.0)
    assert driver.killed == [101, 102]


def test_the_first_report_may_take_longer(driver: Driver) -> None:
    driver.start(1)
    driver.wait(START_SECONDS)
    assert driver.killed == []
    driver.detector.heartbeat(1, Note("a fault"))
    driver.wait(START_SECONDS)
    assert driver.killed == []
    driver.wait(1.0)
    assert driver.killed == [101]


@pytest.mark.parametrize("known_by", ["preflight", "another trial"])
def test_slow_trials_may_take_longer(known_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, 50.0 if known_by == "preflight" else 0.0)
    if known_by == "another trial":
        driver.start(2)
        driver.report(2)
        driver.wait(50.0)
        driver.report(2)
        driver.detector.forget(2)
    driver.start(1)
    driver.report(1)
    driver.wait(TOLERANCE * 50.0)
    assert driver.killed == []
    driver.wait(1.0)
    assert driver.killed == [101]


def test_time_in_which_the_driver_is_blocked_does_not_count(driver: Driver) -> None:
    driver.start(1)
    driver.report(1)
    for _ in range(20):
        driver.block(100.0)
        driver.wait(4.0)
    assert driver.killed == []
    driver.wait(MIN_SILENCE_SECONDS)
    assert driver.killed == [101]


@pytest.mark.parametrize("then", ["it ended", "it never started", "it started elsewhere"])
def test_only_workers_of_running_trials_are_killed(then: str, driver: Driver) -> None:
    if then != "it never started":
        driver.start(1)
    driver.report(1)
    if then == "it ended":
        driver.detector.forget(1)
    if then == "it started elsewhere":
        driver.wait(100.0)
        driver.detector.forget(1)
        driver.start(1)
        driver.wait(START_SECONDS - 1.0)
    driver.wait(0.0 if then == "it started elsewhere" else 10 * START_SECONDS)
    assert driver.killed == []


# ------------------------------------------------------------------------------------------ a real worker


@ray.remote(num_cpus=1, max_restarts=0)
class Worker:
    def start(self) -> Start:
        return Start(this_node(), os.getpid(), 0)

    def hang(self) -> None:
        time.sleep(600.0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("how", ["asleep", "suspended"])
def test_a_hung_worker_is_killed_even_if_all_cpus_are_in_use(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_SILENCE_SECONDS", 0.5)
    notes: list[str] = []
    detector = HangDetector(lambda number, text: notes.append(text), report_seconds=0.0)
    hung, other = Worker.remote(), Worker.remote()
    starts = ray.get([hung.start.remote(), other.start.remote()])
    for number, start in enumerate(starts):
        detector.heartbeat(number, start)
        detector.heartbeat(number, REPORT)
    pid = starts[0].pid
    hanging = hung.hang.remote()
    if how == "suspended":
        os.kill(pid, signal.SIGSTOP)

    def is_killed() -> bool:
        detector.heartbeat(1, REPORT)
        detector.kill_hung()
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    wait_until(is_killed)
    assert notes == [f"no report for 0 s: its worker (process {pid}) was killed"]
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(hanging, timeout=30.0)
    assert ray.get(other.start.remote()) == starts[1]
    ray.kill(other)


@pytest.mark.usefixtures("ray_session")
def test_a_process_that_is_not_rays_is_not_killed() -> None:
    node = this_node()
    with subprocess.Popen(["sleep", "60"]) as other:
        module.kill_worker("0" * len(node), other.pid)  # a node that is gone
        module.kill_worker(node, 2**22 + 1)  # a process that is gone
        module.kill_worker(node, other.pid)
        time.sleep(1.0)
        assert other.poll() is None
        other.kill()
