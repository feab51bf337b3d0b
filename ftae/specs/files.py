"""Search and production files: YAML in, specs out, every problem at once as ``file:line: path: rule``."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ftae.errors import FtaeError, SpecError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Location, Spec
from ftae.specs.reading.formats import FORMAT, migrate
from ftae.specs.reading.names import redacted
from ftae.specs.reading.overrides import Dumper, Loader, load, locate, misread, with_value
from ftae.specs.reading.problems import Problem, dotted, one_of, problems, quoted
from ftae.specs.search.search import ProductionSpec, SearchSpec

STDIN = Path("-")

S = TypeVar("S", bound=Spec)

Check = Callable[[Any], Iterable[Problem]]

Line = tuple[tuple[int, int], str]  # of a report, with its rank: lines of the file first, then overrides

_NOT_YAML = (yaml.YAMLError, RecursionError)

_MOST_VALUES = 100_000  # of a file, an alias counted as what it stands for

_ONLY_IN_SEARCHES = [key for key in SearchSpec.model_fields if key not in ProductionSpec.model_fields]


def _nothing(spec: Any) -> Iterable[Problem]:
    return ()


def load_search(path: Path, overrides: Sequence[str] = (), check: Check = _nothing) -> SearchSpec:
    """Read a search file, or ``STDIN``; ``overrides`` are ``path=value`` strings from ``--set``.

    ``check`` finds what is wrong with a spec that is valid by itself: problems that get their place in the file.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    if "finetune" in file.data and not _is_search(file):
        missing = ", ".join(_ONLY_IN_SEARCHES)
        raise SpecError([f"{file.path}:1: is a production file (it has no {missing}): run it with `ftae train`"])
    return _parse(SearchSpec, file, overrides, check)


def load_production(path: Path, overrides: Sequence[str] = (), check: Check = _nothing) -> ProductionSpec:
    """Read a production file (what ``ftae export`` writes).

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    if _is_search(file):
        raise SpecError([f"{file.path}:1: is a search file: run it with `ftae search`"])
    return _parse_production(file, overrides, check)


def load_any(path: Path, overrides: Sequence[str] = (), check: Check = _nothing) -> SearchSpec | ProductionSpec:
    """Read either kind of file; a key that only searches have makes it a search.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    if _is_search(file):
        return _parse(SearchSpec, file, overrides, check)
    return _parse_production(file, overrides, check)


def dump(spec: Spec) -> str:
    """``spec`` as YAML that loads back to an equal spec; a production file also says its format."""
    data = spec.model_dump(mode="json")
    if isinstance(spec, ProductionSpec):
        data = {"format": FORMAT, **data}
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)
    return text


