"""Waiting for nodes, where the cluster has no room for a trial yet."""

import time
from collections.abc import Callable

from ray.util.placement_group import placement_group, remove_placement_group

from ftae.errors import FtaeError
from ftae.search.nodes import bundle, live_nodes
from ftae.specs.resources import Resources
from ftae.units import duration

LOOK_SECONDS = 5.0
SAY_SECONDS = 60.0


def wait_for_room(resources: Resources, seconds: float, say: Callable[[str], None]) -> None:
    """Ask the cluster for room for a trial, and wait until it has added nodes that have it.

    An autoscaler sees what is asked for, and starts nodes for it. ``seconds``: how long it may take.

    Raises:
        FtaeError: there is no room after that time.
    """
    if seconds <= 0.0:
        raise FtaeError(f"{_too_small(resources)}. Lower it, or join a larger cluster")
    say(f"{_too_small(resources)}; waiting for up to {duration(seconds)} for nodes (search.wait_for_nodes_minutes)")
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
                say(f"no node has room for a trial yet, after {duration(now - start)}")
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
