"""The Ray cluster that a search runs on, and what its nodes have room for."""

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import ray

from ftae.lookup import ALLOW_CODE
from ftae.search import ENVIRONMENT
from ftae.search.own_node import plain
from ftae.specs.models import AnyModel, DiffusersModel
from ftae.specs.resources import Resources


@contextmanager
def connecting(model: AnyModel) -> Iterator[Callable[[], None]]:
    """A cluster: the one already joined, the one ``RAY_ADDRESS`` names, or one of this machine's own.

    It is connected to in the background; what is yielded waits for it. It is left at the end of the block.
    The workers of an own cluster import what trials of ``model`` need before they get one.
    """
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong is in the journal and the progress
    with redirect_stdout(sys.stderr):  # where Ray tells of nodes and workers that died
        if ray.is_initialized():
            yield lambda: None
            return
        with ThreadPoolExecutor(1) as background:
            started = background.submit(_connect, model)

            def wait() -> None:
                started.result()
                if threading.current_thread() is threading.main_thread():
                    # What batch systems send: ends the search as Ctrl-C does.
                    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

            try:
                yield wait
            finally:
                started.exception()
                ray.shutdown()


def _connect(model: AnyModel) -> None:
    address = os.environ.get("RAY_ADDRESS", "local")
    modules = ["ftae.search.preload", *(["ftae.engine.diffusers_models"] if isinstance(model, DiffusersModel) else [])]
    os.environ.setdefault("RAY_preload_python_modules", ",".join(modules))  # inherited by what starts the workers
    # The workers of a cluster that runs already have not inherited this process's environment.
    workers = {name: os.environ[name] for name in (*ENVIRONMENT, "PYTHONPATH", ALLOW_CODE) if name in os.environ}
    own = address == "local"
    with plain():
        ray.init(
            address=address,
            runtime_env=None if own else {"env_vars": workers},
            include_dashboard=False if own else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            # Ray would wait for its first workers, and hold the interpreter's lock all the while.
            _system_config={"prestart_worker_first_driver": False} if own else None,
        )
    if own:
        _start_workers()


def _start_workers() -> None:
    """One for each processor, by an empty task each, which nobody waits for."""
    empty = ray.remote(lambda: None)
    for _ in range(int(live_nodes()[0].resources["CPU"])):
        empty.remote()


@dataclass(frozen=True)
class Node:
    """A node of the cluster: Ray's id, its host and address, and what it has."""

    id: str
    name: str
    resources: dict[str, float]

    def workers(self, resources: Resources) -> int:
        """How many worker processes of trials fit on it."""
        wanted = bundle(resources)
        return min(math.floor(self.resources.get(key, 0.0) / amount) for key, amount in wanted.items())

    @property
    def memory(self) -> float:
        """Bytes that Ray found on it for processes and objects."""
        return self.resources.get("memory", 0.0) + self.resources.get("object_store_memory", 0.0)


def bundle(resources: Resources) -> dict[str, float]:
    """What one worker process gets, in Ray's words."""
    return {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})


def live_nodes() -> list[Node]:
    """The cluster's nodes."""
    return [
        Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeName']})", node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def nodes_with_room(resources: Resources) -> list[Node]:
    """The nodes that can run a worker of a trial; none if all of them together have no room for a whole one."""
    found = [node for node in live_nodes() if node.workers(resources)]
    return found if sum(node.workers(resources) for node in found) >= resources.workers else []


def room(resources: Resources) -> int:
    """How many trials fit at once, at least 1."""
    return max(1, sum(node.workers(resources) for node in live_nodes()) // resources.workers)
