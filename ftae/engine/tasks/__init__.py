"""TASKS: what a training step does with the networks; a task is one entry of the table."""

from typing import Any

import torch

from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.autoencoder import Autoencoder, NoiseFn
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.tasks.adversarial import Adversarial
from ftae.engine.tasks.cycle import Cycle
from ftae.engine.tasks.reconstruct import Reconstruct
from ftae.engine.tasks.synthesise import Synthesise
from ftae.engine.tasks.task import Task
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

TASKS: dict[str, type[Reconstruct]] = {
    "reconstruct": Reconstruct,
    "adversarial": Adversarial,
    "synthesise": Synthesise,
    "cycle": Cycle,
}


def task_kind(spec: FinetuneSpec) -> str:
    """The key in ``TASKS`` of the task of a run."""
    if spec.model.takes_noise:
        return "synthesise"
    if spec.model.both_ways:
        return "cycle"
    return "adversarial" if spec.losses.adversarial > 0.0 else "reconstruct"


def build_task(
    spec: FinetuneSpec,
    autoencoder: Autoencoder,
    auxiliary: AuxiliaryNetworks,
    frozen_cache: FrozenFeatureCache,
    *,
    noise: NoiseFn = torch.randn_like,
    averaged: bool = True,
) -> Task:
    """The task of a run, with all its networks ready for training. Arguments as for ``Reconstruct``.

    Raises:
        FtaeError: a learning-rate multiplier matches nothing, or the weights of a further network do not load.
    """
    return TASKS[task_kind(spec)](spec, autoencoder, auxiliary, frozen_cache, noise=noise, averaged=averaged)


def check_workers(spec: FinetuneSpec, workers: int) -> None:
    """Refuse several workers for a task that one process alone can train.

    Raises:
        FtaeError: the task of ``spec`` is one.
    """
    if workers > 1 and (reason := TASKS[task_kind(spec)].why_one_worker(workers)):
        raise FtaeError(reason)


def read_state(content: dict[str, Any]) -> dict[str, Any]:
    """The training state of a checkpoint in today's form; format 1 knew two networks by name."""
    if "optimizers" in content:
        return content
    optimizers, state = {"model": content["optimizer"]}, {}
    if "adversary" in content:
        optimizers["discriminator"] = content["adversary"]["optimizer"]
        state = {"logit_averages": content["adversary"]["averages"]}
    return {"optimizers": optimizers, "task": state, "rng": content["rng"]}
