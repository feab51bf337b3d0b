"""Workers that say nothing any more: found by the time between a trial's reports, and killed.

Tune sees a worker die and starts its trial again from the newest checkpoint, as after any fault of a machine.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PATIENCE_FACTOR = 10.0  # times the longest that any trial took from one report to the next

LEAST_PATIENCE_SECONDS = 120.0

START_PATIENCE_SECONDS = 900.0  # before the first report: weights are read, images decoded

DEAF_SECONDS = 5.0  # a driver that was held up for longer has not listened to its trials


@dataclass
class _Worker:
    node: str
    pid: int
    heartbeat: float
    reported: bool = False


class HangDetector:
    """Knows when each running trial was heard of last."""

    def __init__(self, note: Callable[[int, str], None]) -> None:
        self._longest = 0.0
        self._note = note
        self._workers: dict[int, _Worker] = {}
        self._looked = time.monotonic()

    def expect(self, seconds: float) -> None:
        """That it takes so long from one report to the next, by what the preflight found."""
        self._longest = max(self._longest, seconds)

    def heartbeat(self, number: int, message: Mapping[str, Any]) -> None:
        """A trial said something (see ``trial.run_trial``)."""
        now = self._listen()
        if "start" in message:
            start = message["start"]
            self._workers[number] = _Worker(start["node"], start["pid"], now)
        elif (worker := self._workers.get(number)) is not None:
            if worker.reported:
                self._longest = max(self._longest, now - worker.heartbeat)
            worker.heartbeat, worker.reported = now, worker.reported or "report" in message

    def forget(self, number: int) -> None:
        """The trial is over, or was started again elsewhere."""
        self._workers.pop(number, None)

    def kill_hung(self) -> None:
        """Kill the workers that have been silent for much too long."""
        now = self._listen()
        for number, worker in list(self._workers.items()):
            patience = self._patience(worker)
            if now - worker.heartbeat > patience:
                self.forget(number)
                self._note(number, f"no report for {patience:.0f} s: its worker (process {worker.pid}) was killed")
                _kill_on(worker.node, worker.pid)

    def _listen(self) -> float:
        """The time now; what a driver that was held up could not hear is nobody's silence."""
        now = time.monotonic()
        deaf, self._looked = now - self._looked, now
        if deaf > DEAF_SECONDS:
            for worker in self._workers.values():
                worker.heartbeat += deaf
        return now

    def _patience(self, worker: _Worker) -> float:
        patience = max(LEAST_PATIENCE_SECONDS, PATIENCE_FACTOR * self._longest)
        return patience if worker.reported else max(START_PATIENCE_SECONDS, patience)


def _kill_on(node: str, pid: int) -> None:
    """Kill a worker of this cluster on its own node; not waited for: the node may be gone, too."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=strategy).remote(pid)


def _kill(pid: int) -> None:
    # Not a process that has got the number since: Ray names its workers.
    if psutil.pid_exists(pid) and "ray::" in " ".join(psutil.Process(pid).cmdline()):
        os.kill(pid, signal.SIGKILL)
