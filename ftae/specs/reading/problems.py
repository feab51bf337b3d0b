"""Turns pydantic's errors into problems that a user understands: the place, the rule, the value, a suggestion.

A validator of one field raises ``ValueError("rule")``. A validator that finds several faults, or a fault in a section
below, raises ``refusal``. A validator sits on the last field that it needs and reads the fields before it, so that
faults elsewhere do not keep it from running.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import AfterValidator, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ftae.specs.reading.names import Secret, redacted
from ftae.specs.reading.schema import Location, follow, literals, model_of, tag_of
from ftae.wording import did_you_mean

Problem = tuple[Location, str]
_REFUSED = "refused"  # the type of the errors that ``refusal`` makes

# Replacements for messages of pydantic that mean little outside Python.
_RULES = {
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text in quotes",
    "invalid_key": "key must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "invalid-json-value": "must be text, a number, true, false, null, or a list or mapping of these",
}


def problems(
    root: Any, error: ValidationError, written: Callable[[Location], str | None] = lambda location: None
) -> list[Problem]:
    """Every problem of a failed validation against ``root``, which is a spec or any annotation.

    ``written`` gives the text of a value in its file where that may differ from the value that was read.
    """
    found: list[Problem] = []
    plain: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        location, here = follow(root, detail["loc"])
        kind, context = detail["type"], detail.get("ctx", {})
        if isinstance(detail["input"], Secret):
            found.append((location, detail["input"].rule))
        elif kind == _REFUSED:
            found.append(((*location, *context["location"]), context["rule"]))
        elif kind == "value_error":
            found.append((location, str(context["error"])))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            found.append(_wrong_tag(location, here, detail))
        elif kind == "extra_forbidden":
            _, sections = follow(root, detail["loc"][:-1])
            keys = [key for section in sections for key in getattr(model_of(section), "model_fields", ())]
            found.append((location, f"unknown key, {one_of(keys)}{did_you_mean(str(location[-1]), keys)}"))
        elif kind == "missing":
            choices = literals(here)
            found.append((location, f"required, {one_of(choices)}" if choices else "required"))
        elif kind == "literal_error" and literals(here):
            found.append((location, one_of(literals(here), detail["input"])))
        elif kind != "too_short" or len(detail["input"]) < context["min_length"]:  # else one of its items is at fault
            plain.setdefault(location, []).append(detail)
    found += [(location, _plain(details, written(location))) for location, details in plain.items()]
    return list(dict.fromkeys(found))


def refusal(found: Iterable[Problem], title: str = "a spec") -> ValidationError:
    """The error for a validator to raise; locations are relative to the value that it validates."""
    errors = []
    for location, rule in found:
        context = {"text": f"{dotted(location)}: {rule}" if location else rule, "location": location, "rule": rule}
        errors.append(InitErrorDetails(type=PydanticCustomError(_REFUSED, "{text}", context), loc=(), input=None))
    return ValidationError.from_exception_data(title, errors, hide_input=True)


def matching(pattern: str, rule: str) -> AfterValidator:
    """A pattern that text must match; ``rule`` completes "must be ..." in the message."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {rule}, got {quoted(value)}")
        return value

    return AfterValidator(check)


def one_of(choices: Sequence[str], *value: Any) -> str:
    """``must be one of a, b``; with a value also ``, got 'c', did you mean 'b'?``"""
    got = f", got {quoted(value[0])}{did_you_mean(str(value[0]), choices)}" if value else ""
    return f"must be one of {', '.join(choices)}{got}"


def quoted(value: Any) -> str:
    """``value`` for a message: on one line, at most 80 characters, null and booleans as in YAML, without secrets."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    text = redacted(text, value) if isinstance(value, str) else redacted(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dotted(location: Location) -> str:
    """A location as text, such as ``finetune.metrics.1``; a key that would break the line is quoted."""
    return ".".join(str(part) if str(part).isprintable() else repr(part) for part in location)


def _wrong_tag(location: Location, here: list[Any], detail: ErrorDetails) -> Problem:
    # pydantic gives the key in quotes, or the name of the function that reads it, such as _family().
    key, section = detail["ctx"]["discriminator"].strip("'_()"), detail["input"]
    choices = [tag for kind in here if (tag := tag_of(kind)) is not None]
    if not isinstance(section, Mapping):
        return location, f"must be a mapping, got {quoted(section)}"
    if section.get(key) is None:
        return (*location, key), f"required, {one_of(choices)}"
    return (*location, key), one_of(choices, section[key])


def _plain(details: Sequence[ErrorDetails], written: str | None) -> str:
    """One sentence for one value, which combines the rules of all members of an untagged union."""
    rules = dict.fromkeys(_rule(detail) for detail in details)
    if "must be a number" in rules:
        rules.pop("must be a whole number", None)
    return f"{' or '.join(rules).replace(' or must be ', ' or ')}, got {written or quoted(details[0]['input'])}"


def _rule(detail: ErrorDetails) -> str:
    words = re.sub(r"^\w+ should", "must", detail["msg"])
    return _RULES.get(detail["type"]) or words.partition(" after ")[0].partition(", ")[0]
