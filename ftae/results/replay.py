"""From a journal to a SearchRecord: checks every event, then folds it in."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.results.search_record import WARM_START, Kind, SearchRecord, Status
from ftae.specs.search.objective import read_objective
from ftae.specs.search.search import SearchSpec
from ftae.storage.journal import FILE_NAME, Event, UnreadableJournal, logger, read
from ftae.storage.store import open_store
from ftae.wording import count, done_of_asked, full_trainings

REPORTS = "reports.jsonl"  # what a production run of version 1 wrote instead of a journal
LATEST_TIME = 2.5e11  # seconds since the epoch: the year 9892, near the end of Python's calendar

# The fields that readers rely on; an event may hold more.
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

# The fields that an event may have; a dict has at least these keys. All values are finite numbers.
_NUMBERS: dict[str, Any] = {"model": list, "noise": float | int, "forecast": ("mean", "sd")}


def replay(folder: Path) -> SearchRecord:
    """Fold the whole journal in ``folder``.

    Raises:
        FtaeError: there is no journal in ``folder``, or a newer ftae wrote it.
        UnreadableJournal: the journal is damaged, by another version of ftae, or empty.
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
    """Fold the journal in ``folder``, which may be empty. Unknown kinds of events are left out and logged.

    Raises:
        UnreadableJournal: the journal is damaged, or by another version of ftae.
        FtaeError: a newer ftae wrote the journal.
    """
    record, unknown, intact = SearchRecord(search={}), dict[str, int](), 0
    for event, offset in read(folder):
        if event["event"] not in _FIELDS:
            unknown[event["event"]] = unknown.get(event["event"], 0) + 1
        elif fault := _fault(event, record):
            place = f"{folder / FILE_NAME}: the event before byte {offset}"
            message = f"{place} is damaged, or by another version of ftae: {fault}"
            raise UnreadableJournal(message, intact_bytes=intact)
        else:
            record.apply(event)
        intact = offset
    if unknown:
        counts = ", ".join(f"{count} of {kind!r}" for kind, count in unknown.items())
        logger.warning("%s: events of a kind that this version of ftae lacks are left out: %s", folder, counts)
    return record


def _fault(event: Event, record: SearchRecord) -> str | None:
    """Why an event cannot be folded into ``record``; None if it can."""
    kind, at = event["event"], event.get("time", -1)
    if not _is(at, float | int) or not 0 <= at < LATEST_TIME:
        return f"{kind!r} has no time"
    for name, wanted in _FIELDS[kind].items():
        if name not in event or not _is(event[name], wanted):
            return f"{kind!r} has no {name}" if name not in event else f"{kind!r} has a {name} of another type"
    if wrong := [name for name, numbers in _NUMBERS.items() if name in event and not _is_numbers(event[name], numbers)]:
        return f"{kind!r} has a {wrong[0]} of another type"
    if kind == "open":
        return _fault_of_open(event)
    if not record.search:
        return f"{kind!r} comes before any 'open'"
    return _fault_of_trial(event, record) if "trial" in event else None


def _fault_of_open(event: Event) -> str | None:
    if not isinstance(event.get("facts", {}), dict):
        return "'open' has facts of another type"
    if not _is_warm_start(event.get("facts", {}).get(WARM_START, [])):
        return f"'open' has facts.{WARM_START} of another type"
    kind, search = event.get("kind", "search"), event["search"]
    if kind not in ("search", "production"):
        return f"'open' has the kind {kind!r}"
    if not isinstance(search.get("name"), str) or not isinstance(search.get("search_space"), dict):
        return "'open' holds no search"
    run = search.get("finetune")
    if not isinstance(run, dict) or not _is(run.get("max_steps"), int) or run["max_steps"] < 1:
        return "'open' holds no run"
    return _fault_of_settings(search)


def _is_warm_start(found: Any) -> bool:
    """Whether a fact describes earlier searches, each with its trials and its model of them."""
    return isinstance(found, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("search"), str)
        and isinstance(one.get("digest"), str)
        and _is_numbers(one.get("model"), list)
        and isinstance(trials := one.get("trials"), list)
        and bool(trials)
        and all(map(_is_earlier_trial, trials))
        for one in found
    )


def _is_earlier_trial(trial: Any) -> bool:
    if not isinstance(trial, dict) or not isinstance(trial.get("params"), dict):
        return False
    shares, values = trial.get("shares", ()), trial.get("values", ())
    return _is_numbers(shares, list) and _is_numbers(values, list) and 0 < len(shares) == len(values)


