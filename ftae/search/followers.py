"""The workers of a trial but the first: actors beside it, in its own placement group."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util import get_node_ip_address
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ftae.engine.freed_memory import keep_freed_memory
from ftae.engine.loop import follow
from ftae.engine.parallel import ALONE, Follower, Group, leading
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.resources import Resources


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
