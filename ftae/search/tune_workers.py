"""How Tune comes by its workers, where it would start more of them than it needs, or start them later; and what it
would do again and again for nothing.

Private parts: ray is pinned, tests/search/test_tune_workers.py holds them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import ray
from ray import tune
from ray.air._internal import usage
from ray.air.execution import FixedResourceManager
from ray.tune import registry
from ray.tune.execution import tune_controller
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import trial as tune_trial

from ftae.search.nodes import bundle
from ftae.search.own_node import replace
from ftae.specs.resources import Resources


def placement(resources: Resources) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: a bundle for each worker, on one node where that is possible."""
    return tune.PlacementGroupFactory([bundle(resources)] * resources.workers, strategy="PACK")


@contextmanager
def spared(resources: Resources) -> Iterator[None]:
    """Inside, no worker that starts is killed for one that is free, and those of an own cluster are taken as they are.

    Tune gives a free worker to a trial that waits for its own, which it kills; short trials thus keep the second
    worker from ever starting. And it asks for placement groups, whose tasks use up the workers that Ray started in
    advance, and for workers with an environment of their own, which none of those has. A cluster of this process's
    own needs neither: all of it is there from the start, and its workers have inherited the environment. Before it asks
    for any, it imports MLflow to see whether a callback is MLflow's.

    For each trial Tune asks Ray thrice for the function that all trials run; and after each event it works out where a
    snapshot would go, which is written at the end alone.
    """
    with ExitStack() as patches:
        replace(patches, usage, "tag_callbacks", lambda callbacks: False)
        reuse = TuneController._maybe_reuse_cached_actor
        replace(patches, TuneController, "_maybe_reuse_cached_actor", _unless_one_starts(reuse))
        replace(patches, tune_trial, "validate_trainable", cache(registry.validate_trainable))
        replace(patches, tune_trial, "get_trainable_cls", cache(registry.get_trainable_cls))
        replace(patches, TuneController, "checkpoint", _if_forced(TuneController.checkpoint))
        if "RAY_ADDRESS" not in os.environ and resources.workers == 1:
            replace(patches, _ActorClassCache, "get", _remote_class)
            replace(patches, tune_controller, "PlacementGroupResourceManager", FixedResourceManager)
        yield


def _unless_one_starts(reuse: Callable[..., bool]) -> Callable[..., bool]:
    def maybe_reuse(controller: TuneController, trial: Any) -> bool:
        starting = trial in controller._trial_to_actor and trial not in controller._resetting_trials
        return not starting and reuse(controller, trial)

    return maybe_reuse


def _if_forced(write: Callable[..., None]) -> Callable[..., None]:
    def checkpoint(controller: TuneController, force: bool = False, wait: bool = False) -> None:
        if force:
            write(controller, force=force, wait=wait)

    return checkpoint


def _remote_class(classes: _ActorClassCache, trainable: Any) -> Any:
    if trainable not in classes._cache:
        classes._cache[trainable] = ray.remote(trainable)
    return classes._cache[trainable]
