"""The Ray node of a search that brings no cluster, with no more processes than its trials need.

Private parts: ray is pinned, tests/search/test_own_node.py holds them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private.node import Node

# Each is a Python process that starts beside the workers, and that ray.init() or ray.shutdown() waits for.
UNUSED = (
    "start_api_server",  # of the dashboard, also where it is not wanted
    "start_log_monitor",  # which copies the output of workers to a driver that does not show it
    "start_monitor",  # of the autoscaler
)


@contextmanager
def plain() -> Iterator[None]:
    """Inside, a node that is started has none of ``UNUSED``."""
    with ExitStack() as patches:
        for name in UNUSED:
            replace(patches, Node, name, lambda *_, **__: None)
        yield


def is_own() -> bool:
    """Whether the cluster that this process has joined is one that it started: it is all there is, and never grows."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.head)


def replace(patches: ExitStack, owner: Any, name: str, other: Any) -> None:
    """Have ``owner`` do something else under this name until ``patches`` are closed."""
    patches.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, other)
