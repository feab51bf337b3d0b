"""Settings that have an effect only where another setting allows it, and what that means for the params of a trial."""

from collections.abc import Mapping
from typing import Any

from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.roles import Governed, roles_below

# The governed settings by path, each a leaf of finetune or a section.
CONDITIONS: dict[str, Governed] = roles_below(FinetuneSpec, Governed)


def covers(setting: str, path: str) -> bool:
    """Whether ``path`` is ``setting`` or lies below it."""
    return path == setting or path.startswith(f"{setting}.")


def conditions_of(path: str) -> list[Governed]:
    """Everything that must hold for the leaf at ``path`` to have an effect, conditions of its governors included."""
    direct = [condition for setting, condition in CONDITIONS.items() if covers(setting, path)]
    return direct + [further for condition in direct for further in conditions_of(condition.governor)]


def has_effect(run: Spec, path: str, values: Mapping[str, Any]) -> bool:
    """Whether the leaf at ``path`` has an effect in ``run`` with the leaves of ``values`` replaced."""
    conditions = conditions_of(path)
    return all(c.holds(values[c.governor] if c.governor in values else c.governing(run)) for c in conditions)


def drop_inactive(run: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without those that have no effect beside the others.

    Settings that ``values`` leave without effect go back to their defaults, which every value of a governor accepts.
    """
    result = {path: value for path, value in values.items() if has_effect(run, path, values)}
    for setting in CONDITIONS:
        touched = any(c.governor in values for c in conditions_of(setting))
        if touched and not has_effect(run, setting, values):
            result[setting] = default_of(run, setting)
    return result


def default_of(run: Spec, setting: str) -> Any:
    """The value of a setting that a file leaves out; a section as a dict."""
    *sections, name = setting.split(".")
    holder: Any = run
    for section in sections:
        holder = getattr(holder, section)
    default = type(holder).model_fields[name].default
    return default.model_dump() if isinstance(default, Spec) else default
