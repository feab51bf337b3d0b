"""Having the nodes of the cluster look at what trials need."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftae.errors import FtaeError
from ftae.search.look import Look, look
from ftae.search.nodes import Node, live_nodes
from ftae.specs.search import SearchSpec
from ftae.storage import Store
from ftae.units import duration

SILENT_SECONDS = 10.0  # of waiting without a word
SAY_SECONDS = 60.0  # between two words of waiting

T = TypeVar("T")
Say = Callable[[str], None]
What = Literal["code", "storage", "images"]
Fault = tuple[What, str, Node]  # what, why, and where


def look_around(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], say: Say) -> None:
    """Have every node read and write the storage, and load the images, which it then has in its cache.

    Raises:
        FtaeError: some cannot, or have other images than those of ``fingerprint``: which, why, and what to do.
    """
    try:
        faults = _looked(spec, store, fingerprint, nodes, say)
    except OSError as error:
        raise FtaeError(f"search.storage: {store} cannot be used from here: {error.strerror or error}") from error
    live = {node.id for node in live_nodes()}
    if remaining := [fault for fault in faults if fault[2].id in live]:
        raise FtaeError(_told(remaining, store))


def _looked(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], say: Say) -> list[Fault]:
    token = f".preflight-{uuid.uuid4().hex}"
    left = {node.id: f"{token}.{number}" for number, node in enumerate(nodes)}
    store.write(token, token.encode())
    try:
        search, faults = spec.model_dump(mode="json"), []
        tasks = {_on(node, look).remote(search, fingerprint, token, left[node.id]): node for node in nodes}
        for node, seen in results(tasks, "the nodes look at storage and images", say):
            faults += [(what, why, node) for what, why in _faults(seen, store, token, left[node.id])]
        return faults
    finally:
        for below in (token, *left.values()):
            store.remove(below)


def _faults(seen: Look | RayError, store: Store, token: str, left: str) -> Iterator[tuple[What, str]]:
    if isinstance(seen, RayError):
        yield "code", reason_of(seen)
        return
    if seen.storage is not None:
        yield "storage", seen.storage
    elif store.read(left) != token.encode():
        yield "storage", "what is written there is not seen from here"
    if seen.images is not None:
        yield "images", seen.images


def _told(faults: Sequence[Fault], store: Store) -> str:
    """A line for each kind of fault, which names the nodes by what they say."""
    kinds: dict[What, tuple[str, str]] = {
        "code": ("ftae cannot run", "Install the same version of it on every node"),
        "storage": (
            f"search.storage: {store} cannot be used",
            "Mount one folder there on all nodes, writable, or name an object store",
        ),
        "images": (
            "finetune.data: the images cannot be used",
            "Put the same images at the same path on every node, or on a storage that all share",
        ),
    }
    lines = []
    for kind, (what, advice) in kinds.items():
        nodes: dict[str, list[str]] = {}
        for _, why, node in (fault for fault in faults if fault[0] == kind):
            nodes.setdefault(why, []).append(node.name)
        if nodes:
            where = "; ".join(f"on {', '.join(names)}: {why}" for why, names in nodes.items())
            lines.append(f"{what} {where}. {advice}")
    return "\n".join(lines)


def _on(node: Node, function: Callable[..., Any]) -> Any:
    """``function`` as a task for that node, at no cost of its resources."""
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)


def results(tasks: Mapping[ObjectRef[Any], T], doing: str, say: Say) -> Iterator[tuple[T, Any]]:
    """What each task returned, or the RayError that ended it; ``say`` is told ``doing`` while that takes long."""
    pending, start, patience = list(tasks), time.monotonic(), SILENT_SECONDS
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=patience)
            for task in done:
                yield tasks[task], _result(task)
            if pending:
                say(f"preflight: {doing}, {duration(time.monotonic() - start)} so far")
                patience = SAY_SECONDS
    finally:
        for task in pending:
            ray.cancel(task)


def _result(task: ObjectRef[Any]) -> Any:
    try:
        return ray.get(task)
    except RayError as error:
        return error


def reason_of(error: RayError) -> str:
    """The telling line of an error: the last of a traceback, else the first."""
    lines = str(error).strip().splitlines()
    return lines[-1 if isinstance(error, RayTaskError) else 0][:300]
