"""Roles: what a field of a file is for, stated at the field itself.

    max_steps: Annotated[Positive, TrainingOnly(), MayDiffer()]

Code that treats some fields differently asks for their roles; it knows no field by name. A field without a role gets
the most careful treatment: it may be searched, it is part of the question that a search asks, it must stay the same
when a run is resumed, and the untuned model is measured again wherever it differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import BaseModel

from ftae.specs.reading.schema import alternatives, model_of


@dataclass(frozen=True)
class Role:
    """The base class of all roles; an instance stands in the ``Annotated`` of a field."""


@dataclass(frozen=True)
class Governed(Role):
    """The field, with all fields below it, has an effect only where another leaf of the run allows that.

    ``governor`` is the path of that leaf. ``values`` are those that allow it; without any, every value does that is
    not off (0, null, false).
    """

    governor: str
    values: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the field has an effect where the governor has this value."""
        return value in self.values if self.values else bool(value)

    def governing(self, run: BaseModel) -> Any:
        """The governor's value in ``run``."""
        return attrgetter(self.governor)(run)

    def __str__(self) -> str:
        return f"{self.governor} is {' or '.join(map(str, self.values)) or 'on'}"


@dataclass(frozen=True)
class Joint(Role):
    """A validator compares the field with others of the same ``group``, so they are tried together in a search."""

    group: str


@dataclass(frozen=True)
class NotSearched(Role):
    """The field has the same value in every trial; ``reason`` completes "cannot be searched: ..."."""

    reason: str


@dataclass(frozen=True)
class Means(Role):
    """The field says how a search or run is carried out, not what is asked: no result depends on it.

    It may differ when a search or run is resumed, and it cannot be searched.
    """


@dataclass(frozen=True)
class MayDiffer(Role):
    """A training run may be resumed with another value."""


@dataclass(frozen=True)
class TrainingOnly(Role):
    """No evaluation of the untuned model depends on the field."""


@dataclass(frozen=True)
class KeepsValidation(Role):
    """The field changes training images or labels; the validation images stay the same."""


@dataclass(frozen=True)
class AfterTraining(Role):
    """The field still has an effect on a model that is trained: on what it is used and measured, and where."""


@dataclass(frozen=True)
class Revisable(Role):
    """The option may differ from the one that the pretrained model was saved with."""


R = TypeVar("R", bound=Role)


def roles_in(spec_type: type[BaseModel], kind: type[R]) -> dict[str, R]:
    """The fields of one section that have a role of this kind, in their order."""
    found = {name: [r for r in f.metadata if isinstance(r, kind)] for name, f in spec_type.model_fields.items()}
    return {name: roles[0] for name, roles in found.items() if roles}


def roles_below(spec_type: type[BaseModel], kind: type[R]) -> dict[str, R]:
    """The same for a section and all sections below it, by dotted path."""
    return {path: role for path, role in _all_roles(spec_type) if isinstance(role, kind)}


def fields_with(spec_type: type[BaseModel], *kinds: type[Role]) -> tuple[str, ...]:
    """The names of the fields of one section that have a role of one of these kinds, in their order."""
    fields = spec_type.model_fields.items()
    return tuple(name for name, field in fields if any(isinstance(extra, kinds) for extra in field.metadata))


@cache
def _all_roles(spec_type: type[BaseModel]) -> tuple[tuple[str, Role], ...]:
    return tuple((".".join(path), role) for path, role in _roles(spec_type, ()))


def _roles(spec_type: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Role]]:
    for name, field in spec_type.model_fields.items():
        path = (*above, name)
        yield from ((path, extra) for extra in field.metadata if isinstance(extra, Role))
        if name not in above:  # replayed images have a field for replayed images
            for section in filter(None, map(model_of, alternatives(field.annotation))):
                yield from _roles(section, path)
