"""The tables of all fields of the files: a section for each class of spec, a row for each field."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import yaml
from page_text import about, sentence, slug, table
from pydantic import JsonValue
from pydantic.fields import FieldInfo

from ftae.specs.finetune.metrics import METRICS
from ftae.specs.reading.base import Spec
from ftae.specs.reading.schema import (
    Governed,
    Means,
    NotSearched,
    Role,
    alternatives,
    constrained,
    descriptions,
    mapping_values,
    model_of,
    tag_of,
)
from ftae.specs.search.search import ProductionSpec, SearchSpec


@dataclass
class Section:
    """One place of a file where fields stand: its path, and the specs that may stand there, by their tags."""

    path: str
    specs: list[tuple[str | None, type[Spec]]] = field(default_factory=list)


@cache
def sections() -> tuple[Section, ...]:
    """All sections of a search file, each behind the one it stands in; one that may stand in several, in the first."""
    found: dict[tuple[type[Spec], ...], Section] = {(SearchSpec,): Section("", [(None, SearchSpec)])}
    waiting = list(found.values())
    while waiting:  # breadth first, so that a section has its shortest path
        here = waiting.pop(0)
        for _, spec in here.specs:
            for name, info in spec.model_fields.items():
                members = members_of(info)
                specs = tuple(member for _, member in members)
                if specs and specs not in found:
                    found[specs] = Section(f"{here.path}.{name}".strip("."), members)
                    waiting.append(found[specs])
    return tuple(_in_order(found.values(), ""))


def _in_order(found: Iterable[Section], path: str) -> Iterator[Section]:
    for section in found:
        if section.path == path:
            yield section
        elif section.path.rpartition(".")[0] == path:
            yield from _in_order(found, section.path)


def members_of(info: FieldInfo) -> list[tuple[str | None, type[Spec]]]:
    """The specs that may stand in a field, or in the mapping or list that it is, by their tags."""
    kinds = [kind for option in alternatives(info.annotation) for kind in _items(option)]
    return [(tag_of(kind), spec) for kind in kinds if (spec := _spec_of(kind)) is not None]


def _items(kind: Any) -> list[Any]:
    """The alternatives of what a mapping or a list holds; otherwise the type itself."""
    if mapping_values(kind) is not None:
        return alternatives(mapping_values(kind))
    if get_origin(kind) is tuple:
        return [inner for item in get_args(kind) if item is not Ellipsis for inner in alternatives(item)]
    return [kind]


def _spec_of(kind: Any) -> type[Spec] | None:
    model = model_of(kind)
    return model if model is not None and issubclass(model, Spec) else None


PRODUCTION = Section("production.yaml", [(None, ProductionSpec)])


def fields() -> str:
    """A heading and a table for every section of a search file, then for what a production file has beside them."""
    return "\n\n".join(_section(section) for section in (*sections(), PRODUCTION))


def _section(section: Section) -> str:
    heading = f"## `{section.path}`" if section.path else "## The file itself"
    if len(section.specs) == 1:
        texts = [about(section.specs[0][1])]
    else:
        members = "\n".join(f"- `{tag}`: {in_one_table(spec)}" for tag, spec in section.specs)
        texts = [*_of_bases(section), members]
    return "\n\n".join(part for part in [heading, *texts, _fields_table(section)] if part)


def in_one_table(spec: type[Spec]) -> str:
    return " ".join(about(spec).split())


def _of_bases(section: Section) -> list[str]:
    """What the classes that several members of a union derive from say, and of which members they say it."""
    heirs: dict[type[Spec], list[str]] = {}
    for tag, spec in section.specs:
        for base in spec.__mro__[1:]:
            if isinstance(base, type) and issubclass(base, Spec) and base is not Spec:
                heirs.setdefault(base, []).append(str(tag))
    own = {spec for _, spec in section.specs}
    texts = []
    for base, tags in sorted(heirs.items(), key=lambda item: -len(item[1])):
        if about(base) and base not in own and len(tags) > 1:
            which = "" if len(tags) == len(section.specs) else f"{', '.join(f'`{tag}`' for tag in tags)}: "
            texts.append(which + in_one_table(base))
    return texts


def _fields_table(section: Section) -> str:
    """One row a field; of several specs, one for each way in which a field is declared, and which have it."""
    rows: dict[tuple[str, ...], list[str]] = {}
    tags = [str(tag) for tag, _ in section.specs]
    for tag, spec in section.specs:
        described = descriptions(spec)
        for name, info in spec.model_fields.items():
            if len(tags) > 1 and name in TAGS:  # what tells the members apart
                if tag != tags[0]:
                    continue
                kinds = "one of " + ", ".join(f"`{each}`" for each in tags)
                row = f"`{name}`", kinds, "required", "", "Which of them."
            else:
                text = meaning(info, described.get(name, ""))
                row = f"`{name}`", type_of(info), default_of(info), range_of(info), text
            rows.setdefault(row, []).append(str(tag))
    head = ["field", "type", "default", "range", "meaning"]
    if len(tags) == 1:
        return table(head, rows)
    of = {row: tags if row[1].startswith("one of") else found for row, found in rows.items()}
    ordered = sorted(rows, key=lambda row: -len(of[row]))
    return table([head[0], "of", *head[1:]], ((row[0], _which(of[row], tags), *row[1:]) for row in ordered))


def _which(found: Sequence[str], tags: Sequence[str]) -> str:
    """The members of a union that have a field, in few words."""
    missing = [tag for tag in tags if tag not in found]
    if not missing or (found == [tag for tag in tags if tag != "package.module:attr"] and len(found) > 8):
        return "all"
    if len(missing) < len(found) and len(tags) > 4:
        return "all but " + ", ".join(f"`{tag}`" for tag in missing)
    return ", ".join(f"`{tag}`" for tag in found)


def meaning(info: FieldInfo, description: str) -> str:
    """What a field is, and the conditions under which it may be given."""
    roles = [role for role in info.metadata if isinstance(role, Role)]
    notes = [note for role in roles if (note := _note(role)) is not None]
    return " ".join([sentence(description), *notes]).strip()


def _note(role: Role) -> str | None:
    match role:
        case Governed(governor=governor, values=values):
            allowed = " or ".join(f"`{value}`" for value in values)
            return f"Only where `{governor}` is {allowed or 'on'}."
        case NotSearched(reason=reason):
            return f"Not searched: {reason}."
        case Means():
            return "May change on resume."
    return None


# The fields that tell the members of a union apart.
TAGS = ("family", "source", "name")

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_SEVERAL = {"whole number": "whole numbers", "number": "numbers", "any value": "any values"}


def type_of(info: FieldInfo) -> str:
    """The type of a field in words; a section is a link to its table."""
    texts = [_kind(kind) for kind in alternatives(info.annotation) if _spec_of(kind) is None]
    members = tuple(spec for _, spec in members_of(info))
    if members:
        home = next(s for s in sections() if tuple(spec for _, spec in s.specs) == members)
        holder = next((get_origin(kind) for kind in alternatives(info.annotation)), None)
        word = {dict: "mapping to", tuple: "list of"}.get(holder, "")
        texts = [f"{word} [{home.path}](#{slug(home.path)})".strip()]
    null = ["null"] if type(None) in get_args(info.annotation) else []
    return " or ".join(dict.fromkeys([*texts, *null]))


def _kind(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _kind(get_args(kind)[0])
    if origin is Literal and get_args(kind) == tuple(METRICS):
        return "[metrics](search-file.md#metrics-finetunemetrics)"
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in get_args(kind))
    if origin in (tuple, dict):
        arguments = get_args(kind)[1:] if origin is dict else [a for a in get_args(kind) if a is not Ellipsis]
        kinds = dict.fromkeys(_kind(item) for each in arguments for item in alternatives(each))
        inner = " or ".join(_SEVERAL.get(kind, kind) for kind in kinds)
        if origin is dict:
            return f"mapping to {inner}"
        return f"list of {inner}" if get_args(kind)[-1] is Ellipsis else f"{len(arguments)} values: {inner}"
    return _WORDS.get(kind, "any value" if kind is Any or kind is JsonValue else "text")


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Spec):
        given = value.model_dump(exclude_defaults=True, mode="json")
        name = getattr(value, "name", None)
        return f"`{_yaml(name)}`" if name is not None else f"`{_yaml(given)}`" if given else "its defaults"
    return f"`{_yaml(value)}`"


def range_of(info: FieldInfo) -> str:
    """The bounds of a field."""
    found = list(_constraints(constrained(info)))
    low = next((f"≥ {c.ge:g}" for c in found if isinstance(c, annotated_types.Ge)), None) or next(
        (f"> {c.gt:g}" for c in found if isinstance(c, annotated_types.Gt)), None
    )
    high = next((f"≤ {_large(c.le)}" for c in found if isinstance(c, annotated_types.Le)), None) or next(
        (f"< {_large(c.lt)}" for c in found if isinstance(c, annotated_types.Lt)), None
    )
    least = next((c.min_length for c in found if isinstance(c, annotated_types.MinLen)), None)
    most = next((c.max_length for c in found if isinstance(c, annotated_types.MaxLen)), None)
    lengths = [*([f"at least {least}"] if least else []), *([f"at most {most} long"] if most else [])]
    return ", ".join(part for part in (low, high, *lengths) if part)


def _large(value: float) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:,}"


def _constraints(annotation: Any) -> Iterator[Any]:
    """The constraints of an annotation, its items included."""
    if get_origin(annotation) is Annotated:
        for extra in annotation.__metadata__:
            if isinstance(extra, FieldInfo):
                yield from extra.metadata
            else:
                yield extra
    if get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            if get_origin(inner) is not None:
                yield from _constraints(inner)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return str(value) if isinstance(value, float) else text