class _File:
    """One YAML file: its data, the line of every key, and its faults, which are in no data: keys given twice..."""

    def __init__(self, path: Path) -> None:
        self.path = Path("<stdin>") if path == STDIN else path
        self.faults: list[tuple[int, Location, str]] = []
        try:
            content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        except OSError as error:
            raise SpecError([f"{self.path}: cannot be read: {error.strerror}"]) from error
        try:
            text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise SpecError([f"{self.path}:{line}: cannot be read: it is not a text file (UTF-8)"]) from error
        try:
            self._loader = Loader(text)
            self._root: yaml.Node | None = self._loader.get_single_node()
            data = None
            if self._root is not None:
                self._check(self._root, (), [], {})
                data = self._loader.construct_document(self._root)
        except _NOT_YAML as error:
            raise SpecError([f"{self.path}:{_line(error, text)}: not valid YAML: {_reason(error)}"]) from error
        if not isinstance(data, dict):
            found = "nothing" if data is None else quoted(data)
            raise SpecError([f"{self.path}:1: must be a mapping with the keys name, finetune, ..., got {found}"])
        self.data: dict[Any, Any] = data

    def line(self, location: Location) -> tuple[int, int]:
        """The line of the nearest key at or above ``location``, and how many parts the way to it has."""
        node, line = self._root, 1
        for depth, part in enumerate(location):
            entry = self._entry(node, part)
            if entry is None:
                return line, depth
            key, node = entry
            line = key.start_mark.line + 1
        return line, len(location)

    def written(self, location: Location) -> str | None:
        """A truth value as it stands there: it may have been no, or on."""
        node = self._root
        for part in location:
            entry = self._entry(node, part)
            node = None if entry is None else entry[1]
        is_truth = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool"
        return str(node.value) if is_truth and node is not None else None

    def _entry(self, node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            return node.value[part], node.value[part]
        if isinstance(node, yaml.MappingNode):
            # Of keys given twice, or merged in before the mapping's own, the last counts.
            for key, value in reversed(node.value):
                if str(self._loader.construct_object(key)) == str(part):
                    return key, value
        return None

    def _check(self, node: yaml.Node, location: Location, above: list[yaml.Node], sizes: dict[yaml.Node, int]) -> int:
        """Note what is lost in the data; refuse an endless file. Returns how many values there are in the node."""
        if node in above:
            raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
        if node in sizes:
            return sizes[node]
        line, size = node.start_mark.line + 1, 1
        if (reason := misread(node)) is not None:
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
            if size > _MOST_VALUES:
                reason = f"its aliases stand for more than {_MOST_VALUES} values"
                raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
        sizes[node] = size
        return size


def _parse_production(file: _File, overrides: Sequence[str], check: Check) -> ProductionSpec:
    try:
        file.data = migrate(file.data, "production", f"{file.path}:")
    except FtaeError as error:
        raise SpecError([str(error)]) from error
    return _parse(ProductionSpec, file, overrides, check)


def _parse(spec_type: type[S], file: _File, overrides: Sequence[str], check: Check = _nothing) -> S:
    data = file.data
    found: list[Line] = []
    for line, location, rule in file.faults:
        found.append(((0, line), f"{file.path}:{line}: {dotted(location)}: {rule}"))
    laid: list[tuple[int, tuple[str, ...]]] = []
    for i, text in enumerate(overrides):
        try:
            keys, value = _override(spec_type, data, text)
        except FtaeError as error:
            found.append(((1, i), f"--set {text}: {error}"))
        else:
            data = with_value(data, keys, value)
            laid.append((i, keys))

    def written(location: Location) -> str | None:
        return None if _place(file, laid, location)[0] else file.written(location)

    wrong: list[Problem] = []
    try:
        spec = spec_type.model_validate(data, context=data)
        wrong += check(spec)
    except ValidationError as error:
        wrong += problems(spec_type, error, written)
    misread_at = {location for _, location, _ in file.faults}
    for location, rule in wrong:
        rank = _place(file, laid, location)
        where = f"--set {overrides[rank[1]]}" if rank[0] else f"{file.path}:{rank[1]}"
        if rank[0] or location not in misread_at:
            found.append((rank, f"{where}: {dotted(location)}: {rule}" if location else f"{where}: {rule}"))
    if found:
        given = [text.partition("=")[2] for text in overrides]
        raise SpecError([redacted(text, *given) for _, text in sorted(found, key=lambda line: line[0])])
    return spec


def _place(file: _File, laid: Sequence[tuple[int, tuple[str, ...]]], location: Location) -> tuple[int, int]:
    """Where to look: ``(1, index)`` of the override that set or made the location, or ``(0, line)`` of the file."""
    line, depth = file.line(location)
    for i, keys in reversed(laid):
        is_set = keys == location[: len(keys)]
        is_made = depth < len(location) and keys[: depth + 1] == location[: depth + 1]
        if is_set or is_made:
            return 1, i
    return 0, line


def _override(spec_type: type[Spec], data: dict[Any, Any], text: str) -> tuple[tuple[str, ...], Any]:
    """The keys and the value of one ``path=value``; a leaf of finetune may be named as in search_space."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise FtaeError("must be path=value")
    head = path.partition(".")[0]
    if head in FinetuneSpec.model_fields and head not in spec_type.model_fields:
        path = f"finetune.{path}"
    elif head not in spec_type.model_fields:
        choices = [*spec_type.model_fields, *FinetuneSpec.model_fields]
        raise FtaeError(f"unknown key, {one_of(choices, head)}")
    keys, _ = locate(spec_type, data, path)
    try:
        return keys, load(value)
    except _NOT_YAML as error:
        raise FtaeError(f"the value is not valid YAML: {_reason(error)}") from error


def _line(error: Exception, text: str) -> int:
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is not None and context is not None and mark.buffer[mark.pointer] == "\0":
        mark = context  # at the end of the file: what was opened and never closed
    return 1 if mark is None else mark.line + 1


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (U+{error.character:04X})"
    said = [getattr(error, part, None) for part in ("context", "problem")]
    reason = " ".join(filter(None, said)) or str(error)
    return " ".join(reason.split()) + (" (indent with spaces, not tabs)" if r"'\t'" in reason else "")


def _is_search(file: _File) -> bool:
    return any(key in file.data for key in _ONLY_IN_SEARCHES)
