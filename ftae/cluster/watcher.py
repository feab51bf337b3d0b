"""Restarts a search whose driver has died, from a small actor on the head node."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftae.cluster.jobs import attempts, connect, submit
from ftae.errors import FtaeError
from ftae.user_code import ALLOW_CODE

WATCH_SECONDS = 3.0

START_SECONDS = 60.0


def watch(search: str, notify: Callable[[str], None]) -> None:
    """Make sure that the next attempt is submitted if this one dies; called by the driver of a job.

    There is one watcher per search. It outlives the drivers, and ends when one of them ends by itself.
    """
    # The actor imports this module from where the driver does.
    environment = {name: os.environ[name] for name in ("PYTHONPATH", ALLOW_CODE) if name in os.environ}
    context = ray.init(
        "auto",
        namespace="ftae",
        runtime_env={"env_vars": environment},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        address = f"http://{context.dashboard_url}"
        # The watcher that is found may just be ending.
        if not _is_watched(address, search) and not _is_watched(address, search):
            notify(f"this attempt is not watched; if it dies, run: ftae resume {search}")
    finally:
        ray.shutdown()


def _is_watched(address: str, search: str) -> bool:
    options = ray.remote(Watcher).options(
        name=f"watcher of {search}",
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        # The driver's node, which is the head node; another one, if the head node is restarted.
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
    )
    try:
        watcher: Any = options.remote(address, search)
        ray.get(watcher.ping.remote(), timeout=START_SECONDS)
    except RayError:
        return False
    return True


class Watcher:
    """Submits the next attempt when one has died. It has no state but the cluster's, so Ray can restart it."""

    def __init__(self, address: str, search: str) -> None:
        self._address, self._search = address, search
        self._me = ray.get_runtime_context().current_actor
        self._checking = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ping(self) -> None:
        """Answers only if the watcher stays: the next check then finds the attempt of whoever called."""
        with self._checking:
            return

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            with self._checking:
                try:
                    self._check()
                except (OSError, RuntimeError, FtaeError) as error:  # the dashboard is down, or restarting
                    logging.getLogger(__name__).warning("%s", error)

    def _check(self) -> None:
        client = connect(self._address)
        newest = next(reversed(attempts(client, self._search)), None)
        if newest is not None and newest.has_successor:
            number, python, last = newest.number + 1, newest.python, newest.last
            submit(client, newest.spec(), number=number, resume=True, python=python, last=last)
        elif newest is None or newest.is_over:
            ray.kill(self._me, no_restart=True)
            threading.Event().wait()  # until killed, with the lock held: no driver may rely on this watcher any more
