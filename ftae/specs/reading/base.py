"""The base class of every spec: frozen, closed to unknown keys, strict about types, with a stable digest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, update_wrapper
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ftae.specs.reading.names import Secret, secret_problem
from ftae.specs.reading.problems import problems, refusal
from ftae.specs.reading.schema import alternatives, children, model_of

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Spec(BaseModel):
    """A validated description, built in Python or read from a file; sections may be objects or dicts.

    A spec never changes: ``apply_overrides`` builds a changed one.

    Raises:
        pydantic.ValidationError: with every problem, its place and its rule.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:  # in the words that a file gets
            raise refusal(problems(type(self), error), type(self).__name__) from None

    # Takes over the mark by which pydantic knows that it may validate sections without a call of __init__.
    update_wrapper(__init__, BaseModel.__init__)

    @model_validator(mode="before")
    @classmethod
    def _mark_wrong_types(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kinds = _plain_kinds(cls)
        return {
            k: mark_wrong_types(kinds[k], v) if isinstance(v, _CONVERTIBLE) and k in kinds else v
            for k, v in given.items()
        }

    def digest(self) -> str:
        """16 hexadecimal digits that depend on every value and on nothing else (not on the order of keys)."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def absolute(path: str) -> str:
    """A path of a file as an absolute one, which is valid from any folder; a URL as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


@dataclass(frozen=True)
class Truth:
    """Takes the place of true or false where a number belongs, which pydantic would accept as 1 or 0."""

    value: bool

    def __repr__(self) -> str:
        return "true" if self.value else "false"


_CONVERTIBLE = (bool, str, dict, list, tuple)


def mark_wrong_types(kinds: Sequence[Any], value: Any) -> Any:
    """``value`` with everything replaced that pydantic would convert to one of ``kinds`` and a file must not hold."""
    if not isinstance(value, _CONVERTIBLE):
        return value
    if isinstance(value, bool):
        return Truth(value) if (float in kinds or int in kinds) and bool not in kinds else value
    if isinstance(value, str):
        may_be_address = ":" in value or "%" in value
        return Secret(rule) if may_be_address and (rule := secret_problem(value)) is not None else value
    if isinstance(value, dict):
        mappings = [kind for kind in kinds if get_origin(kind) is dict]
        return {key: _mark_inside(mappings, key, item) for key, item in value.items()}
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    return type(value)([_mark_inside(lists, i, item) for i, item in enumerate(value)])


def _mark_inside(holders: Sequence[Any], part: Any, item: Any) -> Any:
    if not isinstance(item, _CONVERTIBLE):
        return item
    return mark_wrong_types(children(holders[0], part) if holders else [], item)


@cache
def _plain_kinds(spec_type: type[Spec]) -> dict[str, list[Any]]:
    """The alternatives of every field that is not a section."""
    found = {name: alternatives(field.annotation) for name, field in spec_type.model_fields.items()}
    return {name: kinds for name, kinds in found.items() if not any(model_of(kind) for kind in kinds)}
