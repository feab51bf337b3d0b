"""What would stop or spoil a search, found in seconds, before its first trial.

Looked at are the nodes that can run a trial now; one that joins later is on its own.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

from ftae.engine.data.dataset import Dataset
from ftae.engine.sizing.probe import Probe, trial_seconds
from ftae.errors import FtaeError
from ftae.search.ray.nodes import Node, at_a_time, nodes_with_room, wait_for_room
from ftae.search.ray.preflight_tasks import check_nodes
from ftae.search.sizing import LOWER, check_quota, search_seconds, space_needed
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store
from ftae.wording import duration, size

Notify = Callable[[str], None]

CONTEXT_BYTES = 500_000_000  # of a GPU that CUDA takes for each process, beside what PyTorch does


@dataclass(frozen=True)
class ClusterCapacity:
    """What a search runs on: the nodes that can run a trial now, and how many trials run at a time."""

    nodes: Sequence[Node]
    at_a_time: int


def preflight(
    spec: SearchSpec, store: Store, data: Dataset, checkpoint_bytes: int, notify: Notify, *, own: bool
) -> ClusterCapacity:
    """Check that there is room, and that every node can use storage and images; the driver's own has shown it.

    ``checkpoint_bytes``: of one checkpoint. ``notify`` is told what takes long. ``own``: the Ray is this machine's own,
    and never grows.

    Raises:
        FtaeError: the cluster has no room for a trial; a node cannot use storage or images; the storage is too
            small. The message says what to do.
    """
    settings = spec.search
    nodes = nodes_with_room(settings.resources)
    if not nodes:
        wait_for_room(settings.resources, 0.0 if own else 60.0 * settings.wait_for_nodes_minutes, notify)
        nodes = nodes_with_room(settings.resources)
        if settings.max_concurrent is None:
            notify("search.max_concurrent is not set: no more trials run at a time than have room now")
    at_once = at_a_time(settings)
    most = min(settings.max_concurrent or at_once, settings.num_trials)  # of a cluster that may grow
    _check_space(spec, store, space_needed(spec, checkpoint_bytes).total(most))
    here = ray.get_runtime_context().get_node_id()
    check_nodes(spec, store, data.fingerprint, [node for node in nodes if node.id != here], notify)
    return ClusterCapacity(nodes, at_once)


def accept(probe: Probe, spec: SearchSpec, ground: ClusterCapacity, notify: Notify) -> None:
    """Hold what a worker measured against the memory there is; ``notify`` is told what was found.

    Raises:
        FtaeError: trials that share a GPU do not fit into its memory.
    """
    _check_memory(probe, spec, ground.nodes, ground.at_a_time, notify)
    trial, search = trial_seconds(probe, spec.finetune), search_seconds(probe, spec, ground.at_a_time)
    count = len(ground.nodes)
    notify(
        f"preflight     {count} node{'s' * (count > 1)}; {probe}; about {duration(trial)} a full trial, "
        f"{duration(search)} the search at {ground.at_a_time} at a time"
    )


def _check_space(spec: SearchSpec, store: Store, needed: int) -> None:
    check_quota(spec, needed)
    if spec.search.in_object_store:
        return
    taken = sum(file.stat().st_size for file in (store.folder / "trials").rglob("*") if file.is_file())
    free = shutil.disk_usage(store.folder).free
    if needed - taken > free:
        raise FtaeError(
            f"search.storage: {store} has {size(free)} free, the search takes about {size(needed - taken)} more. "
            f"Make room, name another storage, or {LOWER}"
        )


def _check_memory(probe: Probe, spec: SearchSpec, nodes: Sequence[Node], at_a_time: int, notify: Notify) -> None:
    """Hold what one worker took against all that may run beside it: a GPU refuses, a node only gets slow or kills."""
    resources, peak = spec.search.resources, probe.peak_bytes
    if probe.memory_bytes is not None:
        peak += CONTEXT_BYTES
        sharing = math.floor(1 / resources.gpus)
        if sharing * peak > probe.memory_bytes:
            fitting = max(1, probe.memory_bytes // peak)
            raise FtaeError(
                f"search.resources.gpus: {resources.gpus:g} lets {sharing} trials share a GPU, but each takes "
                f"{size(peak)} of the {size(probe.memory_bytes)} of a {probe.device}. "
                f"Set it to {math.ceil(100 / fitting) / 100:g}, or lower finetune.batch_size"
            )
        return
    for node in nodes:
        beside = min(node.workers(resources), at_a_time * resources.workers)
        if beside * peak > node.memory:
            notify(
                f"warning: {beside} processes at a time take up to {size(beside * peak)} on {node.name}, which has "
                f"{size(node.memory)} of memory; lower search.max_concurrent or raise search.resources.cpus"
            )
