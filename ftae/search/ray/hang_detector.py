"""Workers that have stopped reporting: found by the time between reports, and killed on their own node."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftae.search.ray.messages import Message, Report, Start

MAX_TEXT = 300  # characters
WORKER_TITLE = "ray::"  # begins the title of every process that runs a task or an actor


# Errors of a process that has another token than the cluster it tries to join, or none.
_OTHER_TOKEN = ("InvalidAuthToken", "AuthenticationError")


def is_worker(pid: int) -> bool:
    """Whether a process of this machine is a worker of Ray, not one that has got the number since."""
    return psutil.pid_exists(pid) and WORKER_TITLE in " ".join(psutil.Process(pid).cmdline())


def is_other_token(errors: str) -> bool:
    """Whether a cluster refused the process that wrote ``errors`` to stderr because of its token."""
    return any(name in errors for name in _OTHER_TOKEN)


def reason_of(error: RayError) -> str:
    """The line of an error that names its cause: the last one of a traceback, else the first one."""
    lines = str(error).strip().splitlines()
    return lines[-1 if isinstance(error, RayTaskError) else 0][:MAX_TEXT]


def newest_error(file: str | None) -> str:
    """The message of the newest error in the file that Tune keeps for a trial.

    Tune may have written nothing, and the bytes may be in any encoding.
    """
    try:
        lines = Path(file).read_text(errors="replace").split("\n") if file else []
    except OSError:
        lines = []
    return next((line[:MAX_TEXT] for line in reversed(lines) if line.strip()), "the worker died")


TOLERANCE = 10.0  # times the longest that any trial took from one report to the next
MIN_SILENCE_SECONDS = 120.0
START_SECONDS = 900.0  # before the first report, when weights are read and images decoded
BLOCKED_SECONDS = 5.0  # a driver that was busy for longer did not read the messages of its trials


@dataclass
class _Worker:
    node: str
    pid: int
    heartbeat: float
    reported: bool = False


class HangDetector:
    """Knows when each running trial sent its last message.

    ``note`` is called with a trial's number and a text when its worker is killed. ``report_seconds``: the longest that
    the preflight expects from one report to the next.
    """

    def __init__(self, note: Callable[[int, str], None], report_seconds: float) -> None:
        self._note, self._longest = note, report_seconds
        self._workers: dict[int, _Worker] = {}
        self._last_call = time.monotonic()

    def heartbeat(self, number: int, message: Message) -> None:
        """A trial sent a message."""
        now, worker = self._now(), self._workers.get(number)
        if isinstance(message, Start):
            self._workers[number] = _Worker(message.node, message.pid, now)
        elif worker is not None:
            if worker.reported:
                self._longest = max(self._longest, now - worker.heartbeat)
            worker.heartbeat, worker.reported = now, worker.reported or isinstance(message, Report)

    def forget(self, number: int) -> None:
        """The trial is over, or starts again elsewhere."""
        self._workers.pop(number, None)

    def kill_hung(self) -> None:
        """Kill the workers that have been silent for much too long."""
        now = self._now()
        for number, worker in list(self._workers.items()):
            limit = self._limit(worker)
            if now - worker.heartbeat > limit:
                self.forget(number)
                self._note(number, f"no report for {limit:.0f} s: its worker (process {worker.pid}) was killed")
                kill_worker(worker.node, worker.pid)

    def _now(self) -> float:
        """The time. Time during which the driver itself was blocked does not count as silence of its trials."""
        now = time.monotonic()
        passed, self._last_call = now - self._last_call, now
        if passed > BLOCKED_SECONDS:
            for worker in self._workers.values():
                worker.heartbeat += passed
        return now

    def _limit(self, worker: _Worker) -> float:
        """Seconds of silence after which a worker is killed."""
        limit = max(MIN_SILENCE_SECONDS, TOLERANCE * self._longest)
        return limit if worker.reported else max(START_SECONDS, limit)


def kill_worker(node: str, pid: int) -> None:
    """Kill a worker on its own node. Does not wait for it, because the node may be gone, too."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=strategy).remote(pid)


def _kill(pid: int) -> None:
    if is_worker(pid):
        os.kill(pid, signal.SIGKILL)
