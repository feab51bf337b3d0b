"""The optimizer and the schedule of a network."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.reading.base import Fraction, Positive, Spec, Weight
from ftae.specs.reading.schema import Governed, roles_in, without_effect

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Optimizer(Spec):
    """Optimizer and learning rates."""

    name: Literal["adamw", "adam", "radam", "sgd"] = "adamw"
    """The optimizer of PyTorch."""
    lr: Annotated[float, Field(gt=0.0)]
    """Peak learning rate."""
    lr_multipliers: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    """Factors on the learning rate by group (``encoder``, ``bottleneck``, ``decoder``, ``head``) or by glob over stage
    and parameter names; where several match, their product counts."""
    weight_decay: Weight = 0.0
    """Weight decay, which never touches norms and biases."""
    betas: Annotated[tuple[Beta, Beta] | None, Governed("optimizer.name", ("adamw", "adam", "radam"))] = None
    """Decay rates of Adam; null takes those of PyTorch."""
    momentum: Annotated[Beta | None, Governed("optimizer.name", ("sgd",))] = None
    """Momentum of SGD; null is none."""

    @field_validator("betas", "momentum")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        if without_effect(cls, value, info) is not None:
            name = info.data["name"]
            takes = [setting for setting, role in roles_in(cls, Governed).items() if role.holds(name)]
            raise ValueError(f"has no effect on {name}, it takes {' and '.join(takes)}")
        return value


class Schedule(Spec):
    """The learning rate over the budget: linear warm-up, then the named curve."""

    name: Literal["constant", "linear", "cosine", "cyclical"] = "constant"
    """The curve; ``cyclical`` is the triangular policy of Smith (2017)."""
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """The share of the budget over which the learning rate first rises."""
    final_fraction: Annotated[Fraction, Governed("schedule.name", ("linear", "cosine", "cyclical"))] = 0.0
    """The share of the peak learning rate that the curve goes down to."""
    num_cycles: Annotated[Positive, Governed("schedule.name", ("cyclical",))] = 3
    """Number of cycles over the budget."""

    @field_validator("final_fraction", "num_cycles")
    @classmethod
    def _setting_has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        if (idle := without_effect(cls, value, info)) is not None:
            raise ValueError(f"has no effect on a {info.data['name']} schedule, it needs {' or '.join(idle.values)}")
        return value
