"""What workers try before the first trial: storage and images on every node, and one step of the run."""

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
from ftae.engine.sizing.probe import Probe, probe
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.search.ray.nodes import Node, live_nodes
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store, open_store
from ftae.wording import duration


@dataclass(frozen=True)
class NodeCheck:
    """What is wrong with the storage and with the images; None where nothing is."""

    storage: str | None
    images: str | None


def look(search: dict[str, Any], fingerprint: str, token: str, below: str) -> NodeCheck:
    """Find ``token`` in the storage, leave it at ``below`` too, and load the images, which also caches them here."""
    spec = SearchSpec.trusted(search)
    return NodeCheck(_storage(spec, token, below), _images(spec, fingerprint))


def _storage(spec: SearchSpec, token: str, below: str) -> str | None:
    try:
        store = open_store(spec.search.storage, spec.name, "worker")
        # Nothing is written where another disk than the driver's would take it.
        if store.read(token) is None:
            return "does not see what the driver wrote there"
        store.write(below, token.encode())
    except OSError as error:
        return error.strerror or str(error)
    except FtaeError as error:
        return str(error)
    return None


def _images(spec: SearchSpec, fingerprint: str) -> str | None:
    try:
        load_dataset(spec.finetune.data.model_copy(update={"fingerprint": fingerprint}))
    except (FtaeError, OSError) as error:
        return str(error)
    return None


SILENT_SECONDS = 10.0  # of waiting without a word

SAY_SECONDS = 60.0  # between two words of waiting

T = TypeVar("T")

Notify = Callable[[str], None]

What = Literal["code", "storage", "images"]

Fault = tuple[What, str, Node]  # what, why, and where


def check_nodes(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], notify: Notify) -> None:
    """Have every node read and write the storage, and load the images, which it then has in its cache.

    Raises:
        FtaeError: some cannot, or have other images than those of ``fingerprint``: which, why, and what to do.
    """
    try:
        faults = _looked(spec, store, fingerprint, nodes, notify)
    except OSError as error:
        raise FtaeError(f"search.storage: {store} cannot be used from here: {error.strerror or error}") from error
    live = {node.id for node in live_nodes()}
    if remaining := [fault for fault in faults if fault[2].id in live]:
        raise FtaeError(_told(remaining, store))


def _looked(spec: SearchSpec, store: Store, fingerprint: str, nodes: Sequence[Node], notify: Notify) -> list[Fault]:
    token = f".preflight-{uuid.uuid4().hex}"
    left = {node.id: f"{token}.{number}" for number, node in enumerate(nodes)}
    store.write(token, token.encode())
    try:
        search, faults = spec.model_dump(mode="json"), []
        tasks = {_on(node, look).remote(search, fingerprint, token, left[node.id]): node for node in nodes}
        for node, seen in results(tasks, "the nodes look at storage and images", notify):
            faults += [(what, why, node) for what, why in _faults(seen, store, token, left[node.id])]
        return faults
    finally:
        for below in (token, *left.values()):
            store.remove(below)


def _faults(seen: NodeCheck | RayError, store: Store, token: str, left: str) -> Iterator[tuple[What, str]]:
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


def results(tasks: Mapping[ObjectRef[Any], T], doing: str, notify: Notify) -> Iterator[tuple[T, Any]]:
    """What each task returned, or the RayError that ended it; ``notify`` is told ``doing`` while that takes long."""
    pending, start, patience = list(tasks), time.monotonic(), SILENT_SECONDS
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=patience)
            for task in done:
                yield tasks[task], _result(task)
            if pending:
                notify(f"preflight: {doing}, {duration(time.monotonic() - start)} so far")
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


ADVICE: dict[str, str] = {
    Reason.OUT_OF_MEMORY: "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    Reason.NON_FINITE_LOSS: "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    Reason.NON_FINITE_GRADIENT: "lower finetune.optimizer.lr, set finetune.max_grad_norm, "
    "or finetune.precision to fp32",
    Reason.POSTERIOR_COLLAPSE: "lower finetune.losses.kl",
    Reason.CODEBOOK_COLLAPSE: "lower finetune.optimizer.lr",
    Reason.BLOW_UP: "lower finetune.discriminator.lr and its r1 and lecam, or finetune.losses.adversarial",
}

LOST = "a worker that is killed is most often short of memory: lower finetune.batch_size or search.max_concurrent"


def dry_run(spec: SearchSpec, fingerprint: str, notify: Callable[[str], None]) -> Probe:
    """What a step of the file's own configuration takes of a trial's worker.

    A worker or node that is lost over it costs one of ``search.max_failures``. ``notify`` is told of that, and of long
    waits.

    Raises:
        FtaeError: the step fails, or one worker after the other is lost: why, and what to do.
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
    """The worker's side: what it took for its share of the configuration; or why that cannot be run."""
    spec = SearchSpec.trusted(search)
    run = spec.trial_spec({})
    data = run.data.model_copy(update={"fingerprint": fingerprint})
    batch_size = run.batch_size // spec.search.resources.workers
    try:
        return probe(run.model_copy(update={"data": data, "batch_size": batch_size}))
    except TrainingFailed as failure:
        advice = ADVICE.get(failure.reason)
        if failure.step == 0 and failure.reason == Reason.NON_FINITE_LOSS:  # of the model as it was given
            advice = (
                f"look at the weights (finetune.model.pretrained: {run.model.pretrained}), or set precision to fp32"
            )
        return f"on {platform.node()}: {failure}" + (f"; {advice}" if advice else "")
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"


def _failed(why: str) -> FtaeError:
    return FtaeError(f"a step of the file's own configuration was tried and failed: {why}")
