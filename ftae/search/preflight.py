"""Checks before the first trial: room on the cluster, space in the storage, and what every node can use.

Only the nodes that can run a trial now are checked, not those that join later.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ftae.engine.data.dataset import Dataset
from ftae.engine.sizing import Probe, trial_seconds
from ftae.errors import FtaeError
from ftae.search.ray.nodes import Node, at_a_time, nodes_with_room, this_node, wait_for_room
from ftae.search.ray.preflight_tasks import check_nodes
from ftae.search.sizing import LOWER, check_quota, search_seconds, space_needed
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store
from ftae.wording import duration, size

Notify = Callable[[str], None]
CONTEXT_BYTES = 500_000_000  # memory of a GPU that CUDA takes for each process, in addition to PyTorch's


@dataclass(frozen=True)
class ClusterCapacity:
    """The nodes that can run a trial now, and how many trials run at a time."""

    nodes: Sequence[Node]
    at_a_time: int


def preflight(
    spec: SearchSpec, store: Store, data: Dataset, checkpoint_bytes: int, notify: Notify, *, is_local: bool
) -> ClusterCapacity:
    """Check that there is room, and that every node but the driver's can use the storage and the images.

    The driver has used both already. ``checkpoint_bytes``: size of one checkpoint. ``is_local``: Ray is this machine
    alone, and never grows. Calls ``notify`` while something takes long.

    Raises:
        FtaeError: the cluster has no room for a trial; a node cannot use storage or images; the storage is too
            small. The message says what to do.
    """
    settings = spec.search
    nodes = nodes_with_room(settings.resources)
    if not nodes:
        wait_for_room(settings.resources, 0.0 if is_local else 60.0 * settings.wait_for_nodes_minutes, notify)
        nodes = nodes_with_room(settings.resources)
        if settings.max_concurrent is None:
            notify("search.max_concurrent is not set: no more trials run at a time than have room now")
    now = at_a_time(settings)
    most = now if settings.max_concurrent is None else settings.most_at_a_time  # the cluster may grow
    _check_space(spec, store, space_needed(spec, checkpoint_bytes).total(most))
    here = this_node()
    check_nodes(spec, store, data.fingerprint, [node for node in nodes if node.id != here], notify)
    return ClusterCapacity(nodes, now)


def check_measured(probe: Probe, spec: SearchSpec, capacity: ClusterCapacity, notify: Notify) -> None:
    """Compare what a worker measured with the memory of the nodes; calls ``notify`` with the result.

    Raises:
        FtaeError: trials that share a GPU do not fit into its memory.
    """
    _check_memory(probe, spec, capacity.nodes, capacity.at_a_time, notify)
    trial, search = trial_seconds(probe, spec.finetune), search_seconds(probe, spec, capacity.at_a_time)
    count = len(capacity.nodes)
    notify(
        f"preflight     {count} node{'s' * (count > 1)}; {probe}; about {duration(trial)} a full trial, "
        f"{duration(search)} the search at {capacity.at_a_time} at a time"
    )


def _check_space(spec: SearchSpec, store: Store, needed: int) -> None:
    check_quota(spec, needed)
    if spec.search.in_object_store:
        return
    used = sum(file.stat().st_size for file in (store.folder / "trials").rglob("*") if file.is_file())
    free = shutil.disk_usage(store.folder).free
    if needed - used > free:
        raise FtaeError(
            f"search.storage: {store} has {size(free)} free, the search takes about {size(needed - used)} more. "
            f"Make room, name another storage, or {LOWER}"
        )


def _check_memory(probe: Probe, spec: SearchSpec, nodes: Sequence[Node], at_a_time: int, notify: Notify) -> None:
    """Compare the peak of one worker with the memory for all that run beside it.

    Too little memory is an error on a GPU, and a warning on a node, which slows down or kills a process.
    """
    resources, peak = spec.search.resources, probe.peak_bytes
    if probe.memory_bytes is not None:
        peak += CONTEXT_BYTES
        sharing = math.floor(1 / resources.gpus)
        if sharing * peak > probe.memory_bytes:
            fitting = max(1, probe.memory_bytes // peak)
            recompute = "" if probe.checkpoint_stages else "set finetune.checkpoint_stages to true, or "
            raise FtaeError(
                f"search.resources.gpus: {resources.gpus:g} lets {sharing} trials share a GPU, but each takes "
                f"{size(peak)} of the {size(probe.memory_bytes)} of a {probe.device}. "
                f"Set it to {math.ceil(100 / fitting) / 100:g}, or {recompute}lower finetune.batch_size"
            )
        return
    for node in nodes:
        beside = min(node.workers(resources), at_a_time * resources.workers)
        if beside * peak > node.memory:
            notify(
                f"warning: {beside} processes at a time take up to {size(beside * peak)} on {node.name}, which has "
                f"{size(node.memory)} of memory; lower search.max_concurrent or raise search.resources.cpus"
            )
