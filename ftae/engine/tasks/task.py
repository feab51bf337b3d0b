"""NetworkInTraining: a network with its optimizer, schedule and average; and the protocol of tasks."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftae.engine.data.batches import Batch
from ftae.engine.models.staged_model import Stage, StagedModel
from ftae.errors import FtaeError, Reason
from ftae.specs.finetune.optimization import Optimizer, Schedule
from ftae.specs.finetune.run import FinetuneSpec


def build_optimizer(model: StagedModel, spec: Optimizer, section: str = "optimizer") -> torch.optim.Optimizer:
    """The optimizer over the trainable stages, with one parameter group per learning-rate multiplier and weight decay.
    ``section``: of the file, for messages.

    The ``multiplier`` of a parameter group is the product of all ``lr_multipliers`` that match the group or the name
    of the stage, or the name of the parameter. Norms and biases (at most one dimension) get no weight decay.

    Raises:
        FtaeError: a multiplier matches no parameter. Parameters that ftae has frozen count as matched, since a search
            may freeze more or fewer stages; those that the module itself has frozen do not.
    """
    _check_multipliers(model, spec.lr_multipliers, section)
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


def _check_multipliers(model: StagedModel, multipliers: dict[str, float], section: str) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    for pattern in multipliers:
        matched = [p for s in model.stages for p in s.parameters() if _matches(pattern, s, names[id(p)])]
        if matched and all(map(model.came_frozen, matched)):
            raise FtaeError(
                f"{section}.lr_multipliers: {pattern!r} has no effect: the module itself has frozen all that it matches"
            )
        if not matched:
            groups = dict.fromkeys(stage.group for stage in model.stages)
            stages = ", ".join(stage.name for stage in model.stages)
            raise FtaeError(
                f"{section}.lr_multipliers: {pattern!r} matches nothing. Groups: {', '.join(groups)}. Stages: {stages}"
            )


MODEL = "model"  # the name of a task's first network: the one that is evaluated and exported
AVERAGE = "average"  # names the files of moving averages


@dataclass(frozen=True)
class Loss:
    """The loss of one network on one batch.

    ``total``: a scalar with a gradient to the weights of the network. ``terms``: scalars by the names that reports
    give them, the total among them. ``numbers``: further values for the reports that are Python floats already.
    """

    total: Tensor
    terms: dict[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)


class NetworkInTraining:
    """One network with its optimizer, learning rate, gradient clipping and moving average.

    Args:
        name: unique within the task. It names the files of the network in a checkpoint.
        model: the network. Frozen parameters are not in the optimizer.
        optimizer: over all parameters that are trained.
        lr_at: optimizer step (from 0) -> base learning rate; every parameter group multiplies it by its
            ``multiplier``, where it has one.
        max_grad_norm: the norm to which larger gradients are scaled down; None for no clipping.
        average: the moving average of the weights; None for none.
        failures: why a configuration failed whose loss, or whose gradient, is not finite.
        saved: the part of the model that checkpoints keep; by default the whole model.
    """

    def __init__(
        self,
        name: str,
        model: StagedModel,
        optimizer: torch.optim.Optimizer,
        lr_at: Callable[[int], float],
        *,
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
        failures: tuple[Reason, Reason] = (Reason.NON_FINITE_LOSS, Reason.NON_FINITE_GRADIENT),
        saved: nn.Module | None = None,
    ) -> None:
        self.name, self.model, self.optimizer, self.average = name, model, optimizer, average
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.lr = 0.0  # the base learning rate of the last step
        self.loss_failure, self.gradient_failure = failures
        self._lr_at, self._max_grad_norm = lr_at, max_grad_norm
        self._saved = saved or model

    def begin_step(self) -> None:
        """Prepare for the forward passes of an optimizer step: training mode, no gradients left from before."""
        if not self.model.training:  # setting the mode of every module in every step would cost as much as a layer
            self.model.train()
            for parameter in self.parameters:
                parameter.requires_grad_(True)
        for parameter in self.parameters:
            parameter.grad = None

    def rest(self) -> None:
        """Until the next ``begin_step``, take part in the losses of other networks without changing: eval mode, and
        gradients pass through the network but do not reach its weights."""
        self.model.eval()
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def grad_norm(self) -> Tensor:
        """The norm of the whole gradient, a scalar."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def take_step(self, step: int, norm: float) -> None:
        """Clip the gradient, whose norm is ``norm``, take optimizer step ``step`` (from 0) and update the average."""
        limit = self._max_grad_norm
        if limit is not None and norm + 1e-6 > 0.999 * limit:  # otherwise PyTorch would multiply by 1
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, torch.tensor(norm))
        self.lr = self._lr_at(step)
        set_lr(self.optimizer, self.lr)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the network carries its averaged weights, if it has an average."""
        return nullcontext() if self.average is None else self.average.applied()

    # ----------------------------------------------------------------------------------------------- state

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors to save, by the name of the file that takes them."""
        found = {self.name: self._saved.state_dict()}
        if self.average is not None:
            found[self.averages_file] = self.average.weights
        return found

    def load(self, read: Callable[[str], dict[str, Tensor]], optimizer: dict[str, Any]) -> None:
        """Restore everything in place. ``read``: file name -> the tensors that ``tensors`` gave under that name."""
        self._saved.load_state_dict(read(self.name))
        if self.average is not None:
            self.average.load(read(self.averages_file))
        self.optimizer.load_state_dict(optimizer)

    @property
    def averages_file(self) -> str:
        return AVERAGE if self.name == MODEL else f"{self.name}_{AVERAGE}"


class Task(Protocol):
    """What one training step does with the networks of a run.

    In every step each network takes its turn, in the order of ``networks``: its loss is computed and differentiated
    on ``grad_accumulation`` batches, then it takes one optimizer step. All turns of a step see the same batches, so
    a network may learn from what an earlier one made of them. The first network is ``MODEL``.
    """

    networks: Sequence[NetworkInTraining]

    def is_due(self, network: NetworkInTraining, step: int) -> bool:
        """Whether ``network`` takes its turn in ``step``."""

    def loss(self, network: NetworkInTraining, batch: Batch, step: int) -> Loss:
        """Run what ``network`` needs for its loss on ``batch``.

        Raises:
            FtaeError: the loss depends on nothing that is trained.
        """

    def stepped(self, network: NetworkInTraining, parts: list[dict[str, float]], grad_norm: float) -> dict[str, float]:
        """Take note of a step that ``network`` has taken; returns what reports say of the step as a whole.

        ``parts``: the terms of the loss on every batch; a value for the step replaces the terms of the same name.
        ``grad_norm``: the norm of the gradient before clipping.
        """

    def judge(self, images: Tensor) -> Tensor | None:
        """How real some images (B, C, H, W) in [0, 1] look to a discriminator: logits (B,); None without one."""

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Replace the forward pass by ``wrapper`` of it, which averages gradients over several processes."""

    @staticmethod
    def why_one_worker(workers: int) -> str | None:
        """Why ``workers`` (2 or more) processes cannot train a run of this kind together; None if they can."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the networks and their optimizers: tensors and plain values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave, in place."""
