"""Parameter groups, optimizers, the learning-rate schedule and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec, Optimizer, Schedule


def build_optimizer(model: StagedModel, spec: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over the trainable stages, with one parameter group per learning-rate multiplier and weight decay.

    The ``multiplier`` of a parameter group is the product of all ``lr_multipliers`` that match the group or the name
    of the stage, or the name of the parameter. Norms and biases (at most one dimension) get no weight decay.

    Raises:
        FtaeError: a multiplier matches no parameter. Parameters that ftae has frozen count as matched, since a search
            may freeze more or fewer stages; those that the module itself has frozen do not.
    """
    _check_multipliers(model, spec.lr_multipliers)
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for stage in model.trainable_stages():
        for parameter in stage.parameters():
            if parameter.requires_grad:
                multiplier = math.prod(
                    factor
                    for pattern, factor in spec.lr_multipliers.items()
                    if _matches(pattern, stage, names[id(parameter)])
                )
                decay = spec.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((multiplier, decay), []).append(parameter)
    param_groups = [
        {"params": parameters, "lr": spec.lr * multiplier, "multiplier": multiplier, "weight_decay": decay}
        for (multiplier, decay), parameters in groups.items()
    ]
    if spec.name == "sgd":
        return torch.optim.SGD(param_groups, momentum=spec.momentum or 0.0, fused=True)
    betas = spec.betas or (0.9, 0.999)
    if spec.name == "radam":
        return torch.optim.RAdam(param_groups, betas=betas)
    adam = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return adam(param_groups, betas=betas, fused=True)


def lr_factor(schedule: Schedule, progress: float) -> float:
    """The factor of the learning rate at ``progress`` (0..1) of the budget.

    Linear warm-up from 0 to 1 over ``warmup_fraction``; then, over the rest, constant, linear or cosine (Loshchilov &
    Hutter 2017) decay to ``final_fraction``, or ``num_cycles`` triangular cycles (Smith 2017), the first of which
    begins at its peak, where the warm-up ends.
    """
    if progress < schedule.warmup_fraction:
        return progress / schedule.warmup_fraction
    rest = (progress - schedule.warmup_fraction) / (1.0 - schedule.warmup_fraction)
    if schedule.name == "constant":
        height = 1.0
    elif schedule.name == "linear":
        height = 1.0 - rest
    elif schedule.name == "cosine":
        height = 0.5 * (1.0 + math.cos(math.pi * rest))
    else:
        height = abs(1.0 - 2.0 * ((rest * (schedule.num_cycles - 0.5)) % 1.0))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * height


def base_lr(spec: FinetuneSpec, step: int) -> float:
    """The learning rate of the run for optimizer step ``step`` (from 0), before multipliers."""
    # At the middle of the step, so that neither the first nor the last rate is 0.
    return spec.optimizer.lr * lr_factor(spec.schedule, (step + 0.5) / spec.max_steps)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group ``lr`` times its ``multiplier``, where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("multiplier", 1.0)


class WeightAverage:
    """Exponential moving average of the trainable parameters; the half-life is in optimizer steps."""

    def __init__(self, model: StagedModel, half_life_steps: float) -> None:
        self.decay = 0.5 ** (1.0 / half_life_steps)
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, average in self.weights.items():
            average.lerp_(self._live[name], 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model carries the averaged weights; afterwards it has its own again."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._live.items():
            parameter.copy_(weights[name])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Restore the average from a checkpoint, in place."""
        assert weights.keys() == self.weights.keys()
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)


def _matches(pattern: str, stage: Stage, parameter_name: str) -> bool:
    return stage.matches(pattern) or fnmatchcase(parameter_name.removeprefix("net."), pattern)


def _check_multipliers(model: StagedModel, multipliers: dict[str, float]) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    for pattern in multipliers:
        matched = [p for s in model.stages for p in s.parameters() if _matches(pattern, s, names[id(p)])]
        if matched and all(map(model.came_frozen, matched)):
            raise FtaeError(
                f"optimizer.lr_multipliers: {pattern!r} has no effect: the module itself has frozen all that it matches"
            )
        if not matched:
            groups = dict.fromkeys(stage.group for stage in model.stages)
            stages = ", ".join(stage.name for stage in model.stages)
            raise FtaeError(
                f"optimizer.lr_multipliers: {pattern!r} matches nothing. Groups: {', '.join(groups)}. Stages: {stages}"
            )
