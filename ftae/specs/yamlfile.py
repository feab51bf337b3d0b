"""Search and production files: YAML in, specs out, every problem at once as ``file:line: path: rule``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ftae.errors import FtaeError, SpecError
from ftae.specs.addresses import redacted
from ftae.specs.base import Spec
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.overrides import locate, with_value
from ftae.specs.problems import dotted, one_of, problems, shown
from ftae.specs.schema import Location
from ftae.specs.search import ProductionSpec, SearchSpec

STDIN = Path("-")
S = TypeVar("S", bound=Spec)
Line = tuple[tuple[int, int], str]  # of a report, with its rank: lines of the file first, then overrides

# PyYAML lets a ValueError through for an impossible date.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
_ONLY_IN_SEARCHES = [key for key in SearchSpec.model_fields if key not in ProductionSpec.model_fields]


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search file, or ``STDIN``; ``overrides`` are ``path=value`` strings from ``--set``.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    if "finetune" in file.data and not _is_search(file):
        missing = ", ".join(_ONLY_IN_SEARCHES)
        raise SpecError([f"{file.path}:1: is a production file (it has no {missing}): run it with `ftae train`"])
    return _parse(SearchSpec, file, overrides)


def load_production(path: Path, overrides: Sequence[str] = ()) -> ProductionSpec:
    """Read a production file (what ``ftae export`` writes).

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    if _is_search(file):
        raise SpecError([f"{file.path}:1: is a search file: run it with `ftae search`"])
    return _parse(ProductionSpec, file, overrides)


def load_any(path: Path, overrides: Sequence[str] = ()) -> SearchSpec | ProductionSpec:
    """Read either kind of file; a key that only searches have makes it a search.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = _File(path)
    return _parse(SearchSpec, file, overrides) if _is_search(file) else _parse(ProductionSpec, file, overrides)


def dump(spec: Spec) -> str:
    """``spec`` as YAML that loads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=110, allow_unicode=True)


class _File:
    """One YAML file: its data, the line of every key, and the keys it gives twice."""

    def __init__(self, path: Path) -> None:
        self.path = Path("<stdin>") if path == STDIN else path
        self.duplicates: list[tuple[int, str]] = []
        try:
            content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
            # utf-8-sig: some editors begin a file with a byte order mark.
            self._loader = yaml.SafeLoader(content.decode("utf-8-sig"))
            self._root: yaml.Node | None = self._loader.get_single_node()
            data = None
            if self._root is not None:
                self._check(self._root, (), [], set())
                data = self._loader.construct_document(self._root)
        except OSError as error:
            raise SpecError([f"{self.path}: cannot be read: {error.strerror}"]) from error
        except UnicodeDecodeError as error:
            raise SpecError([f"{self.path}: cannot be read: it is not a text file (UTF-8)"]) from error
        except _NOT_YAML as error:
            raise SpecError([f"{self.path}{_line(error)}: not valid YAML: {_reason(error)}"]) from error
        if not isinstance(data, dict):
            found = "nothing" if data is None else shown(data)
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

    def _entry(self, node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            return node.value[part], node.value[part]
        if isinstance(node, yaml.MappingNode):
            # Of keys given twice, or merged in before the mapping's own, the last counts.
            for key, value in reversed(node.value):
                if str(self._loader.construct_object(key)) == str(part):
                    return key, value
        return None

    def _check(self, node: yaml.Node, location: Location, above: list[yaml.Node], seen: set[yaml.Node]) -> None:
        """Note the keys given twice, before merging hides them; refuse an endless file."""
        if node in above:
            raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
        if node in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(node)
        keys: list[tuple[str, str]] = []
        for i, item in enumerate(node.value):
            if isinstance(node, yaml.SequenceNode):
                self._check(item, (*location, i), [*above, node], seen)
                continue
            key, value = item
            if (key.tag, str(key.value)) in keys:
                text = f"{dotted((*location, str(key.value)))}: key given twice"
                self.duplicates.append((key.start_mark.line + 1, text))
            keys.append((key.tag, str(key.value)))
            self._check(value, (*location, str(key.value)), [*above, node], seen)


def _parse(spec_type: type[S], file: _File, overrides: Sequence[str]) -> S:
    data = file.data
    found: list[Line] = [((0, line), f"{file.path}:{line}: {text}") for line, text in file.duplicates]
    laid: list[tuple[int, tuple[str, ...]]] = []
    for i, text in enumerate(overrides):
        try:
            keys, value = _override(spec_type, data, text)
        except FtaeError as error:
            found.append(((1, i), f"--set {text}: {error}"))
        else:
            data = with_value(data, keys, value)
            laid.append((i, keys))
    try:
        spec = spec_type.model_validate(data, context=data)
    except ValidationError as error:
        for location, rule in problems(spec_type, error):
            rank = _place(file, laid, location)
            where = f"--set {overrides[rank[1]]}" if rank[0] else f"{file.path}:{rank[1]}"
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
        return keys, yaml.safe_load(value)
    except _NOT_YAML as error:
        raise FtaeError(f"the value is not valid YAML: {_reason(error)}") from error


def _line(error: Exception) -> str:
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is not None and context is not None and mark.buffer[mark.pointer] == "\0":
        mark = context  # at the end of the file: what was opened and never closed
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = [getattr(error, part, None) for part in ("context", "problem", "reason")]
    reason = " ".join(filter(None, said)) or str(error)
    return " ".join(reason.split()) + (" (indent with spaces, not tabs)" if r"'\t'" in reason else "")


def _is_search(file: _File) -> bool:
    return any(key in file.data for key in _ONLY_IN_SEARCHES)
