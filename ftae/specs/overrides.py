"""Leaves of a spec, by dotted path: what type they take, and a new spec with some of them replaced."""

import types
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from ftae.errors import FtaeError
from ftae.lookup import did_you_mean
from ftae.specs.base import Spec

S = TypeVar("S", bound=Spec)


class Leaf:
    """One settable value of a spec: its annotation with all constraints, and how to coerce to it."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def coerce(self, value: Any) -> Any:
        """``value`` as the field would hold it (``"1e-4"`` -> ``0.0001``).

        Raises:
            pydantic.ValidationError: the field does not accept it.
        """
        return self._adapter.validate_python(value)

    def number_type(self) -> type[int] | type[float] | None:
        """``int`` or ``float`` for a numeric leaf (None allowed beside it), else None."""
        kinds = {_bare(option) for option in _options(self.annotation)} - {type(None)}
        return int if kinds == {int} else float if kinds == {float} else None


def leaf(spec: Spec, path: str) -> Leaf:
    """The leaf of ``spec`` at ``path``. Unions resolve to the member the spec holds.

    Raises:
        FtaeError: the path names no leaf.
    """
    here: Any = spec
    parts = path.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if not isinstance(here, BaseModel):
            raise FtaeError(f"names no leaf: {'.'.join(parts[:depth])!r} is a single value")
        fields = type(here).model_fields
        if part not in fields:
            raise FtaeError(
                f"names no leaf: {'.'.join(parts[:depth]) or 'finetune'} has no {part!r}{did_you_mean(part, fields)}. "
                f"Choose one of {', '.join(fields)}"
            )
        value_type = _mapping_value(fields[part].annotation)
        if value_type is not None and depth == len(parts) - 2:
            return Leaf(value_type)
        here = getattr(here, part)
        if last and not isinstance(here, BaseModel) and value_type is None:
            return Leaf(_constrained(fields[part]))
    keys = ", ".join(type(here).model_fields) if isinstance(here, BaseModel) else "a key of your own"
    raise FtaeError(f"names no leaf but a whole section: add one of {keys}")


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted path of a nested dict in place; a missing or null section on the way is made."""
    *sections, last = path.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[last] = value


def apply_overrides(spec: S, values: Mapping[str, Any]) -> S:
    """A new, fully validated spec with the leaves of ``values`` replaced.

    Raises:
        pydantic.ValidationError: the result would not be valid.
    """
    data = spec.model_dump()
    for path, value in values.items():
        set_path(data, path, value)
    return type(spec).model_validate(data)


def value_at(spec: Spec, path: str) -> Any:
    """The value of the leaf at ``path``; a mapping's missing key gives None."""
    here: Any = spec
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else getattr(here, part)
    return here


def _constrained(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _options(annotation: Any) -> list[Any]:
    bare = _bare(annotation)
    return list(get_args(bare)) if get_origin(bare) in (Union, types.UnionType) else [bare]


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _mapping_value(annotation: Any) -> Any:
    return get_args(annotation)[1] if get_origin(annotation) is dict else None
