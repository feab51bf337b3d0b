"""Search and production files: YAML in, specs out, every problem at once as ``file:line: path: message``."""

import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ftae.errors import FtaeError, SpecError
from ftae.lookup import did_you_mean
from ftae.specs.base import Spec
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.overrides import set_path
from ftae.specs.search import ProductionSpec, SearchSpec

S = TypeVar("S", bound=Spec)
Location = tuple[str | int, ...]


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search file; ``overrides`` are ``path=value`` strings from ``--set``.

    Raises:
        SpecError: with every problem of the file.
    """
    return _SpecFile(path, overrides).parse(SearchSpec)


def load_production(path: Path, overrides: Sequence[str] = ()) -> ProductionSpec:
    """Read a production file (what ``ftae export`` writes).

    Raises:
        SpecError: with every problem of the file.
    """
    return _SpecFile(path, overrides).parse(ProductionSpec)


def load_any(path: Path, overrides: Sequence[str] = ()) -> SearchSpec | ProductionSpec:
    """Read either kind of file: one with a ``search_space`` or an ``objective`` is a search."""
    file = _SpecFile(path, overrides)
    is_search = {"search_space", "objective", "search"} & set(file.data)
    return file.parse(SearchSpec) if is_search else file.parse(ProductionSpec)


def dump(spec: Spec) -> str:
    """``spec`` as YAML that loads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=110)


class _SpecFile:
    """One YAML file with the line of every key, and the overrides laid over it."""

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path = path
        self.lines: dict[Location, int] = {}
        self.overridden: dict[Location, str] = {}
        self.duplicates: list[str] = []
        self.data = self._read()
        for override in overrides:
            self._override(override)

    def parse(self, spec_type: type[S]) -> S:
        problems = list(self.duplicates)
        try:
            spec = spec_type.model_validate(self.data)
        except ValidationError as error:
            found = sorted(self._problems(spec_type, error), key=lambda problem: problem[0])
            problems += [text for _, text in found]
        if problems:
            raise SpecError(problems)
        return spec

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError([f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            raise SpecError([f"{self.path}:{line}: not valid YAML: {getattr(error, 'problem', error)}"]) from error
        if not isinstance(data, dict):
            raise SpecError([f"{self.path}:1: must be a mapping with the keys name, finetune, ..., got {data!r}"])
        self._index(root, ())
        return data

    def _index(self, node: Any, location: Location) -> None:
        self.lines[location] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    self.duplicates.append(f"{self.path}:{line}: {_dotted((*location, key.value))}: key given twice")
                seen.add(key.value)
                self._index(value, (*location, key.value))
                self.lines[(*location, key.value)] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._index(item, (*location, i))

    def _override(self, text: str) -> None:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise FtaeError(f"--set takes path=value, got {text!r}")
        # A leaf of finetune may be named without its section, as in search_space.
        head = path.split(".")[0]
        if head in FinetuneSpec.model_fields and head not in SearchSpec.model_fields:
            path = f"finetune.{path}"
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise FtaeError(f"--set {text}: the value is not valid YAML") from error
        set_path(self.data, path, parsed)
        self.overridden[tuple(path.split("."))] = text

    def _problems(self, spec_type: type[Spec], error: ValidationError) -> Iterator[tuple[int, str]]:
        for detail in error.errors(include_url=False):
            location = _without_tags(detail["loc"], self.data)
            for inner, message in _messages(spec_type, location, detail):
                where, line = self._where((*location, *inner))
                path = _dotted((*location, *inner))
                yield line, f"{where}: {path}: {message}" if path else f"{where}: {message}"

    def _where(self, location: Location) -> tuple[str, int]:
        """The place to look: the nearest key that the file or an override holds."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.overridden:
                return f"--set {self.overridden[location[:end]]}", 0
            if location[:end] in self.lines:
                return f"{self.path}:{self.lines[location[:end]]}", self.lines[location[:end]]
        return str(self.path), 0


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _messages(spec_type: type[Spec], location: Location, detail: ErrorDetails) -> Iterator[tuple[Location, str]]:
    """Each message of one pydantic error, with the location it names below the error's own."""
    kind, given = detail["type"], detail.get("input")
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        fields = _fields_at(spec_type, location[:-1], detail["loc"])
        yield (), f"unknown key{did_you_mean(str(location[-1]), fields)}. Choose one of {', '.join(fields)}"
    elif kind == "missing":
        yield (), "required"
    elif kind == "literal_error":
        choices = [c.strip(" '") for c in context["expected"].replace(" or ", ", ").split(", ")]
        yield (), f"must be one of {', '.join(choices)}, got {given!r}{did_you_mean(str(given), choices)}"
    elif kind.startswith("union_tag"):
        yield from _tag_messages(detail)
    elif kind == "value_error":
        for line in str(context["error"]).splitlines():
            path, colon, message = line.partition(": ")
            inner = tuple(path.split(".")) if colon and " " not in path else ()
            if inner[:1] == ("search_space",):
                inner = ("search_space", path.removeprefix("search_space."))
            yield (inner, message) if inner else ((), line)
    else:
        yield (), f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {given!r}"


def _tag_messages(detail: ErrorDetails) -> Iterator[tuple[Location, str]]:
    given: Any = detail.get("input")
    last = detail["loc"][-1] if detail["loc"] else ""
    key, own = {"model": ("family", ", or your own 'package.module:attr'"), "scheduler": ("name", "")}.get(
        str(last), ("source", "")
    )
    tags = "mlp_vae, conv_ae, conv_vae, autoencoder_kl, autoencoder_tiny" if key == "family" else None
    tags = tags or detail.get("ctx", {}).get("expected_tags", "").replace("'", "")
    value = given.get(key) if isinstance(given, dict) else given
    if value is None:
        yield (key,), f"required. Choose one of {tags}{own}"
    else:
        suggestion = did_you_mean(str(value), tags.split(", "))
        yield (key,), f"must be one of {tags}{own}, got {value!r}{suggestion}"


def _without_tags(loc: tuple[str | int, ...], data: Any) -> Location:
    """pydantic's location less the union tags, which stand in no file."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(data, dict) and part in data or isinstance(data, list) and isinstance(part, int):
            data = data[part] if isinstance(data, dict) or part < len(data) else None  # type: ignore[index,operator]
            kept.append(part)
        elif i == len(loc) - 1 and not (isinstance(part, str) and part in _UNION_PARTS):
            kept.append(part)
            data = None
    return tuple(kept)


_UNION_PARTS = frozenset({"float", "str", "int", "none", "bool", "range", "choices", "[key]"})


def _fields_at(spec_type: Any, location: Location, loc: tuple[str | int, ...]) -> list[str]:
    """The keys the model at ``location`` takes, following union tags by pydantic's own ``loc``."""
    candidates: list[Any] = [spec_type]
    for part in loc[:-1]:
        following = []
        for candidate in candidates:
            if part in getattr(candidate, "model_fields", {}):
                following += _models(candidate.model_fields[part].annotation)
        tagged = [c for c in candidates if _has_tag(c, part)]
        candidates = following or tagged or candidates
    return sorted({name for c in candidates for name in c.model_fields}, key=str) if candidates else []


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    for name in ("family", "source", "name"):
        field = model.model_fields.get(name)
        if field is not None and tag in get_args(field.annotation):
            return True
    return model.__name__.lower() == str(tag)


def _models(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Annotated, Union, types.UnionType, dict):
        return [model for option in get_args(annotation) for model in _models(option)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
