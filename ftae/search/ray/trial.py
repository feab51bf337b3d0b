"""One trial in a worker: the engine's generator, whose reports go to the driver, and the trial's other workers."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray import ObjectRef, tune
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util import get_node_ip_address
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ftae.engine.data.stored_parts import ImagesChanged
from ftae.engine.process import give_back_freed_memory, keep_freed_memory
from ftae.engine.run_folder import CHECKPOINTS
from ftae.engine.training.checkpoint import EvalReport, usable_checkpoint
from ftae.engine.training.distributed import ALONE, Follower, Group, leading
from ftae.engine.training.loop import finetune, follow
from ftae.engine.training.model_reuse import ModelReuse
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.results.search_record import trial_folder
from ftae.search.ray.messages import (
    Adapted,
    Assignment,
    Diverged,
    Failed,
    Message,
    Note,
    Report,
    Start,
    StorageFailed,
    to_json,
)
from ftae.search.ray.nodes import this_node
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.resources import Resources
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import StorageRetry, Store, open_store


@contextmanager
def followers(spec: FinetuneSpec, resources: Resources) -> Iterator[Group]:
    """Inside, the other workers of this trial run; this process is the first one of the group."""
    if resources.workers == 1:
        yield ALONE
        return
    with leading(resources.workers, _host(), lambda leader: _Followers(spec, resources, leader)) as group:
        yield group


class _Followers:
    """The workers of ranks 1 and above. Ray ends them, too, when the process of the trial dies."""

    def __init__(self, spec: FinetuneSpec, resources: Resources, leader: tuple[str, int]) -> None:
        self._actors: list[ActorHandle[_FollowerActor]] = []
        self._running: list[ObjectRef[None]] = []
        self._failures: list[Exception] = []
        group = get_current_placement_group()
        assert group is not None
        for rank in range(1, resources.workers):
            place = PlacementGroupSchedulingStrategy(group, rank)
            options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "scheduling_strategy": place}
            actor: Any = ray.remote(_FollowerActor).options(**options).remote()
            self._actors.append(actor)
            self._running.append(actor.follow.remote(spec.model_dump(mode="json"), rank, resources.workers, leader))

    def failures(self) -> list[Exception]:
        ended, self._running = ray.wait(self._running, timeout=0.0 if self._failures else None)
        self._failures += [_failure(end) for end in ended]
        return self._failures

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class _FollowerActor:
    def follow(self, spec: dict[str, Any], rank: int, size: int, leader: tuple[str, int]) -> None:
        keep_freed_memory()
        follow(FinetuneSpec.model_validate(spec), Follower(rank, size, leader, _host()))


def _failure(end: ObjectRef[None]) -> Exception:
    try:
        ray.get(end)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except RayError as error:
        return error
    raise AssertionError("a follower ended by itself")


def _host() -> str:
    """The address at which other nodes reach this one."""
    return str(get_node_ip_address())  # type: ignore[no-untyped-call]


MODEL_REUSE = ModelReuse()  # for all trials that this worker runs, one after the other


def run_trial(config: dict[str, Any], *, search: dict[str, Any], fingerprint: str) -> None:
    """Tune's function trainable. ``config``: the fields of an ``Assignment``.

    Every file that a report names is in the storage before the report is sent, because Tune may end the function inside
    any report. Faults of the params, of the user and of the storage are sent, not raised: after an exception, which
    only a fault of the machine may raise, Tune starts the trial again.
    """
    _free_memory()
    keep_freed_memory()
    spec, assignment = SearchSpec.trusted(search), Assignment(**config)
    store = open_store(spec.search.storage, spec.name, "worker")
    try:
        _Trial(assignment, spec, store, fingerprint).run()
    except TrainingFailed as failure:
        _send(Diverged(str(failure)))
    except ImagesChanged as error:
        _send(StorageFailed(str(error)))
    except FtaeError as error:
        _send(Failed(str(error)))
    except OSError as error:
        _send(StorageFailed(f"trial {assignment.number} cannot use its files: {error}"))
    finally:
        store.release(trial_folder(assignment.number))


def _pinned(spec: FinetuneSpec, fingerprint: str) -> FinetuneSpec:
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})


class _Trial:
    def __init__(self, assignment: Assignment, search: SearchSpec, store: Store, fingerprint: str) -> None:
        self._search, self._store, self._fingerprint = search, store, fingerprint
        self._settings = assignment.params | assignment.changes
        self._adapted = "batch_size" in assignment.changes
        self._folder = trial_folder(assignment.number)  # below the search
        self._started = False
        self._notes = set[str]()  # about damaged checkpoints
        self._retry = StorageRetry(_note)

    def run(self) -> None:
        """Train to the end; after a fault that time or less memory can cure, continue from the newest checkpoint."""
        self._store.release(self._folder)  # a killed worker left it, maybe in an earlier search of this name
        while True:
            try:
                return self._train()
            except OSError as error:
                self._retry.failed(error)
            except TrainingFailed as failure:
                if failure.reason != Reason.OUT_OF_MEMORY:
                    raise
                MODEL_REUSE.forget()
                if not self._adapt(failure):
                    raise
            _free_memory()

    def _train(self) -> None:
        spec, workdir = self._spec(), self._store.fetch(self._folder)
        checkpoint = usable_checkpoint(workdir, self._note_once)
        kept = -1 if checkpoint is None else int(checkpoint.name[5:])
        if not self._started:
            _send(Start(this_node(), os.getpid(), max(0, kept)))
            self._started = True
        with followers(spec, self._search.search.resources) as group:
            for report in finetune(spec, workdir, resume_from=checkpoint, group=group, reuse=MODEL_REUSE):
                self._publish(report)
                if report.step > kept:  # a repeated report has written nothing
                    self._retry.succeeded()
                _send(Report(**vars(report)))

    def _note_once(self, text: str) -> None:
        """Every try finds a damaged checkpoint again, until the trial has written a new one."""
        if text not in self._notes:
            self._notes.add(text)
            _note(text)

    def _spec(self) -> FinetuneSpec:
        return _pinned(self._search.trial_spec(self._settings), self._fingerprint)

    def _publish(self, report: EvalReport) -> None:
        """Store the report's files, and remove the checkpoints that the run has removed on this machine."""
        self._store.push(f"{self._folder}/{report.images}")
        if report.checkpoint is not None:
            self._store.push(f"{self._folder}/{report.checkpoint}")
        folder = f"{self._folder}/{CHECKPOINTS}"
        for name in self._store.names(folder):
            if not (self._store.folder / folder / name).exists():
                self._store.remove(f"{folder}/{name}")

    def _adapt(self, failure: TrainingFailed) -> bool:
        """Compute activations again, or else halve the batch and accumulate twice as often.

        Returns False if both were done before, or are not possible.
        """
        changes: dict[str, Any] = {"checkpoint_stages": True}
        how, spec = "checkpoint_stages", self._spec()
        if spec.checkpoint_stages != "auto":
            if self._adapted or spec.batch_size % (2 * self._search.search.resources.workers):
                return False
            changes = {"batch_size": spec.batch_size // 2, "grad_accumulation": 2 * spec.grad_accumulation}
            how = f"a batch of {changes['batch_size']} x {changes['grad_accumulation']}"
            self._adapted = True
        _send(Adapted(changes, f"{failure}; continues with {how}"))
        self._settings |= changes
        return True


def _note(text: str) -> None:
    _send(Note(text))


def _send(message: Message) -> None:
    # As text: Tune flattens nested results with "/", which metric names contain.
    tune.report({"message": to_json(message)})


def _free_memory() -> None:
    """Free what the trial before, or the try that ran out of memory, has left in this worker."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
