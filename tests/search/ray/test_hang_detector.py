"""Workers that say nothing any more. Time is made up, but for the one that really hangs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import ray

from ftae.search.ray import hang_detector as module
from ftae.search.ray.hang_detector import LEAST_PATIENCE_SECONDS, PATIENCE_FACTOR, START_PATIENCE_SECONDS, HangDetector


class Listener:
    """A driver that looks every second, from ``now`` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, expected_seconds: float = 0.0) -> None:
        self.now, self.killed, self.notes = 0.0, list[int](), list[str]()
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "_kill_on", lambda node, pid: self.killed.append(pid))
        self.watch = HangDetector(lambda number, text: self.notes.append(f"{number}: {text}"))
        self.watch.expect(expected_seconds)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.watch.kill_hung()

    def hear(self, number: int, what: str = "report") -> None:
        said: dict[str, Any] = {"node": f"node-{number}", "pid": 100 + number, "step": 0} if what == "start" else {}
        self.watch.heartbeat(number, {what: said})

    def deaf(self, seconds: float) -> None:
        """Something held the driver up: it hears nothing and looks at nothing."""
        self.now += seconds
        self.watch.kill_hung()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(monkeypatch)


def test_a_worker_is_killed_once_when_it_has_been_silent_for_too_long(listener: Listener) -> None:
    for number in (1, 2):
        listener.hear(number, "start")
        listener.hear(number)
    for _ in range(13):
        listener.wait(10.0)
        listener.hear(2)
    assert listener.killed == [101]
    assert listener.notes == ["1: no report for 120 s: its worker (process 101) was killed"]
    listener.wait(LEAST_PATIENCE_SECONDS - 1.0)
    assert listener.killed == [101]
    listener.wait(2.0)
    assert listener.killed == [101, 102]


def test_the_first_report_may_take_longer(listener: Listener) -> None:
    listener.hear(1, "start")
    listener.wait(START_PATIENCE_SECONDS)
    assert listener.killed == []
    listener.hear(1, "note")
    listener.wait(START_PATIENCE_SECONDS)
    assert listener.killed == []
    listener.wait(1.0)
    assert listener.killed == [101]


@pytest.mark.parametrize("known_by", ["preflight", "another trial"])
def test_slow_trials_are_waited_for(known_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(monkeypatch, 50.0 if known_by == "preflight" else 0.0)
    if known_by == "another trial":
        listener.hear(2, "start")
        listener.hear(2)
        listener.wait(50.0)
        listener.hear(2)
        listener.watch.forget(2)
    listener.hear(1, "start")
    listener.hear(1)
    listener.wait(PATIENCE_FACTOR * 50.0)
    assert listener.killed == []
    listener.wait(1.0)
    assert listener.killed == [101]


def test_a_driver_that_did_not_listen_blames_nobody(listener: Listener) -> None:
    listener.hear(1, "start")
    listener.hear(1)
    for _ in range(20):
        listener.deaf(100.0)
        listener.wait(4.0)
    assert listener.killed == []
    listener.wait(LEAST_PATIENCE_SECONDS)
    assert listener.killed == [101]


@pytest.mark.parametrize("then", ["it ended", "it never started", "it started elsewhere"])
def test_who_is_not_awaited_is_not_killed(then: str, listener: Listener) -> None:
    if then != "it never started":
        listener.hear(1, "start")
    listener.hear(1)
    if then == "it ended":
        listener.watch.forget(1)
    if then == "it started elsewhere":
        listener.wait(100.0)
        listener.watch.forget(1)
        listener.hear(1, "start")
        listener.wait(START_PATIENCE_SECONDS - 1.0)
    listener.wait(0.0 if then == "it started elsewhere" else 10 * START_PATIENCE_SECONDS)
    assert listener.killed == []


# ------------------------------------------------------------------------------------------ a real worker


@ray.remote(num_cpus=1, max_restarts=0)
class Worker:
    def whereabouts(self) -> dict[str, Any]:
        return {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "step": 0}

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
def test_a_worker_that_hangs_is_killed_though_all_cpus_are_taken(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PATIENCE_SECONDS", 0.5)
    notes: list[str] = []
    watch = HangDetector(lambda number, text: notes.append(text))
    hung, other = Worker.remote(), Worker.remote()
    starts = ray.get([hung.whereabouts.remote(), other.whereabouts.remote()])
    for number, start in enumerate(starts):
        watch.heartbeat(number, {"start": start})
        watch.heartbeat(number, {"report": {}})
    pid = starts[0]["pid"]
    hanging = hung.hang.remote()
    if how == "suspended":
        os.kill(pid, signal.SIGSTOP)

    def look() -> bool:
        watch.heartbeat(1, {"report": {}})
        watch.kill_hung()
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    wait_until(look)
    assert notes == [f"no report for 0 s: its worker (process {pid}) was killed"]
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(hanging, timeout=30.0)
    assert ray.get(other.whereabouts.remote()) == starts[1]
    ray.kill(other)


@pytest.mark.usefixtures("ray_session")
def test_a_process_that_is_not_rays_is_spared() -> None:
    node = ray.get_runtime_context().get_node_id()
    with subprocess.Popen(["sleep", "60"]) as other:
        module._kill_on("0" * len(node), other.pid)  # a node that is gone
        module._kill_on(node, 2**22 + 1)  # a process that is gone
        module._kill_on(node, other.pid)
        time.sleep(1.0)
        assert other.poll() is None
        other.kill()
