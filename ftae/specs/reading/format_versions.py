"""The format of the files that ftae writes and reads back: its number, older formats, and what does not fit.

Version 2 is the first that is written down, as ``format: 2`` at the top of a file (of a journal: in its ``open``
events). Files without a format are of version 1.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from ftae import __version__
from ftae.errors import FtaeError
from ftae.specs.reading.base import Spec
from ftae.specs.reading.problems import dotted, problems, quoted

FORMAT = 2
Kind = Literal["journal", "checkpoint", "model_folder", "production"]
S = TypeVar("S", bound=Spec)
MOST_PROBLEMS = 3  # in one message

# Leaves of a fine-tuning run by the names they had in version 1.
_RENAMED = {"prefix_cache_gb": "frozen_cache_gb", "model.outer_stages": "model.resolution_adapters"}


def migrate(content: Mapping[str, Any], kind: Kind, what: str | None = None) -> dict[str, Any]:
    """Convert stored content of any known format to the current one.

    ``content`` is the file's mapping as it was read (of a journal: one event) and stays unchanged. The result has no
    ``format`` key: that is the writer's to add. Content that is damaged passes through; its reader refuses it.
    ``what`` names the file in messages, such as ``the checkpoint PATH``.

    Raises:
        FtaeError: a newer ftae wrote the content, or its format is no number.
    """
    found = content.get("format", 1)
    subject = what or f"the {kind.replace('_', ' ')}"
    if type(found) is not int or found < 1:
        raise FtaeError(f"{subject} is damaged: its format is {quoted(found)}, not a number")
    if found > FORMAT:
        raise FtaeError(
            f"{subject} was written by a newer ftae (format {found}, this one reads up to {FORMAT}); upgrade ftae"
        )
    result = {key: value for key, value in content.items() if key != "format"}
    # Done for every format: of a journal only the ``open`` events say theirs, and no new key has an old name.
    return _FROM_VERSION_1[kind](result)


def _journal_event(event: dict[str, Any]) -> dict[str, Any]:
    result = event
    for settings in ("params", "changes"):  # of suggest and adapt
        result = _replaced(result, settings, _renamed_paths)
    return _replaced(result, "search", _search)


def _search(search: dict[str, Any]) -> dict[str, Any]:
    return _replaced(_replaced(search, "finetune", _run), "search_space", _renamed_paths)


def _checkpoint(report: dict[str, Any]) -> dict[str, Any]:
    return _replaced(_renamed(report, "vitals", "collapse_signs"), "spec", _run)


def _model(config: dict[str, Any]) -> dict[str, Any]:
    return _renamed(config, "outer_stages", "resolution_adapters")


def _production(content: dict[str, Any]) -> dict[str, Any]:
    return _replaced(content, "finetune", _run)


_FROM_VERSION_1: dict[Kind, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "journal": _journal_event,
    "checkpoint": _checkpoint,
    "model_folder": _model,
    "production": _production,
}


def _run(run: dict[str, Any]) -> dict[str, Any]:
    run = _renamed(run, "prefix_cache_gb", "frozen_cache_gb")
    return _replaced(run, "model", _model)


def _renamed_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Params, changes or a search space: keys are paths of leaves."""
    return {_RENAMED.get(path, path): value for path, value in values.items()}


def _renamed(mapping: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """With one key renamed in its place; a file that has both keys keeps both, and is refused by its reader."""
    if new in mapping:
        return mapping
    return {new if key == old else key: value for key, value in mapping.items()}


def _replaced(mapping: dict[str, Any], key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """With the mapping at ``key`` changed; what is not there, or no mapping, stays as it is."""
    section = mapping.get(key)
    return {**mapping, key: change(section)} if isinstance(section, dict) else mapping


@contextmanager
def reading_back(what: str, kind: type[Spec], version: str | None = None) -> Iterator[None]:
    """Read ``what``, which holds a ``kind``, inside; ``version``: the ftae that wrote it, where that is known.

    Raises:
        FtaeError: a spec in it has a field that this version lacks, or lacks one that it requires.
    """
    try:
        yield
    except ValidationError as error:
        found = [f"{dotted(location)}: {rule}" if location else rule for location, rule in problems(kind, error)]
        more = f", and {len(found) - MOST_PROBLEMS} more" if len(found) > MOST_PROBLEMS else ""
        writer = f" ({version}, this is {__version__})" if version not in (None, __version__) else ""
        raise FtaeError(
            f"{what} was written by another version of ftae{writer}, or changed since: "
            f"{'; '.join(found[:MOST_PROBLEMS])}{more}"
        ) from error


def stored(kind: type[S], data: Any, what: str, version: str | None = None) -> S:
    """The spec that ``what`` holds as ``data``. Raises as ``reading_back``."""
    with reading_back(what, kind, version):
        return kind.model_validate(data)
