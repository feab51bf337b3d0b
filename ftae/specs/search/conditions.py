"""Settings that have an effect only where another one is on, and what that means for the params of a trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ftae.specs.finetune.run import OPTIMIZERS_WITH, SCHEDULES_WITH
from ftae.specs.reading.base import Spec


@dataclass(frozen=True)
class Condition:
    """``setting``, a leaf of finetune or a section with all below it, has an effect only where ``governor`` holds.

    ``values``: those of ``governor`` where it does; without any, all that are not off (0, null, false).
    """

    setting: str
    governor: str
    values: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        return value in self.values if self.values else bool(value)

    def governing(self, run: Spec) -> Any:
        """The governor's value in ``run``."""
        return attrgetter(self.governor)(run)

    def covers(self, path: str) -> bool:
        return path == self.setting or path.startswith(f"{self.setting}.")

    def __str__(self) -> str:
        return f"{self.governor} is {' or '.join(map(str, self.values)) or 'on'}"


CONDITIONS = (
    Condition("losses.huber_delta", "losses.huber"),
    Condition("losses.kl_warmup_fraction", "losses.kl"),
    Condition("losses.kl_capacity", "losses.kl"),
    Condition("discriminator", "losses.adversarial"),
    Condition("discriminator.max_adaptive_weight", "discriminator.adaptive"),
    *(Condition(f"schedule.{setting}", "schedule.name", names) for setting, names in SCHEDULES_WITH.items()),
    *(Condition(f"optimizer.{setting}", "optimizer.name", names) for setting, names in OPTIMIZERS_WITH.items()),
)


def conditions_of(path: str) -> list[Condition]:
    """All that must hold for the leaf at ``path`` to have an effect, those of its governors included."""
    direct = [condition for condition in CONDITIONS if condition.covers(path)]
    return direct + [further for condition in direct for further in conditions_of(condition.governor)]


def has_effect(run: Spec, path: str, values: Mapping[str, Any]) -> bool:
    """Whether the leaf at ``path`` has an effect in ``run`` with the leaves of ``values`` replaced."""
    conditions = conditions_of(path)
    return all(c.holds(values[c.governor] if c.governor in values else c.governing(run)) for c in conditions)


def drop_inactive(run: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as a run can have them: what has no effect beside the others is left out, and what they leave
    without effect goes back to its default, which every choice of a governor takes.
    """
    result = {path: value for path, value in values.items() if has_effect(run, path, values)}
    for setting in dict.fromkeys(condition.setting for condition in CONDITIONS):
        touched = any(c.governor in values for c in conditions_of(setting))
        if touched and not has_effect(run, setting, values):
            result[setting] = default_of(run, setting)
    return result


def default_of(run: Spec, setting: str) -> Any:
    """What a setting is where a file does not give it; of a section, as a dict."""
    *sections, name = setting.split(".")
    holder: Any = run
    for section in sections:
        holder = getattr(holder, section)
    default = type(holder).model_fields[name].default
    return default.model_dump() if isinstance(default, Spec) else default
