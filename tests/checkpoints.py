"""States of runs for tests of checkpoints: a task after some steps, and a checkpoint of it."""

from pathlib import Path
from typing import Any

import torch

from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache
from ftae.engine.models.families import build_model
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.tasks import build_task
from ftae.engine.tasks.task import Task
from ftae.engine.training.checkpoint import CheckpointWriter, EvalReport
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec

FILES = ("model.safetensors", "average.safetensors", "training.pt", "report.json", "sha256.json")


def spec_of(**changes: Any) -> FinetuneSpec:
    fields = {"ema_half_life_fraction": 0.5, "max_steps": 4, "metrics": ["mse"], "num_threads": 1}
    return run_spec(**fields | changes)


def report_of(step: int = 2, **changes: Any) -> EvalReport:
    fields = {"metrics": {"val/mse": 0.1}, "timing": {"time/eval_seconds": 1.0}, "images": "images/a.png"}
    return EvalReport(**{"step": step, "checkpoint": f"checkpoints/step-{step:08d}", **fields, **changes})


def task_of(spec: FinetuneSpec, num_steps: int = 0) -> Task:
    """The task of a run after some steps on random gradients."""
    autoencoder = build_model(spec, None)
    task = build_task(spec, autoencoder, AuxiliaryNetworks(), FrozenFeatureCache(autoencoder))
    for step in range(num_steps):
        for network in task.networks:
            for parameter in network.parameters:
                parameter.grad = torch.randn_like(parameter)
            network.take_step(step, network.grad_norm().item())
    return task


def save(folder: Path, spec: FinetuneSpec, task: Task, report: EvalReport | None = None) -> None:
    """Write a checkpoint of the task as it is now."""
    with CheckpointWriter(folder, spec, task) as writer:
        writer.finish(report or report_of(), {"posterior collapse": 3.0})


def flat(value: Any) -> list[Any]:
    """The keys and numbers in nested containers of tensors."""
    if isinstance(value, dict):
        return [x for key in value for x in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in flat(item)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]
