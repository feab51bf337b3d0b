"""The generated parts of the site: tables of the specs, the registries, the commands and the modules.

``generated(NAME)`` gives the Markdown for a marker ``<!-- generated: NAME -->``. All facts and all words come from the
code: docstrings, descriptions of fields and metrics, roles, bounds, defaults.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from field_tables import fields, in_one_table, members_of
from page_text import plain, sentence, summary, table
from typer.models import ArgumentInfo, ParameterInfo

from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.needs import Need
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.schema import (
    alternatives,
    descriptions,
)
from ftae.specs.search.settings import SearchSettings

ROOT = Path(__file__).parents[1]


def generated(name: str) -> str:
    """The Markdown of one marker."""
    return PARTS[name]()


def families() -> str:
    return _members(FinetuneSpec, "model", "family", {"latents": _latents})


def _latents(model: Any) -> str:
    if not model.has_latents:
        return "none"
    if model.has_codes:
        return "codes"
    return {True: "posterior", False: "plain", None: "yours"}[model.has_posterior]


def sources() -> str:
    return _members(FinetuneSpec, "data", "source")


def schedulers() -> str:
    return _members(SearchSettings, "scheduler", "name")


def _members(spec: type[Spec], name: str, key: str, facts: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """A row for each member of a union: what it is, further ``facts`` of it, and the fields that not all have."""
    members = members_of(spec.model_fields[name])
    shared = set.intersection(*(set(model.model_fields) for _, model in members))
    rows = []
    for tag, model in members:
        own = " ".join(f"`{each}`" for each in model.model_fields if each not in {key, *shared})
        rows.append((f"`{tag}`", in_one_table(model), *(fact(model) for fact in (facts or {}).values()), own))
    return table([key, "what it is", *(facts or {}), "fields of its own"], rows)


def samplers() -> str:
    from ftae.search.sampler import SAMPLERS

    rows = ((f"`{name}`", sentence(make.__doc__ or make.__name__.replace("_", " "))) for name, make in SAMPLERS.items())
    return table(["sampler", "what it is"], rows)


def losses() -> str:
    described = {name: sentence(text) for name, text in descriptions(Losses).items() if name in Losses.TERMS}
    rows = ((f"`{name}`", described[name], _needs(needs)) for name, needs in Losses.TERMS.items())
    return table(["term", "what it is", "needs"], rows)


def metrics() -> str:
    rows = []
    for name, metric in METRICS.items():
        better = {"minimize": "lower", "maximize": "higher", None: ""}[metric.better]
        few = [f"{metric.least_images} images"] if metric.least_images > 1 else []
        bounds = f"{metric.low:g} … {metric.high:g}"
        rows.append((f"`{name}`", sentence(metric.description), better, bounds, _needs(metric.needs, few)))
    return table(["metric", "what it is", "better", "bounds", "needs"], rows)


def _needs(needs: Sequence[Need], others: Sequence[str] = ()) -> str:
    return ", ".join([*(plain(need.description) for need in needs), *others])


def commands() -> str:
    """A heading for each panel of ``ftae --help`` and a section for each command."""
    from ftae.cli.main import app

    panels: dict[str, list[Any]] = {}
    for info in _registered(app):
        panels.setdefault(getattr(info, "rich_help_panel", None) or "Searches", []).append(info)
    parts = []
    for panel, found in sorted(panels.items(), key=lambda item: item[0] != "Searches"):
        parts.append(f"## {panel if isinstance(panel, str) else 'Searches'}")
        parts += [_command(info) for info in found]
    return "\n\n".join(parts)


def _registered(app: Any) -> Iterator[Any]:
    """The commands of a typer app, those of the apps added to it included."""
    for info in app.registered_commands:
        if not info.hidden:
            yield info
    for group in app.registered_groups:
        yield from _registered(group.typer_instance)


def _command(info: Any) -> str:
    name = info.name or info.callback.__name__.replace("_", "-")
    parameters = inspect.signature(info.callback).parameters.values()
    found = [(p, next(m for m in p.annotation.__metadata__ if isinstance(m, ParameterInfo))) for p in parameters]
    shown = [(p, meta) for p, meta in found if not meta.hidden]
    arguments = [meta.metavar or p.name.upper() for p, meta in shown if isinstance(meta, ArgumentInfo)]
    rows = [_parameter(p, meta) for p, meta in shown]
    usage = " ".join(["ftae", name, *arguments, "[OPTIONS]"])
    text = plain(inspect.cleandoc(info.callback.__doc__ or ""))
    return f"### `ftae {name}`\n\n{text}\n\n```text\n{usage}\n```\n\n" + table(["", "what it is", "default"], rows)


def _parameter(parameter: inspect.Parameter, meta: Any) -> tuple[str, str, str]:
    kinds = alternatives(parameter.annotation)
    if isinstance(meta, ArgumentInfo):
        return f"`{meta.metavar or parameter.name.upper()}`", meta.help or "", "required"
    # Typer takes the first name of an option for its default until the command is made.
    first = [meta.default] if isinstance(meta.default, str) and meta.default.startswith("-") else []
    options = [*first, *(meta.param_decls or [])] or [f"--{parameter.name.replace('_', '-')}"]
    value = "" if kinds == [bool] else " " + (meta.metavar or _METAVARS.get(kinds[0], "TEXT"))
    default = meta.show_default if isinstance(meta.show_default, str) else parameter.default
    if default is inspect.Parameter.empty:
        default = "required"
    shown = "" if default in (None, False) else str(default)
    return ", ".join(f"`{option}{value}`" for option in options), meta.help or "", shown


_METAVARS = {int: "N", float: "X", Path: "PATH"}


def modules() -> str:
    """Every package with its docstring, and its modules with the first sentence of theirs."""
    root = ROOT / "ftae"
    folders = [root, *sorted(path.parent for path in root.rglob("__init__.py") if path.parent != root)]
    parts = []
    for folder in folders:
        name = ".".join(folder.relative_to(ROOT).parts)
        rows = [
            (f"`{path.name}`", summary(_docstring(path)))
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        about = plain(_docstring(folder / "__init__.py") or "")
        parts.append(f"### `{name}`\n\n{about}\n\n" + (table(["module", "what it does"], rows) if rows else ""))
    return "\n\n".join(parts)


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def recipes() -> str:
    """Every file of ``search_spaces/``: what its header says, and the file itself."""
    parts = []
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        header = [line.removeprefix("#").strip() for line in text.split("\nname:")[0].splitlines()]
        about = " ".join(line for line in "\n".join(header).split("\n\n")[0].splitlines() if line)
        body = text.replace("\n", "\n    ")
        parts.append(
            f'## `{path.name}`\n\n{about}\n\n??? example "the file"\n\n    ```yaml\n    {body.rstrip()}\n    ```'
        )
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "families": families,
    "fields": fields,
    "losses": losses,
    "metrics": metrics,
    "modules": modules,
    "recipes": recipes,
    "samplers": samplers,
    "schedulers": schedulers,
    "sources": sources,
}
