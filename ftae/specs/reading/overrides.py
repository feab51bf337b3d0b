"""What a plain value of a YAML file is: PyYAML follows YAML 1.1, whose surprises are taken out or refused here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, JsonValue, TypeAdapter
from pydantic.fields import FieldInfo

from ftae.errors import FtaeError
from ftae.specs.reading.base import Spec, alternatives, constrained, mapping_values, members, model_of, strictly
from ftae.specs.reading.problems import one_of
from ftae.wording import did_you_mean

_FLOAT = "tag:yaml.org,2002:float"

# YAML 1.1 wants a dot and a sign: 1e-4 is text to it, and a number to everybody else.
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")

_BASE_60_OR_8 = re.compile(r"[-+]?(?:\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?|0[0-7_]+)")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader; every error has its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of thousands of digits, base64 that is none
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class Dumper(yaml.SafeDumper):
    """Puts in quotes what ``Loader`` would not read as text."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Written:
    """A date: nothing takes one, and a message shows it as the file has it."""

    text: str

    def __repr__(self) -> str:
        return self.text


Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: Written(str(node.value)))


def misread(node: yaml.Node) -> str | None:
    """What is wrong with a plain number that means another one to YAML than to people."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and _BASE_60_OR_8.fullmatch(node.value):
        number = Loader("").construct_object(node)
        return f"YAML reads {node.value} as {number}: write that, or in quotes what is to be text"
    return None


def load(text: str) -> Any:
    """The value of one text.

    Raises:
        yaml.YAMLError: it is not valid.
        FtaeError: a number in it may be misread.
    """
    loader = Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    nodes = [node]
    while nodes:
        inner = nodes.pop()
        if (reason := misread(inner)) is not None:
            raise FtaeError(reason)
        if isinstance(inner, yaml.SequenceNode):
            nodes += inner.value
        elif isinstance(inner, yaml.MappingNode):
            nodes += [value for _, value in inner.value]
    return loader.construct_document(node)


S = TypeVar("S", bound=Spec)


class Leaf:
    """One settable value of a spec: its annotation with all constraints, and how to coerce to it."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))

    def coerce(self, value: Any) -> Any:
        """``value`` as the field would hold it (``"1e-4"`` -> ``0.0001``).

        Raises:
            pydantic.ValidationError: the field does not accept it.
        """
        return self._adapter.validate_python(strictly(alternatives(self.annotation), value))

    def number_type(self) -> type[int] | type[float] | None:
        """``int`` or ``float`` for a numeric leaf (None allowed beside it), else None."""
        kinds = alternatives(self.annotation)
        return int if kinds == [int] else float if kinds == [float] else None


def leaf(spec: Spec, path: str) -> Leaf:
    """The leaf of ``spec`` at ``path``. Unions resolve to the member the spec holds.

    Raises:
        FtaeError: the path names no leaf.
    """
    return leaf_in(type(spec), spec.model_dump(), path)


def leaf_in(spec_type: type[Spec], data: Any, path: str) -> Leaf:
    """As ``leaf``, for data that need not be valid: a union that its data do not tell takes any member's keys."""
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

    In a mapping whose keys are the user's own (``lr_multipliers``, ``search_space``) a key may contain
    dots: the longest one there that the path goes on from, else all the rest is one new key.

    Raises:
        FtaeError: no such key.
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
        annotation = type(data)  # a number of the user's own (model.kwargs) keeps its type
    return tuple(keys), annotation


def apply_overrides(spec: S, values: Mapping[str, Any]) -> S:
    """A new, fully validated spec with the leaves of ``values`` replaced.

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
    """``data`` with one value replaced, itself left as it is; a missing section on the way is made."""
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
    """The fields of all models among the alternatives; the first to have a name wins."""
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
