"""A YAML document whose values have reasons: entries in, annotated lines out."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ftae.specs.reading.yaml_file import Dumper

WIDTH = 116
COLUMN = 44  # where comments beside a value begin


@dataclass(frozen=True)
class Entry:
    """One key with its value, and why it has it. A tuple of entries is a mapping with a line for each.

    ``hidden``: the line is a comment itself, for the user to bring in.
    """

    key: str
    value: Any
    why: str = ""
    hidden: bool = False


def document(heading: Sequence[str], entries: Iterable[Entry]) -> str:
    """The text of a file: ``heading`` as comment lines, then the entries."""
    lines = [f"# {part}".rstrip() for line in heading for part in _wrapped(line, WIDTH)]
    for entry in entries:
        lines += _lines(entry, "")
    return "\n".join(lines) + "\n"


def _lines(entry: Entry, indent: str) -> list[str]:
    if isinstance(entry.value, tuple):
        inner = [line for each in entry.value for line in _lines(each, f"{indent}  ")]
        return [*_comments(entry.why, indent), f"{indent}{_flow(entry.key)}:", *inner]
    line = f"{indent}{'# ' if entry.hidden else ''}{_flow(entry.key)}: {_flow(entry.value)}"
    if isinstance(entry.value, list) and len(line) > WIDTH:
        start = f"{indent}{_flow(entry.key)}: ["
        return [*_comments(entry.why, indent), start, *_items(entry.value, indent), f"{indent}]"]
    if not entry.why:
        return [line]
    beside = f"{line:<{COLUMN}} # {_plain(entry.why)}"
    if len(beside) <= WIDTH + 4:
        return [beside]
    return [*_comments(entry.why, indent), line]


def _items(values: list[Any], indent: str) -> list[str]:
    """The items of a long list, as many in a line as there is room for."""
    lines = [f"{indent} "]
    for value in map(_flow, values):
        if len(lines[-1]) + len(value) > WIDTH:
            lines.append(f"{indent} ")
        lines[-1] += f" {value},"
    return lines


def _comments(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in _wrapped(text, WIDTH - len(indent))] if text else []


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a comment; indented ones, which are to be typed, stay whole."""
    start = len(text) - len(text.lstrip(" "))
    return [_plain(text)] if start or not text else textwrap.wrap(_plain(text), width)


def _plain(text: str) -> str:
    """Names of files and classes stand in comments: none may end its line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _flow(value: Any) -> str:
    """A value in one line; exponents as people write them."""
    if isinstance(value, float) and not isinstance(value, bool):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("\n...\n").removesuffix("\n")


def _number(value: float) -> str:
    if value != 0.0 and not 1e-2 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.6e}".split("e")
        mantissa = mantissa.rstrip("0")
        return f"{mantissa}{'0' if mantissa.endswith('.') else ''}e{int(exponent)}"
    return repr(value)
