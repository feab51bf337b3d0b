"""What the classes of specs say about their fields: types, descriptions, and roles.

A role says what a field is for, at the field itself:

    max_steps: Annotated[Positive, TrainingOnly(), MayDiffer()]

Code that treats some fields differently asks for their roles; it knows no field by name. A field without a role gets
the most careful treatment: it may be searched, it is part of the question that a search asks, it must stay the same
when a run is resumed, and the untuned model is measured again wherever it differs.
"""

import ast
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter
from textwrap import dedent
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag, ValidationInfo
from pydantic.fields import FieldInfo

Location = tuple[str | int, ...]  # of a value in a file: keys and indices


def alternatives(annotation: Any) -> list[Any]:
    """The types that ``annotation`` allows."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for option in get_args(annotation) for kind in alternatives(option)]
    if origin is Annotated and not any(isinstance(extra, Tag) for extra in annotation.__metadata__):
        return alternatives(get_args(annotation)[0])
    return [] if annotation is types.NoneType else [annotation]


def model_of(alternative: Any) -> type[BaseModel] | None:
    """The model class of an alternative; None for a plain value."""
    bare = get_args(alternative)[0] if get_origin(alternative) is Annotated else alternative
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def mapping_values(alternative: Any) -> Any:
    """The annotation of the values of a ``dict[str, ...]``; None for every other type."""
    return get_args(alternative)[1] if get_origin(alternative) is dict else None


def tag_of(alternative: Any) -> str | None:
    """The name of a member of a tagged union: its ``Tag``, or the only value of its ``Literal`` field."""
    if get_origin(alternative) is Annotated:
        return next(extra.tag for extra in alternative.__metadata__ if isinstance(extra, Tag))
    model = model_of(alternative)
    constants = [get_args(field.annotation) for field in (model.model_fields.values() if model else ())]
    return next((str(values[0]) for values in constants if len(values) == 1), None)


def literals(found: list[Any]) -> list[str]:
    """The values allowed where every alternative is a ``Literal``, else an empty list."""
    if not all(get_origin(kind) is Literal for kind in found):
        return []
    return [str(value) for kind in found for value in get_args(kind)]


def constrained(field: FieldInfo) -> Any:
    """The annotation of a field, with its constraints."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def members(field: FieldInfo, data: Any) -> list[Any]:
    """The alternatives of ``field`` that ``data`` may be: one where its tag says which, else all."""
    found = alternatives(field.annotation)
    reader: Any = field.discriminator
    for extra in field.metadata:
        reader = extra.discriminator if isinstance(extra, Discriminator) else reader
    if reader is None or not isinstance(data, Mapping):
        return found
    tag = reader(data) if callable(reader) else data.get(reader)
    return [kind for kind in found if tag_of(kind) == tag] or found


def follow(root: Any, loc: Location) -> tuple[Location, list[Any]]:
    """Convert pydantic's ``loc`` to the location in a file, and find the alternatives there.

    pydantic adds the tag or the name of the type behind every union, and ``[key]`` behind a faulty key.
    """
    here, location = alternatives(root), []
    for part in loc:
        if len(here) > 1:
            here = [kind for kind in here if tag_of(kind) == part] or [Any]
        elif part != "[key]" and here and _is_container(here[0]):
            here = children(here[0], part)
            location.append(part)
    return tuple(location), here


def children(alternative: Any, part: str | int) -> list[Any]:
    """The alternatives at ``part`` of a section, a mapping or a list."""
    model, values = model_of(alternative), mapping_values(alternative)
    if model is not None:
        return alternatives(model.model_fields[str(part)].annotation) if part in model.model_fields else []
    if values is not None:
        return alternatives(values)
    items = [item for item in get_args(alternative) if item is not Ellipsis]
    return alternatives(items[min(int(part), len(items) - 1)])


def descriptions(spec_type: type[BaseModel]) -> dict[str, str]:
    """The docstrings behind the fields of a section, also of inherited ones, read from its source for documentation."""
    found: dict[str, str] = {}
    for base in reversed(spec_type.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        try:
            source = inspect.getsource(base)
        except OSError:  # a class that was made by create_model
            continue
        (definition,) = ast.parse(dedent(source)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return {name: found[name] for name in spec_type.model_fields if name in found}


def _is_container(alternative: Any) -> bool:
    return model_of(alternative) is not None or get_origin(alternative) in (dict, list, tuple)


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


def without_effect(spec_type: type[BaseModel], value: Any, info: ValidationInfo) -> Governed | None:
    """Why a field of a section, which a validator looks at, has no effect: its role; None where it has one.

    The governor must stand before it in the same section. A value that is the default says nothing.
    """
    field = str(info.field_name)
    role = roles_in(spec_type, Governed)[field]
    chosen = info.data.get(role.governor.rpartition(".")[2])
    is_idle = chosen is not None and not role.holds(chosen) and value != spec_type.model_fields[field].default
    return role if is_idle else None


def roles_below(spec_type: type[BaseModel], kind: type[R]) -> dict[str, R]:
    """The same for a section and all sections below it, by dotted path."""
    return {path: role for path, role in _all_roles(spec_type) if isinstance(role, kind)}


def fields_with(spec_type: type[BaseModel], *kinds: type[Role]) -> tuple[str, ...]:
    """The names of the fields of one section that have a role of one of these kinds, in their order."""
    fields = spec_type.model_fields.items()
    return tuple(name for name, field in fields if any(isinstance(extra, kinds) for extra in field.metadata))


def without_means(spec_type: type[BaseModel], dumped: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped section without the fields that are ``Means``, also of the sections below it."""
    paths = roles_below(spec_type, Means)

    def kept(section: Mapping[str, Any], above: str) -> dict[str, Any]:
        return {
            name: kept(value, f"{above}{name}.") if isinstance(value, Mapping) else value
            for name, value in section.items()
            if f"{above}{name}" not in paths
        }

    return kept(dumped, "")


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
