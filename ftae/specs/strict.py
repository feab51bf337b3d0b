"""What pydantic would take without a word and no file means: true for a number, an address with a secret in it.

Such a value is replaced by one that no field takes, so that the fault is found where the value stands, with all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from ftae.specs.addresses import secret_problem
from ftae.specs.schema import children


@dataclass(frozen=True)
class Truth:
    """Stands for true or false where a number belongs."""

    value: bool

    def __repr__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True, repr=False)
class Secret:
    """Stands for an address that may hold a secret, which no message is to repeat."""

    rule: str


DOUBTFUL = (bool, str, dict, list, tuple)


def strictly(kinds: Sequence[Any], value: Any) -> Any:
    """``value`` with what none of ``kinds`` may take replaced."""
    if not isinstance(value, DOUBTFUL):
        return value
    if isinstance(value, bool):
        return Truth(value) if (float in kinds or int in kinds) and bool not in kinds else value
    if isinstance(value, str):
        may_be_address = ":" in value or "%" in value
        return Secret(rule) if may_be_address and (rule := secret_problem(value)) is not None else value
    if isinstance(value, dict):
        return {key: _inside(kinds, key, item) for key, item in value.items()}
    return type(value)([_inside(kinds, i, item) for i, item in enumerate(value)])


def _inside(kinds: Sequence[Any], part: Any, item: Any) -> Any:
    if not isinstance(item, DOUBTFUL):
        return item
    holder = next((kind for kind in kinds if get_origin(kind) in (dict, list, tuple)), None)
    return strictly([] if holder is None else children(holder, part), item)
