"""Tasks for workers before the first trial: checking storage and images on every node, and one step of the run."""

import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftae.engine.data.dataset import load_dataset
from ftae.engine.sizing import Probe, probe
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.search.ray.hang_detector import reason_of
from ftae.search.ray.nodes import Node, live_nodes
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store, open_store
from ftae.wording import duration


@dataclass(frozen=True)
class NodeCheck:
    """The fault of the storage and the fault of the images on one node; None where there is none."""

    storage: str | None
    images: str | None


def check_node(search: dict[str, Any], fingerprint: str, token: str, copy: str) -> NodeCheck:
    """On the node: read the file ``token`` from the storage, write it to ``copy``, and load and cache the images."""
    spec = SearchSpec.trusted(search)
    return NodeCheck(_check_storage(spec, token, copy), _check_images(spec, fingerprint))


def _check_storage(spec: SearchSpec, token: str, copy: str) -> str | None:
    try:
        store = open_store(spec.search.storage, spec.name, "worker")
        # Do not write to a disk that is not the driver's.
        if store.read(token) is None:
            return "does not see what the driver wrote there"
        store.write(copy, token.encode())
    except OSError as error:
        return error.strerror or str(error)
    except FtaeError as error:
        return str(error)
    return None


def _check_images(spec: SearchSpec, fingerprint: str) -> str | None:
    try:
        load_dataset(spec.finetune.data.model_copy(update={"fingerprint": fingerprint}))
    except (FtaeError, OSError) as error:
        return str(error)
    return None


SILENT_SECONDS = 10.0  # of waiting, before the first message
NOTIFY_SECONDS = 60.0  # between two messages while waiting
T = TypeVar("T")
Notify = Callable[[str], None]
Part = Literal["code", "storage", "images"]


@dataclass(frozen=True)
class Fault:
    """What a node cannot use, why, and which node it is."""

    part: Part
    reason: str
    node: Node


def check_nodes(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], notify: Notify) -> None:
    """Have every node read and write the storage, and load the images into its cache.

    Raises:
        FtaeError: some nodes cannot, or have other images than those of ``fingerprint``. The message names the
            nodes, the reasons and what to do.
    """
    try:
        faults = _faults(spec, store, fingerprint, nodes, notify)
    except OSError as error:
        raise FtaeError(f"search.storage: {store} cannot be used from here: {error.strerror or error}") from error
    live = {node.id for node in live_nodes()}
    if remaining := [fault for fault in faults if fault.node.id in live]:
        raise FtaeError(_message(remaining, store))


def _faults(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], notify: Notify) -> list[Fault]:
    token = f".preflight-{uuid.uuid4().hex}"
    copies = {node.id: f"{token}.{number}" for number, node in enumerate(nodes)}
    store.write(token, token.encode())
    try:
        search, faults = spec.model_dump(mode="json"), []
        tasks = {_on(node, check_node).remote(search, fingerprint, token, copies[node.id]): node for node in nodes}
        for node, check in results(tasks, "the nodes check storage and images", notify):
            faults += [Fault(part, why, node) for part, why in _faults_of(check, store, token, copies[node.id])]
        return faults
    finally:
        for file in (token, *copies.values()):
            store.remove(file)


def _faults_of(check: NodeCheck | RayError, store: Store, token: str, copy: str) -> Iterator[tuple[Part, str]]:
    if isinstance(check, RayError):
        yield "code", reason_of(check)
        return
    if check.storage is not None:
        yield "storage", check.storage
    elif store.read(copy) != token.encode():
        yield "storage", "the driver does not see the file that the node wrote there"
    if check.images is not None:
        yield "images", check.images


def _message(faults: Sequence[Fault], store: Store) -> str:
    """One line per part, with the nodes grouped by their reasons."""
    parts: dict[Part, tuple[str, str]] = {
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
    for part, (rule, advice) in parts.items():
        nodes: dict[str, list[str]] = {}
        for fault in faults:
            if fault.part == part:
                nodes.setdefault(fault.reason, []).append(fault.node.name)
        if nodes:
            where = "; ".join(f"on {', '.join(names)}: {reason}" for reason, names in nodes.items())
            lines.append(f"{rule} {where}. {advice}")
    return "\n".join(lines)


def _on(node: Node, function: Callable[..., Any]) -> Any:
    """``function`` as a task that runs on ``node`` and takes none of the resources there."""
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)


