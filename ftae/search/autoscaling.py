"""Waiting for nodes, where the cluster adds them by itself."""

import json
import time
from collections.abc import Callable

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ftae.errors import FtaeError
from ftae.search.nodes import bundle, live_nodes
from ftae.search.own_node import is_own
from ftae.specs.resources import Resources
from ftae.units import duration

UPDATE_SECONDS = 5.0  # an autoscaler looks at what is asked for this often
SAY_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 3600.0


def wait_for_room(resources: Resources, say: Callable[[str], None]) -> None:
    """Wait until the cluster, which has no room for a trial, has added nodes that do.

    Raises:
        FtaeError: it does not add nodes by itself, or none that would do.
    """
    if not _grows():
        raise FtaeError(f"{_too_small(resources)}. Lower it, or join a larger cluster")
    # Asked for as Tune asks for its trials.
    group = placement_group([bundle(resources)] * resources.workers)
    try:
        _wait(group, resources, say)
    finally:
        remove_placement_group(group)


def _wait(group: PlacementGroup, resources: Resources, say: Callable[[str], None]) -> None:
    start = said = time.monotonic()
    say(f"no node has room for a trial ({_wanted(resources)}) yet; waiting for the cluster to add one")
    while not group.wait(UPDATE_SECONDS):
        now = time.monotonic()
        if _is_refused(group):
            raise FtaeError(f"{_too_small(resources)}, and it can add none that would do. Lower it")
        if now - start > LONGEST_WAIT_SECONDS:
            raise FtaeError(
                f"{_too_small(resources)}, and none was added in {duration(now - start)}. "
                "See to the cluster (ray status tells what it waits for), then go on with --resume"
            )
        if now - said > SAY_SECONDS:
            say(f"no node has room for a trial yet, after {duration(now - start)}")
            said = now


def _grows() -> bool:
    """Whether somebody adds nodes to the cluster when work waits for them."""
    if is_own():
        return False
    deadline = time.monotonic() + 2 * UPDATE_SECONDS
    while time.monotonic() < deadline:
        if _autoscaling_state().autoscaler_state_version:
            return True  # version 2: it also tells what it cannot add
        # Version 1 runs on every cluster; without a configuration it makes up a type for each node.
        report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
        if active := report.get("active_nodes"):
            return not active.keys() <= {f"node_{node['NodeID']}" for node in ray.nodes()}  # type: ignore[no-untyped-call]
        time.sleep(0.2)  # a cluster that has just started
    return False


def _is_refused(group: PlacementGroup) -> bool:
    """Whether the autoscaler knows no node that would make room for ``group``."""
    refused = _autoscaling_state().infeasible_gang_resource_requests
    return any(group.id.hex() in request.details for request in refused)


def _autoscaling_state() -> AutoscalingState:
    """What version 2 of the autoscaler has said last; empty without one."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply.autoscaling_state


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