def _fault_of_settings(search: Mapping[str, Any]) -> str | None:
    settings = search.get("search")
    if not isinstance(settings, dict) or not _is(settings.get("num_trials"), int):
        return "'open' holds no search.num_trials"
    if not _is(settings.get("budget"), float | int | None):
        return "'open' holds a search.budget of another type"
    try:
        read_objective(search.get("objective") or {})
    except ValidationError:
        return "'open' holds no objective of this version"
    return None


def _fault_of_trial(event: Event, record: SearchRecord) -> str | None:
    kind, number = event["event"], event["trial"]
    if kind == "suggest":
        return _fault_of_suggest(event, record)
    if number not in record.trials and number not in record.confirmations:
        return f"{kind!r} is of trial {number}, which is not known"
    trial, metrics = record.trial(number), record.objective.shown_metrics
    if kind == "end" and trial.status != "running":
        return f"'end' is of trial {number}, which is not running"
    if kind == "start" and record.kind == "production" and not _is(event.get("step"), int):
        return "'start' of a production run without a step"
    if kind == "report" and not all(_is(event["metrics"].get(name), float | int) for name in metrics):
        return f"a report without {', '.join(metrics)}"
    if kind == "report" and event["checkpoint"] and not event["images"]:
        return "a report with a checkpoint and no images"
    if kind == "end" and event["status"] not in get_args(Status):
        return f"trial {number} ends as {event['status']!r}"
    if kind == "end" and event["status"] == "finished" and not trial.reports:
        return f"trial {number} is finished, but never reported"
    return None


def _fault_of_suggest(event: Event, record: SearchRecord) -> str | None:
    number, kind = event["trial"], event["kind"]
    if kind not in get_args(Kind) or number in record.trials or number in record.confirmations:
        return f"it suggests trial {number} in an unknown way"
    if kind != "confirmation":
        return None
    finalist, changes = record.trials.get(event.get("of", -1)), event.get("changes")
    if finalist is None or finalist.status != "finished":
        return f"confirmation {number} is of no trial that finished"
    return None if isinstance(changes, dict) and _is(changes.get("seed"), int) else f"confirmation {number} has no seed"


def _is(value: Any, wanted: Any) -> bool:
    """Whether ``value`` has a type; a truth value is no number, and numbers are finite."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, wanted)


def _is_numbers(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is a number, a list of numbers, or a dict of numbers with these keys."""
    if isinstance(wanted, tuple):
        return isinstance(value, dict) and value.keys() >= set(wanted) and _is_numbers([*value.values()], list)
    if wanted is list:
        return isinstance(value, list) and all(_is(number, float | int) for number in value)
    return _is(value, wanted)


def find_existing_search(spec: SearchSpec, resume: bool | None) -> SearchRecord | None:
    """Return the record of the search that ``spec`` continues; None if the search is new.

    Raises:
        FtaeError: with ``resume``: there is no such search; with ``resume=False``: there is one already.
    """
    store = open_store(spec.search.storage, spec.name, "reader")
    store.refresh()
    found = fold(store.folder) if store.exists() else None
    before = found if found is not None and found.trials else None
    if resume and before is None:
        raise FtaeError(f"there is nothing to resume in {store}; start the search without --resume")
    if before is not None and resume is False:
        raise FtaeError(
            f"{store} holds a search already ({_done(before)} done). Continue it with --resume, or give the new one "
            "another name (--set name=...)"
        )
    return before


def _done(record: SearchRecord) -> str:
    ended = record.ended.total()
    if record.budget is None:
        return f"{done_of_asked(ended, record.num_trials, ' of ')} trials"
    return f"{full_trainings(record.used_budget, record.budget)}, {count(ended, 'trial')}"


def reports_of_version_1(folder: Path, trial: int, metric: str) -> list[Event]:
    """Read the reports of a production run of version 1 as events of a journal, up to the first damaged line.

    ``metric``: the objective.
    """
    events: list[Event] = []
    if (folder / REPORTS).is_file():
        for line in (folder / REPORTS).read_bytes().splitlines():
            try:
                report = dict(json.loads(line))
                event = {"event": "report", "trial": trial, "value": report["metrics"][metric], **report}
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if any(not _is(event.get(name), wanted) for name, wanted in (_FIELDS["report"] | {"time": float}).items()):
                break
            events.append(event)
    return events
