"""Leaves of a spec by dotted path: finding one, converting a value to its type, replacing values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter
from pydantic.fields import FieldInfo

from ftae.errors import FtaeError
from ftae.specs.reading.base import Spec, mark_wrong_types
from ftae.specs.reading.problems import one_of
from ftae.specs.reading.schema import alternatives, constrained, mapping_values, members, model_of
from ftae.wording import did_you_mean

S = TypeVar("S", bound=Spec)


class Leaf:
    """One settable value of a spec: its annotation with all constraints."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))

    def coerce(self, value: Any) -> Any:
        """``value`` as the field would hold it (``"1e-4"`` -> ``0.0001``).

        Raises:
            pydantic.ValidationError: the field does not accept it.
        """
        return self._adapter.validate_python(mark_wrong_types(alternatives(self.annotation), value))

    def number_type(self) -> type[int] | type[float] | None:
        """``int`` or ``float`` for a numeric leaf (which may also allow None), else None."""
        kinds = alternatives(self.annotation)
        return int if kinds == [int] else float if kinds == [float] else None


def leaf(spec: Spec, path: str) -> Leaf:
    """The leaf of ``spec`` at ``path``. Unions resolve to the member that the spec holds.

    Raises:
        FtaeError: the path names no leaf.
    """
    return leaf_in(type(spec), spec.model_dump(), path)


def leaf_in(spec_type: type[Spec], data: Any, path: str) -> Leaf:
    """The same for data that may be invalid: where their tag does not choose a member of a union, keys of any do.

    Raises:
        FtaeError: the path names no leaf.
    """
    _, annotation = locate(spec_type, data, path)
    for kind in alternatives(annotation):
        model = model_of(kind)
        if model is not None:
            raise FtaeError(f"a whole section, add one of {', '.join(model.model_fields)}")
        if mapping_values(kind) is not None:
            raise FtaeError("a whole mapping, add one of its keys")
    return Leaf(annotation)


def locate(spec_type: type[Spec], data: Any, path: str) -> tuple[tuple[str, ...], Any]:
    """The keys that lead to ``path`` in ``data`` (a spec as a dict), and the annotation there.

    In a mapping with keys of the user (``lr_multipliers``, ``search_space``) a key may contain dots: the longest
    existing key from which the path can continue is taken, else the rest of the path is one new key.

    Raises:
        FtaeError: there is no such key.
    """
    keys: list[str] = []
    annotation: Any = spec_type
    here, rest = [annotation], path.split(".")
    while rest:
        fields, values = _fields(here), mapping_values(here[0])
        if fields:
            key = rest[0]
            if key not in fields:
                place = f" in {'.'.join(keys)}" if keys else ""
                raise FtaeError(f"unknown key {key!r}{place}, {one_of(list(fields))}{did_you_mean(key, fields)}")
            annotation = constrained(fields[key])
            here = members(fields[key], data.get(key) if isinstance(data, Mapping) else None)
        elif values is not None or isinstance(data, Mapping):
            annotation = Any if values is None else values
            here = alternatives(annotation)
            key = _user_key(here, data, rest)
        else:
            raise FtaeError(f"{'.'.join(keys)} is set as a whole and has no {rest[0]!r}")
        keys.append(key)
        rest = rest[key.count(".") + 1 :]
        data = data.get(key) if isinstance(data, Mapping) else None
    if annotation in (Any, JsonValue) and type(data) in (int, float):
        annotation = type(data)  # a number of the user (model.kwargs) keeps its type
    return tuple(keys), annotation


def apply_overrides(spec: S, values: Mapping[str, Any]) -> S:
    """A new, fully validated spec in which the leaves of ``values`` are replaced.

    Raises:
        FtaeError: a path names nothing.
        pydantic.ValidationError: the result would not be valid.
    """
    data = spec.model_dump()
    for path, value in values.items():
        keys, _ = locate(type(spec), data, path)
        data = with_value(data, keys, value)
    return type(spec).model_validate(data)


def with_value(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of ``data`` with one value replaced; sections that are missing on the way are created."""
    first, *rest = keys
    section = data.get(first)
    inner = with_value(section if isinstance(section, Mapping) else {}, rest, value) if rest else value
    return {**data, first: inner}


def value_at(spec: Spec, path: str) -> Any:
    """The value of the leaf at ``path``; None where a mapping has no such key.

    Raises:
        FtaeError: the path names nothing.
    """
    data: Any = spec.model_dump()
    keys, _ = locate(type(spec), data, path)
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _fields(here: Sequence[Any]) -> dict[str, FieldInfo]:
    """The fields of all models among the alternatives; where several have a name, those of the first."""
    models = [model for kind in reversed(here) if (model := model_of(kind)) is not None]
    return {name: field for model in models for name, field in model.model_fields.items()}


def _user_key(values: Sequence[Any], data: Any, rest: list[str]) -> str:
    inner = _fields(values)
    for end in range(len(rest), 0, -1):
        key = ".".join(rest[:end])
        if not isinstance(data, Mapping) or key not in data:
            continue
        if end == len(rest) or rest[end] in inner or (not inner and isinstance(data[key], Mapping)):
            return key
    return ".".join(rest)


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted paths, each after ``prefix``; an empty mapping is a leaf."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
