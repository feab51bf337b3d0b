"""The Ray node of a search that brings no cluster, with no more processes than its trials need, and no wait for them.

Private parts: ray is pinned, tests/search/test_own_node.py holds them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node
from ray._private.state import GlobalState

from ftae.search import agent_stand_in, template_client

# Each is a Python process that starts beside the workers, and that ray.init() or ray.shutdown() waits for.
UNUSED = (
    "start_api_server",  # of the dashboard, also where it is not wanted
    "start_log_monitor",  # which copies the output of workers to a driver that does not show it
    "start_monitor",  # of the autoscaler
)
# Ray's function that gives what a raylet's agents are started by, and what it gives here: they become arguments of it.
STARTS_AGENTS = "_build_python_executable_command_memory_profileable"
STAND_IN = [sys.executable, "-S", "-E", agent_stand_in.__file__]

LOOK_SECONDS = 0.02  # between two looks whether the node is up
LOOKING_SECONDS = 10.0  # of them; then Ray waits, and says what went wrong


@contextmanager
def plain() -> Iterator[None]:
    """Inside, a node that is started has none of ``UNUSED``, and agents that do nothing.

    That it is up is seen at once. Ray itself asks once a second, and a start often takes a little longer than one. Its
    workers are copies of a template, if there is one.
    """
    with ExitStack() as patches:
        for name in UNUSED:
            replace(patches, Node, name, lambda *_, **__: None)
        replace(patches, services, STARTS_AGENTS, lambda *_: STAND_IN)
        replace(patches, services, "get_node", _once_it_is_up(services.get_node))
        replace(patches, ray_constants, "SETUP_WORKER_FILENAME", template_client.__file__)
        yield


def _once_it_is_up(get_node: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    def get(gcs_address: str, node_id: str) -> Any:
        cluster: Any = GlobalState()  # type: ignore[no-untyped-call]
        cluster._initialize_global_state(services._get_gcs_client_options(gcs_address))  # type: ignore[no-untyped-call]
        deadline = time.monotonic() + LOOKING_SECONDS
        while time.monotonic() < deadline and node_id not in {node["NodeID"] for node in cluster.node_table()}:
            time.sleep(LOOK_SECONDS)
        return get_node(gcs_address, node_id)

    return get


def is_own() -> bool:
    """Whether the cluster that this process has joined is one that it started: it is all there is, and never grows."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.head)


def replace(patches: ExitStack, owner: Any, name: str, other: Any) -> None:
    """Have ``owner`` do something else under this name until ``patches`` are closed."""
    patches.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, other)
