"""What runs in a worker: one trial, a thin wrapper of the engine's generator, and the workers that follow it."""

import gc
import json
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

from ftae.engine.data.dataset import ImagesChanged
from ftae.engine.process import give_back_freed_memory, keep_freed_memory
from ftae.engine.run_folder import CHECKPOINTS
from ftae.engine.training.checkpoint import EvalReport, usable_checkpoint
from ftae.engine.training.distributed import ALONE, Follower, Group, leading
from ftae.engine.training.loop import finetune, follow
from ftae.engine.training.model_reuse import ModelReuse
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.results.search_record import trial_folder
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.search import SearchSpec
from ftae.specs.search.settings import Resources
from ftae.storage.retry import StorageRetry
from ftae.storage.store import Store, open_store


@contextmanager
def followers(spec: FinetuneSpec, resources: Resources) -> Iterator[Group]:
    """This process, a trial's, as the first of its workers; the others are there until the block is left."""
    if resources.workers == 1:
        yield ALONE
        return
    with leading(resources.workers, _host(), lambda leader: _Actors(spec, resources, leader)) as group:
        yield group


class _Actors:
    """The workers of ranks 1 and above. Ray ends them, too, when the trial's own process is gone."""

    def __init__(self, spec: FinetuneSpec, resources: Resources, leader: tuple[str, int]) -> None:
        self._actors: list[ActorHandle[_Worker]] = []
        self._running: list[ObjectRef[None]] = []
        self._failures: list[Exception] = []
        group = get_current_placement_group()
        assert group is not None
        for rank in range(1, resources.workers):
            place = PlacementGroupSchedulingStrategy(group, rank)
            options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "scheduling_strategy": place}
            actor: Any = ray.remote(_Worker).options(**options).remote()
            self._actors.append(actor)
            self._running.append(actor.follow.remote(spec.model_dump(mode="json"), rank, resources.workers, leader))

    def failures(self) -> list[Exception]:
        ended, self._running = ray.wait(self._running, timeout=0.0 if self._failures else None)
        self._failures += [_failure(end) for end in ended]
        return self._failures

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class _Worker:
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


MODEL_REUSE = ModelReuse()  # a worker runs one trial after the other


def run_trial(config: dict[str, Any], *, search: dict[str, Any], fingerprint: str) -> None:
    """Tune's function trainable. ``config``: number, kind, params and changes of the trial.

    Everything a report names is in the storage before it is reported, since Tune may end the function
    inside any report. Faults of the params, of the user and of the storage are said, not raised: only a
    fault of the machine may raise, and the trial is tried again.
    """
    _free_memory()
    keep_freed_memory()
    spec = SearchSpec.trusted(search)
    store = open_store(spec.search.storage, spec.name, "worker")
    try:
        _Trial(config, spec, store, fingerprint).run()
    except TrainingFailed as failure:
        _notify({"diverged": str(failure)})
    except ImagesChanged as error:
        _notify({"storage": str(error)})
    except FtaeError as error:
        _notify({"failed": str(error)})
    except OSError as error:
        _notify({"storage": f"trial {config['number']} cannot use its files: {error}"})
    finally:
        store.release(trial_folder(config["number"]))


def _pinned(spec: FinetuneSpec, fingerprint: str) -> FinetuneSpec:
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})


class _Trial:
    def __init__(self, config: dict[str, Any], search: SearchSpec, store: Store, fingerprint: str) -> None:
        self._search, self._store, self._fingerprint = search, store, fingerprint
        self._settings: dict[str, Any] = config["params"] | config["changes"]
        self._adapted = bool(config["changes"])
        self._below = trial_folder(config["number"])
        self._started = False
        self._told = set[str]()  # of damaged checkpoints
        self._patience = StorageRetry(_note)

    def run(self) -> None:
        """Train to the end, again from the newest checkpoint after each fault that time or less memory mends."""
        self._store.release(self._below)  # a killed worker's, maybe of an earlier search of this name
        while True:
            try:
                return self._train()
            except OSError as error:
                self._patience.failed(error)
            except TrainingFailed as failure:
                if failure.reason != Reason.OUT_OF_MEMORY:
                    raise
                MODEL_REUSE.forget()
                if not self._adapt(failure):
                    raise
            _free_memory()

    def _train(self) -> None:
        spec, workdir = self._spec(), self._store.fetch(self._below)
        checkpoint = usable_checkpoint(workdir, self._tell_once)
        kept = -1 if checkpoint is None else int(checkpoint.name[5:])
        if not self._started:
            _notify({"start": _whereabouts() | {"step": max(0, kept)}})
            self._started = True
        with followers(spec, self._search.search.resources) as group:
            for report in finetune(spec, workdir, resume_from=checkpoint, group=group, reuse=MODEL_REUSE):
                self._publish(report)
                if report.step > kept:  # else it is repeated, and nothing was written
                    self._patience.succeeded()
                _notify({"report": vars(report)})

    def _tell_once(self, text: str) -> None:
        """A damaged checkpoint stays until it is written anew: each try before that finds it again."""
        if text not in self._told:
            self._told.add(text)
            _note(text)

    def _spec(self) -> FinetuneSpec:
        return _pinned(self._search.trial_spec(self._settings), self._fingerprint)

    def _publish(self, report: EvalReport) -> None:
        self._store.push(f"{self._below}/{report.images}")
        if report.checkpoint is not None:
            self._store.push(f"{self._below}/{report.checkpoint}")
        folder = f"{self._below}/{CHECKPOINTS}"
        here = self._store.folder / folder
        for name in self._store.names(folder):
            if not (here / name).exists():
                self._store.remove(f"{folder}/{name}")

    def _adapt(self, failure: TrainingFailed) -> bool:
        """Halve the batch and accumulate twice as often, once; whether that can be done."""
        spec = self._spec()
        if self._adapted or spec.batch_size % (2 * self._search.search.resources.workers):
            return False
        changes = {"batch_size": spec.batch_size // 2, "grad_accumulation": 2 * spec.grad_accumulation}
        reason = f"{failure}; goes on with a batch of {changes['batch_size']} x {changes['grad_accumulation']}"
        _notify({"adapt": {"changes": changes, "reason": reason}})
        self._settings, self._adapted = self._settings | changes, True
        return True


def _whereabouts() -> dict[str, Any]:
    return {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}


def _note(text: str) -> None:
    _notify({"note": text})


def _notify(message: dict[str, Any]) -> None:
    # As JSON: Tune flattens nested results with the "/" that metric names contain.
    tune.report({"message": json.dumps(message)})


def _free_memory() -> None:
    """A reused worker still holds what the trial before it left, or the try that ran out of memory."""
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