def results(tasks: Mapping[ObjectRef[Any], T], doing: str, notify: Notify) -> Iterator[tuple[T, Any]]:
    """The result of each task, or the RayError that ended it. Calls ``notify`` with ``doing`` while that takes long."""
    pending, start, seconds = list(tasks), time.monotonic(), SILENT_SECONDS
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=seconds)
            for task in done:
                yield tasks[task], _result(task)
            if pending:
                notify(f"preflight: {doing}, {duration(time.monotonic() - start)} so far")
                seconds = NOTIFY_SECONDS
    finally:
        for task in pending:
            ray.cancel(task)


def _result(task: ObjectRef[Any]) -> Any:
    try:
        return ray.get(task)
    except RayError as error:
        return error


ADVICE: dict[str, str] = {
    Reason.OUT_OF_MEMORY: "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    Reason.NON_FINITE_LOSS: "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    Reason.NON_FINITE_GRADIENT: "lower finetune.optimizer.lr, set finetune.max_grad_norm, "
    "or finetune.precision to fp32",
    Reason.POSTERIOR_COLLAPSE: "lower finetune.losses.kl",
    Reason.CODEBOOK_COLLAPSE: "lower finetune.optimizer.lr",
    Reason.MODE_COLLAPSE: "lower finetune.optimizer.lr and finetune.discriminator.lr, or raise its r1",
    Reason.LOST_RECALL: "lower finetune.optimizer.lr and finetune.discriminator.lr, or raise its r1",
    Reason.BLOW_UP: "lower finetune.discriminator.lr and its r1 and lecam, or finetune.losses.adversarial",
}

LOST = "a worker that is killed has most often run out of memory: lower finetune.batch_size or search.max_concurrent"


def dry_run(spec: SearchSpec, fingerprint: str, notify: Callable[[str], None]) -> Probe:
    """Have a worker measure one step of the file's own configuration.

    A worker or node that is lost meanwhile counts as one of ``search.max_failures``. Calls ``notify`` with each loss,
    and while the result takes long.

    Raises:
        FtaeError: the step fails, or too many workers are lost; the message says why, and what to do.
    """
    resources = spec.search.resources
    task = ray.remote(dry_run_step).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)
    doing = "a worker tries a step of the file's own configuration, or waits for room"
    for left in range(spec.search.max_failures, -1, -1):
        asked = {task.remote(spec.model_dump(mode="json"), fingerprint): None}
        [(_, found)] = results(asked, doing, notify)
        if isinstance(found, Probe):
            return found
        if not isinstance(found, RayError):
            raise _failed(found)
        if isinstance(found, RayTaskError):
            raise _failed(reason_of(found))
        if left:
            notify(f"preflight: the worker that tried a step was lost ({reason_of(found)}); another one tries it")
    raise _failed(f"its worker was lost ({reason_of(found)}); {LOST}")


def dry_run_step(search: dict[str, Any], fingerprint: str) -> Probe | str:
    """On the worker: measure one step of the share of one worker; returns the reason if the step fails."""
    spec = SearchSpec.trusted(search)
    run = spec.trial_spec({})
    data = run.data.model_copy(update={"fingerprint": fingerprint})
    batch_size = run.batch_size // spec.search.resources.workers
    try:
        return probe(run.model_copy(update={"data": data, "batch_size": batch_size}))
    except TrainingFailed as failure:
        advice = ADVICE.get(failure.reason)
        if failure.step == 0 and failure.reason == Reason.NON_FINITE_LOSS:  # of the untuned model
            advice = f"check the weights (finetune.model.pretrained: {run.model.pretrained}), or set precision to fp32"
        return f"on {platform.node()}: {failure}" + (f"; {advice}" if advice else "")
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"


def _failed(why: str) -> FtaeError:
    return FtaeError(f"a step of the file's own configuration was tried and failed: {why}")
