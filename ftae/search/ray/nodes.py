"""The nodes of a cluster that can run a trial, and waiting for them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import tune
from ray.util.placement_group import placement_group, remove_placement_group

from ftae.errors import FtaeError
from ftae.specs.search.resources import Resources
from ftae.specs.search.settings import SearchSettings
from ftae.wording import duration


@dataclass(frozen=True)
class Node:
    """A node of the cluster. ``name``: host and address. ``resources``: amounts by Ray's name (CPU, GPU, memory)."""

    id: str
    name: str
    resources: dict[str, float]

    def workers(self, resources: Resources) -> int:
        """How many worker processes of trials fit on the node."""
        wanted = bundle(resources)
        return min(math.floor(self.resources.get(key, 0.0) / amount) for key, amount in wanted.items())

    @property
    def memory(self) -> float:
        """Bytes that Ray found on the node for processes and objects."""
        return self.resources.get("memory", 0.0) + self.resources.get("object_store_memory", 0.0)


def bundle(resources: Resources) -> dict[str, float]:
    """The resources of one worker process, by Ray's names."""
    return {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})


def placement(resources: Resources) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: one bundle per worker, on one node where that is possible."""
    return tune.PlacementGroupFactory([bundle(resources)] * resources.workers, strategy="PACK")


def this_node() -> str:
    """Ray's id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def live_nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    return [
        Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeName']})", node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def nodes_with_room(resources: Resources) -> list[Node]:
    """The nodes that can run a worker of a trial; none if all of them together have no room for a whole trial."""
    found = [node for node in live_nodes() if node.workers(resources)]
    return found if sum(node.workers(resources) for node in found) >= resources.workers else []


def room(resources: Resources) -> int:
    """How many trials fit on the cluster at the same time, at least 1."""
    return max(1, sum(node.workers(resources) for node in live_nodes()) // resources.workers)


def at_a_time(settings: SearchSettings) -> int:
    """How many trials of a search run at the same time on the nodes that are alive now."""
    fitting = room(settings.resources)
    return min(fitting, settings.most_at_a_time)


POLL_SECONDS = 5.0
NOTIFY_SECONDS = 60.0  # between two messages while waiting


def wait_for_room(resources: Resources, seconds: float, notify: Callable[[str], None]) -> None:
    """Ask the cluster for room for a trial, and wait until an autoscaler has added nodes for it.

    Raises:
        FtaeError: there is no room after ``seconds``.
    """
    if seconds <= 0.0:
        raise FtaeError(f"{_too_small(resources)}. Lower it, or join a larger cluster")
    notify(f"{_too_small(resources)}; waiting for up to {duration(seconds)} for nodes (search.wait_for_nodes_minutes)")
    start = notified = time.monotonic()
    # The same request that Tune makes for a trial.
    group = placement_group([bundle(resources)] * resources.workers)
    try:
        while not group.wait(min(POLL_SECONDS, seconds)):
            now = time.monotonic()
            if now - start > seconds:
                raise FtaeError(
                    f"{_too_small(resources)}, and no node with room was added in {duration(now - start)}. Lower it, "
                    "check the cluster (ray status shows what it waits for), or raise search.wait_for_nodes_minutes"
                )
            if now - notified > NOTIFY_SECONDS:
                notify(f"no node has room for a trial yet, after {duration(now - start)}")
                notified = now
    finally:
        remove_placement_group(group)


def _wanted(resources: Resources) -> str:
    one = f"{resources.cpus:g} CPUs, {resources.gpus:g} GPUs"
    return one if resources.workers == 1 else f"{resources.workers} workers of {one}"


def _too_small(resources: Resources) -> str:
    nodes = live_nodes()
    for wanted, key, leaf in ((resources.cpus, "CPU", "cpus"), (resources.gpus, "GPU", "gpus")):
        most = max((node.resources.get(key, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            has = f"the largest node of the cluster has {most:g} {key}s"
            return f"search.resources.{leaf}: a trial asks for {wanted:g}, {has}"
    has = ", ".join(
        f"{node.name} {node.resources.get('CPU', 0):g} and {node.resources.get('GPU', 0):g}" for node in nodes
    )
    return f"search.resources: a trial asks for {_wanted(resources)}, the nodes have {has}"
