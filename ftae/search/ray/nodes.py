"""The nodes of a cluster that can run a trial, and waiting for them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import tune
from ray.util.placement_group import placement_group, remove_placement_group

from ftae.errors import FtaeError
from ftae.specs.search.settings import Resources, SearchSettings
from ftae.wording import duration


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


def placement(resources: Resources) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: a bundle for each worker, on one node where that is possible."""
    return tune.PlacementGroupFactory([bundle(resources)] * resources.workers, strategy="PACK")


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


def at_a_time(settings: SearchSettings) -> int:
    """How many trials of a search run at once on the nodes that there are now."""
    fitting = room(settings.resources)
    return min(settings.max_concurrent or fitting, fitting, settings.num_trials)


LOOK_SECONDS = 5.0

SAY_SECONDS = 60.0


def wait_for_room(resources: Resources, seconds: float, notify: Callable[[str], None]) -> None:
    """Ask the cluster for room for a trial, and wait until it has added nodes that have it.

    An autoscaler sees what is asked for, and starts nodes for it. ``seconds``: how long it may take.

    Raises:
        FtaeError: there is no room after that time.
    """
    if seconds <= 0.0:
        raise FtaeError(f"{_too_small(resources)}. Lower it, or join a larger cluster")
    notify(f"{_too_small(resources)}; waiting for up to {duration(seconds)} for nodes (search.wait_for_nodes_minutes)")
    start = said = time.monotonic()
    group = placement_group([bundle(resources)] * resources.workers)  # as Tune asks for its trials
    try:
        while not group.wait(min(LOOK_SECONDS, seconds)):
            now = time.monotonic()
            if now - start > seconds:
                raise FtaeError(
                    f"{_too_small(resources)}, and no node with room was added in {duration(now - start)}. Lower it, "
                    "see to the cluster (ray status tells what it waits for), or raise search.wait_for_nodes_minutes"
                )
            if now - said > SAY_SECONDS:
                notify(f"no node has room for a trial yet, after {duration(now - start)}")
                said = now
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
