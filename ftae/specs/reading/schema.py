"""How the annotations of spec classes are read: the types that a field allows, and where a location leads.

An *alternative* is one type of a union, without None and without constraints. Alternatives of a tagged union keep
their ``Tag``.
"""

import ast
import inspect
import types
from collections.abc import Mapping
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
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
