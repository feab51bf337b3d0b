"""Search and production files: YAML in, specs out, every problem at once as ``file:line: path: rule``."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ftae.errors import FtaeError, SpecError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.format_versions import FORMAT, migrate
from ftae.specs.reading.names import redacted
from ftae.specs.reading.overrides import locate, with_value
from ftae.specs.reading.problems import Problem, dotted, one_of, problems
from ftae.specs.reading.schema import Location
from ftae.specs.reading.yaml_file import NOT_YAML, STDIN, Dumper, YamlFile, read_value, reason_of
from ftae.specs.search.search import ProductionSpec, SearchSpec

__all__ = ["STDIN", "dump", "load_any", "load_production", "load_search"]

S = TypeVar("S", bound=Spec)
Check = Callable[[Any], Iterable[Problem]]
Keys = tuple[str, ...]
Rank = tuple[int, int]  # in a report: (0, line of the file), then (1, index of the override)
_ONLY_IN_SEARCHES = [key for key in SearchSpec.model_fields if key not in ProductionSpec.model_fields]


def _no_check(spec: Any) -> Iterable[Problem]:
    return ()


def load_search(path: Path, overrides: Sequence[str] = (), check: Check = _no_check) -> SearchSpec:
    """Read a search file, or ``STDIN``; ``overrides`` are texts ``path=value``, as ``--set`` takes them.

    ``check`` may find more problems of a spec that is valid by itself; they are reported with their lines, too.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = YamlFile(path)
    if "finetune" in file.data and not _is_search(file):
        missing = ", ".join(_ONLY_IN_SEARCHES)
        raise SpecError([f"{file.path}:1: is a production file (it has no {missing}): run it with `ftae train`"])
    return _parse(SearchSpec, file, overrides, check)


def load_production(path: Path, overrides: Sequence[str] = (), check: Check = _no_check) -> ProductionSpec:
    """Read a production file, which ``ftae export`` writes. Arguments as of ``load_search``.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = YamlFile(path)
    if _is_search(file):
        raise SpecError([f"{file.path}:1: is a search file: run it with `ftae search`"])
    return _parse_production(file, overrides, check)


def load_any(path: Path, overrides: Sequence[str] = (), check: Check = _no_check) -> SearchSpec | ProductionSpec:
    """Read a file of either kind; a key that only searches have makes it a search. Arguments as of ``load_search``.

    Raises:
        SpecError: with every problem of the file, and of the overrides.
    """
    file = YamlFile(path)
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


def _is_search(file: YamlFile) -> bool:
    return any(key in file.data for key in _ONLY_IN_SEARCHES)


def _parse_production(file: YamlFile, overrides: Sequence[str], check: Check) -> ProductionSpec:
    try:
        file.data = migrate(file.data, "production", f"{file.path}:")
    except FtaeError as error:
        raise SpecError([str(error)]) from error
    return _parse(ProductionSpec, file, overrides, check)


def _parse(spec_type: type[S], file: YamlFile, overrides: Sequence[str], check: Check) -> S:
    report = _Report(file, overrides)
    data = file.data
    for i, text in enumerate(overrides):
        try:
            keys, value = _override(spec_type, data, text)
        except FtaeError as error:
            report.add((1, i), str(error))
        else:
            data = with_value(data, keys, value)
            report.applied.append((i, keys))
    try:
        spec = spec_type.model_validate(data, context=data)
        found = list(check(spec))
    except ValidationError as error:
        found = problems(spec_type, error, report.written)
    report.add_problems(found)
    report.raise_if_any()
    return spec


# Whoever knows the path of an address may use it, such as that of a webhook, which belongs in no file.
_HTTP_PATH = re.compile(r"(https?://[^\s/'\"\],}]+)/[^\s'\"\],}]+", re.IGNORECASE)


class _Report:
    """The problems of one file and its overrides, each with its place.

    ``applied`` are the overrides that could be applied: the index and the keys of each.
    """

    def __init__(self, file: YamlFile, overrides: Sequence[str]) -> None:
        self.applied: list[tuple[int, Keys]] = []
        self._file, self._overrides = file, overrides
        self._found: list[tuple[Rank, str]] = []
        for line, location, rule in file.faults:
            self.add((0, line), f"{dotted(location)}: {rule}")

    def add(self, rank: Rank, text: str) -> None:
        kind, number = rank
        where = f"{self._file.path}:{number}"
        if kind == 1:
            where = "--set " + _HTTP_PATH.sub(r"\1/***", self._overrides[number])
        self._found.append((rank, f"{where}: {text}"))

    def add_problems(self, found: Iterable[Problem]) -> None:
        """Add problems of the spec, except those of values that the file itself gets wrong."""
        misread = {location for _, location, _ in self._file.faults}
        for location, rule in found:
            rank = self._rank(location)
            if rank[0] == 1 or location not in misread:
                self.add(rank, f"{dotted(location)}: {rule}" if location else rule)

    def written(self, location: Location) -> str | None:
        """The text of a truth value in the file; None where an override gives the value."""
        return None if self._rank(location)[0] == 1 else self._file.written(location)

    def raise_if_any(self) -> None:
        if self._found:
            values = [text.partition("=")[2] for text in self._overrides]
            ordered = sorted(self._found, key=lambda line: line[0])
            raise SpecError([redacted(text, *values) for _, text in ordered])

    def _rank(self, location: Location) -> Rank:
        """The override that set or created the value at ``location``, or its line in the file."""
        line, depth = self._file.line(location)
        for i, keys in reversed(self.applied):
            is_set = keys == location[: len(keys)]
            is_created = depth < len(location) and keys[: depth + 1] == location[: depth + 1]
            if is_set or is_created:
                return 1, i
        return 0, line


def _override(spec_type: type[Spec], data: dict[Any, Any], text: str) -> tuple[Keys, Any]:
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
        return keys, read_value(value)
    except NOT_YAML as error:
        raise FtaeError(f"the value is not valid YAML: {reason_of(error)}") from error
