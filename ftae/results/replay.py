"""From a journal to a SearchRecord: every event checked, then folded."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.results.search_record import Kind, SearchRecord, Status
from ftae.specs.search.objective import read_objective
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import FILE_NAME, Event, UnreadableJournal, logger, read
from ftae.storage.store import open_store
from ftae.wording import done_of_asked

LAST_TIME = 2.5e11  # of the calendar, in the year 9892

# What readers rely on; an event may hold more.
_FIELDS: dict[str, dict[str, Any]] = {
    "open": {"search": dict, "digest": str},
    "suggest": {"trial": int, "params": dict, "kind": str},
    "start": {"trial": int},
    "adapt": {"trial": int, "changes": dict},
    "note": {"trial": int, "text": str},
    "report": {
        "trial": int,
        "step": int,
        "value": float | int,
        "metrics": dict,
        "timing": dict,
        "checkpoint": str | None,
        "images": str | None,
    },
    "end": {"trial": int, "status": str, "reason": str | None},
    "preflight": {"probe": dict},
    "close": {"status": str, "reason": str | None},
}


def replay(folder: Path) -> SearchRecord:
    """The whole journal, folded.

    Raises:
        FtaeError: there is no journal in ``folder``.
        UnreadableJournal: it is damaged, by another version of ftae, or empty.
    """
    if not (folder / FILE_NAME).exists():
        raise FtaeError(f"{folder} holds no search (no {FILE_NAME})")
    record = fold(folder)
    if not record.search:
        raise UnreadableJournal(
            f"{folder / FILE_NAME} is empty: the search never began; remove the folder and start again", "never began"
        )
    return record


def fold(folder: Path) -> SearchRecord:
    """What the journal in ``folder`` holds, if only nothing yet. Events of kinds that this version lacks are logged.

    Raises:
        UnreadableJournal: it is damaged, or by another version of ftae.
    """
    record, unknown = SearchRecord(search={}), dict[str, int]()
    for event, offset in read(folder):
        if event["event"] not in _FIELDS:
            unknown[event["event"]] = unknown.get(event["event"], 0) + 1
            continue
        if wrong := _wrong(event, record):
            place = f"{folder / FILE_NAME}: the event before byte {offset}"
            raise UnreadableJournal(f"{place} is damaged, or by another version of ftae: {wrong}")
        record.apply(event)
    if unknown:
        told = ", ".join(f"{count} of {kind!r}" for kind, count in unknown.items())
        logger.warning("%s: events of a kind that this version of ftae lacks are left out: %s", folder, told)
    return record


def _wrong(event: Event, record: SearchRecord) -> str | None:
    """Why an event cannot be folded into ``record``; None if it can."""
    kind, at = event["event"], event.get("time", -1)
    if not _is(at, float | int) or not 0 <= at < LAST_TIME:
        return f"{kind!r} has no time"
    for name, wanted in _FIELDS[kind].items():
        if name not in event or not _is(event[name], wanted):
            return f"{kind!r} has no {name}" if name not in event else f"{kind!r} has a {name} of another type"
    if kind == "open":
        has_facts = isinstance(event.get("facts", {}), dict)
        return _wrong_search(event["search"]) if has_facts else "'open' has facts of another type"
    if not record.search:
        return f"{kind!r} comes before any 'open'"
    return _wrong_trial(event, record) if "trial" in event else None


def _wrong_search(search: Mapping[str, Any]) -> str | None:
    if not isinstance(search.get("name"), str) or not isinstance(search.get("search_space"), dict):
        return "'open' holds no search"
    settings = search.get("search")
    if not isinstance(settings, dict) or not _is(settings.get("num_trials"), int):
        return "'open' holds no search.num_trials"
    try:
        read_objective(search.get("objective") or {})
    except ValidationError:
        return "'open' holds no objective of this version"
    return None


def _wrong_trial(event: Event, record: SearchRecord) -> str | None:
    kind, number = event["event"], event["trial"]
    if kind == "suggest":
        has_kind = event["kind"] in get_args(Kind)
        return None if has_kind and number not in record.trials else f"it suggests trial {number} in an unknown way"
    if number not in (record.running if kind == "end" else record.trials):
        return f"{kind!r} is of trial {number}, which is not {'running' if kind == 'end' else 'known'}"
    trial, metrics = record.trials[number], record.objective.shown_metrics
    if kind == "report" and not all(_is(event["metrics"].get(name), float | int) for name in metrics):
        return f"a report without {', '.join(metrics)}"
    if kind == "report" and event["checkpoint"] and not event["images"]:
        return "a report with a checkpoint and no images"
    if kind == "end" and event["status"] not in get_args(Status):
        return f"trial {number} ends as {event['status']!r}"
    if kind == "end" and event["status"] == "finished" and not trial.reports:
        return f"trial {number} is finished, but never reported"
    return None


def _is(value: Any, wanted: Any) -> bool:
    """Whether it is of a type, where true is no number, and a number is finite."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, wanted)


def find_existing_search(spec: SearchSpec, resume: bool | None) -> SearchRecord | None:
    """The record of the search to resume; None if no trial of it has begun.

    Raises:
        FtaeError: ``resume`` is True and there is none, or ``resume`` is False and there is one.
    """
    store = open_store(spec.search.storage, spec.name, "reader")
    store.refresh()
    found = fold(store.folder) if store.exists() else None
    before = found if found is not None and found.trials else None
    if resume and before is None:
        raise FtaeError(f"there is nothing to resume in {store}; start the search without --resume")
    if before is not None and resume is False:
        ended, asked = before.ended.total(), before.search["search"]["num_trials"]
        raise FtaeError(
            f"{store} holds a search already ({done_of_asked(ended, asked, ' of ')} trials done). "
            "Continue it with --resume, or give the new one another name (--set name=...)"
        )
    return before
