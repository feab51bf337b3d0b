"""The base class of every spec: frozen, closed to unknown keys, strict about types, with a stable digest."""

import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.fields import FieldInfo

from ftae.specs.reading.names import secret_problem

Location = tuple[str | int, ...]


def alternatives(annotation: Any) -> list[Any]:
    """The types ``annotation`` allows, less None and constraints; a tagged one keeps its ``Tag``."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for option in get_args(annotation) for kind in alternatives(option)]
    if origin is Annotated and not any(isinstance(extra, Tag) for extra in annotation.__metadata__):
        return alternatives(get_args(annotation)[0])
    return [] if annotation is types.NoneType else [annotation]


def model_of(alternative: Any) -> type[BaseModel] | None:
    """The model class of an alternative, or None where it is a plain value."""
    bare = _untagged(alternative)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def mapping_values(alternative: Any) -> Any:
    """The annotation of the values of a ``dict[str, ...]``; None for every other type."""
    return get_args(alternative)[1] if get_origin(alternative) is dict else None


def tag_of(alternative: Any) -> str | None:
    """What tells a member of a tagged union apart: its ``Tag``, or its field of one constant."""
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
    """A field's annotation with its constraints."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def members(field: FieldInfo, data: Any) -> list[Any]:
    """The alternatives of ``field`` that ``data`` may be: one where its tag says so, else all."""
    found = alternatives(field.annotation)
    reader: Any = field.discriminator
    for extra in field.metadata:
        reader = extra.discriminator if isinstance(extra, Discriminator) else reader
    if reader is None or not isinstance(data, Mapping):
        return found
    tag = reader(data) if callable(reader) else data.get(reader)
    return [kind for kind in found if tag_of(kind) == tag] or found


def follow(root: Any, loc: Location) -> tuple[Location, list[Any]]:
    """A location of pydantic's without what stands in no file, and the alternatives there.

    pydantic puts the tag or the type's name behind every union, and ``[key]`` behind a faulty key.
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


def _untagged(alternative: Any) -> Any:
    return get_args(alternative)[0] if get_origin(alternative) is Annotated else alternative


def _is_container(alternative: Any) -> bool:
    return model_of(alternative) is not None or get_origin(alternative) in (dict, list, tuple)


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


Positive = Annotated[int, Field(ge=1)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

Weight = Annotated[float, Field(ge=0.0)]


def absolute(path: str) -> str:
    """Of a path as a file has it, so that it can be used from any folder."""
    return str(Path(path).expanduser().absolute())


class Spec(BaseModel):
    """A validated description. Change one by building a new one (``specs.overrides``)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _strictly(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kinds = _kinds(cls)
        return {k: strictly(kinds[k], v) if isinstance(v, DOUBTFUL) and k in kinds else v for k, v in given.items()}

    def digest(self) -> str:
        """16 hexadecimal digits that depend on every value and on nothing else (not on key order)."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


@cache
def _kinds(spec_type: type[Spec]) -> dict[str, list[Any]]:
    """The alternatives of every field that is no section."""
    found = {name: alternatives(field.annotation) for name, field in spec_type.model_fields.items()}
    return {name: kinds for name, kinds in found.items() if not any(model_of(kind) for kind in kinds)}
