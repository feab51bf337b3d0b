"""The nodes of the Ray that a search runs on, and what they have room for."""

import math
from dataclasses import dataclass

import ray
from ray import tune

from ftae.specs.resources import Resources
from ftae.specs.search import SearchSettings


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
