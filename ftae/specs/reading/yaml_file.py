"""YAML files: their values, the line of every key, and what PyYAML would silently get wrong.

PyYAML follows YAML 1.1. Its surprises are removed here (``1e-4`` is a number) or refused (``1:30`` is 90, ``010`` is
8, of a key given twice one value is lost).
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftae.errors import FtaeError, SpecError
from ftae.specs.reading.problems import quoted
from ftae.specs.reading.schema import Location

STDIN = Path("-")
NOT_YAML = (yaml.YAMLError, RecursionError)
MOST_VALUES = 100_000  # in a file, an alias counted as often as it is used
_FLOAT, _BOOL = "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"

# YAML 1.1 wants a dot and a sign in a number with an exponent; without them 1e-4 would be text.
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_BASE_60_OR_8 = re.compile(r"[-+]?(?:\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?|0[0-7_]+)")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader; every error has its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of thousands of digits, invalid base64
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class Dumper(yaml.SafeDumper):
    """Puts text in quotes that ``Loader`` would read as a number."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Date:
    """A date, which no field takes; a message shows the text of the file."""

    text: str

    def __repr__(self) -> str:
        return self.text


Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: Date(str(node.value)))


def read_value(text: str) -> Any:
    """The value of a text such as ``1e-4`` or ``[a, b]``.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
        FtaeError: a number in it may be misread.
    """
    loader = Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    nodes = [node]
    while nodes:
        inner = nodes.pop()
        if (reason := _misread(inner)) is not None:
            raise FtaeError(reason)
        if isinstance(inner, yaml.SequenceNode):
            nodes += inner.value
        elif isinstance(inner, yaml.MappingNode):
            nodes += [value for _, value in inner.value]
    return loader.construct_document(node)


def reason_of(error: Exception) -> str:
    """The message of one of ``NOT_YAML`` on one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (U+{error.character:04X})"
    parts = [getattr(error, part, None) for part in ("context", "problem")]
    reason = " ".join(filter(None, parts)) or str(error)
    return " ".join(reason.split()) + (" (indent with spaces, not tabs)" if r"'\t'" in reason else "")


class YamlFile:
    """One YAML file that holds a mapping, or standard input.

    ``data`` is the mapping. ``faults`` are those that the data do not show, such as keys given twice: the line, the
    location and the rule of each.

    Raises:
        SpecError: the file cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path("<stdin>") if path == STDIN else path
        self.faults: list[tuple[int, Location, str]] = []
        text = self._text(path)
        try:
            self._loader = Loader(text)
            self._root: yaml.Node | None = self._loader.get_single_node()
            data = None
            if self._root is not None:
                self._check(self._root, (), [], {})
                data = self._loader.construct_document(self._root)
        except NOT_YAML as error:
            raise SpecError([f"{self.path}:{_line(error, text)}: not valid YAML: {reason_of(error)}"]) from error
        if not isinstance(data, dict):
            found = "nothing" if data is None else quoted(data)
            raise SpecError([f"{self.path}:1: must be a mapping with the keys name, finetune, ..., got {found}"])
        self.data: dict[Any, Any] = data

    def line(self, location: Location) -> tuple[int, int]:
        """The line of the nearest key at or above ``location``, and how many of its parts lead to that key."""
        node, line = self._root, 1
        for depth, part in enumerate(location):
            entry = self._entry(node, part)
            if entry is None:
                return line, depth
            key, node = entry
            line = key.start_mark.line + 1
        return line, len(location)

    def written(self, location: Location) -> str | None:
        """A truth value in the words of the file, such as ``no`` or ``on``; None for every other value."""
        node = self._root
        for part in location:
            entry = self._entry(node, part)
            node = None if entry is None else entry[1]
        return str(node.value) if isinstance(node, yaml.ScalarNode) and node.tag == _BOOL else None

    def _text(self, path: Path) -> str:
        try:
            content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        except OSError as error:
            raise SpecError([f"{self.path}: cannot be read: {error.strerror}"]) from error
        try:
            return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise SpecError([f"{self.path}:{line}: cannot be read: it is not a text file (UTF-8)"]) from error

    def _entry(self, node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            return node.value[part], node.value[part]
        if isinstance(node, yaml.MappingNode):
            # The last counts of keys given twice, or merged in before the mapping's own keys.
            for key, value in reversed(node.value):
                if str(self._loader.construct_object(key)) == str(part):
                    return key, value
        return None

    def _check(self, node: yaml.Node, location: Location, above: list[yaml.Node], sizes: dict[yaml.Node, int]) -> int:
        """Note the faults below ``node``, refuse an endless file, and return the number of values in the node."""
        if node in above:
            raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
        if node in sizes:
            return sizes[node]
        line, size = node.start_mark.line + 1, 1
        if (reason := _misread(node)) is not None:
            self.faults.append((line, location, reason))
        keys: set[tuple[str, str]] = set()
        for i, item in enumerate([] if isinstance(node, yaml.ScalarNode) else node.value):
            part: str | int = i
            if isinstance(node, yaml.MappingNode):
                key, item = item
                part = str(key.value)
                if (key.tag, part) in keys:
                    self.faults.append((key.start_mark.line + 1, (*location, part), "key given twice"))
                keys.add((key.tag, part))
            size += self._check(item, (*location, part), [*above, node], sizes)
            if size > MOST_VALUES:
                reason = f"its aliases stand for more than {MOST_VALUES} values"
                raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
        sizes[node] = size
        return size


def _misread(node: yaml.Node) -> str | None:
    """Why a plain number may mean another one to YAML than to its writer; None if it cannot."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and _BASE_60_OR_8.fullmatch(node.value):
        number = Loader("").construct_object(node)
        return f"YAML reads {node.value} as {number}: write that number, or put text in quotes"
    return None


def _line(error: Exception, text: str) -> int:
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is not None and context is not None and mark.buffer[mark.pointer] == "\0":
        mark = context  # at the end of the file: the bracket or quote that was never closed
    return 1 if mark is None else mark.line + 1
