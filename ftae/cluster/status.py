"""What a search is doing: its attempts on a cluster, and how far its journal says it got."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftae.cluster.jobs import Attempt, Client, at, attempts, connect, log
from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.reading.names import redacted
from ftae.storage.journal import UnreadableJournal
from ftae.storage.store import open_store, searches_in
from ftae.wording import done_of_asked


@dataclass(frozen=True)
class UnreadableSearch:
    """A journal that cannot be read: its state in a word or two, and what reading it raised."""

    state: str
    error: FtaeError | OSError


def look(search: str, storage: str) -> SearchRecord | UnreadableSearch | None:
    """What the journal of a search holds; None if this machine sees none in ``storage``."""
    try:
        store = open_store(storage, search, "reader")
        if not store.exists():
            return None
        store.refresh()
        return replay(store.folder)
    except UnreadableJournal as error:
        return UnreadableSearch(error.state, error)
    except (FtaeError, OSError) as error:  # such as an object store that this machine may not read
        return UnreadableSearch("unreadable", error)


def record_of(search: str, storage: str) -> SearchRecord | None:
    """What the journal of a search holds; None if this machine sees none in ``storage``, or it never began.

    Raises:
        UnreadableJournal: it is damaged.
    """
    found = look(search, storage)
    if isinstance(found, UnreadableSearch) and found.state == "damaged":
        raise found.error
    return found if isinstance(found, SearchRecord) else None


def describe(
    search: str,
    attempts: Sequence[Attempt],
    found: SearchRecord | UnreadableSearch | None,
    last_line: str | None = None,
) -> dict[str, Any]:
    """The status of a search as one plain object.

    ``progress`` is None where the journal is not visible; ``last_line`` of the driver's log may then tell.
    Times are seconds since the epoch.
    """
    return {
        "search": search,
        "state": state(attempts, found),
        "progress": progress(found) if isinstance(found, SearchRecord) else None,
        "last_line": last_line,
        "attempts": [
            {
                "number": attempt.number,
                "job": attempt.job,
                "status": attempt.status,
                "started": attempt.started,
                "ended": attempt.ended,
                "reason": attempt.reason,
            }
            for attempt in attempts
        ],
    }


def state(attempts: Sequence[Attempt], found: SearchRecord | UnreadableSearch | None) -> str:
    """What an attempt that is not over does; else complete, interrupted or failed, as its journal says.

    Without the journal it is the newest attempt's status; without either attempts or the end of the
    journal nobody can tell.
    """
    if attempts and (not isinstance(found, SearchRecord) or not attempts[-1].is_over):
        return attempts[-1].status.lower()
    if not isinstance(found, SearchRecord):
        return "not visible here" if found is None else found.state
    if found.close is not None:
        return str(found.close["status"])
    return "killed" if attempts else "running or killed"


def statuses(where: str, *, on_cluster: bool, notify: Callable[[str], None]) -> list[dict[str, Any]]:
    """Describe every search of the cluster, or of the storage, at ``where``, in the order of their names.

    ``notify`` receives a line for each journal that cannot be read.
    """
    found: dict[str, list[Attempt]] = {}
    if on_cluster:
        for attempt in attempts(connect(where)):
            found.setdefault(attempt.search, []).append(attempt)
    else:
        found = {name: [] for name in searches_in(where)}
    return [
        _visible(name, tries, tries[-1].storage if tries else where, notify) for name, tries in sorted(found.items())
    ]


def attempts_of(client: Client, name: str) -> list[Attempt]:
    """Return the attempts at a search, by its name or folder.

    Raises:
        FtaeError: the cluster has none; the message lists the searches that it has.
    """
    if found := attempts(client, Path(name).name):
        return found
    known = sorted({attempt.search for attempt in attempts(client)})
    choices = f"choose one of {', '.join(known)}" if known else "it has not run any"
    raise FtaeError(f"the cluster at {redacted(client.get_address())} has no search {name!r}; {choices}")


def described(client: Client, tries: Sequence[Attempt], notify: Callable[[str], None]) -> dict[str, Any]:
    """Describe a search on a cluster; where its journal is not visible, by the last line that its driver wrote."""
    newest = tries[-1]
    found = _visible(newest.search, tries, newest.storage, notify)
    written = log(client, newest).splitlines() if found["progress"] is None else []
    return found | {"last_line": written[-1] if written else None}


def _visible(search: str, tries: Sequence[Attempt], storage: str, notify: Callable[[str], None]) -> dict[str, Any]:
    found = look(search, storage)
    # A machine that only follows a cluster need not have access to the storage.
    if isinstance(found, UnreadableSearch) and not (tries and found.state == "unreadable"):
        notify(f"warning: {search}: {found.error}")
    return describe(search, tries, found)


def progress(record: SearchRecord) -> dict[str, Any]:
    """How far a search got: counts of tuned trials, the best of them, and the untuned model's objective."""
    tuned = [trial for trial in record.trials.values() if trial.kind != "baseline"]
    counts = Counter(trial.status for trial in tuned)
    ranked, baseline = record.ranked(), record.baseline
    times = [t for trial in record.trials.values() for t in (trial.started, trial.ended, *_reported(trial)) if t]
    return {
        "num_trials": record.search["search"]["num_trials"],
        "done": len(tuned) - counts["running"],
        **{status: counts[status] for status in ("running", "finished", "pruned", "diverged", "failed")},
        "metric": record.objective.first.metric,
        "best": _told(record, ranked[0]) if ranked else None,
        "baseline": None if baseline is None else baseline.value,
        "began": min(times, default=None),
        "newest_event": max(times, default=None),
    }


def lines(status: dict[str, Any]) -> list[str]:
    """A status for people to read."""
    shown = [f"{status['search']}: {status['state']}"]
    if (found := status["progress"]) is not None:
        shown += [f"trials       {_trials(status)}", f"best         {_best(found)}"]
        if found["began"] is not None:
            shown.append(f"time         began {at(found['began'])}, newest event {at(found['newest_event'])}")
    if status["last_line"] is not None:
        shown.append(f"log          {status['last_line']}")
    for attempt in status["attempts"]:
        end = "" if attempt["ended"] is None else f" - {at(attempt['ended'])}"
        reason = "" if attempt["reason"] is None else f": {attempt['reason']}"
        began = f"{'since ' if not end else ''}{at(attempt['started'])}"
        shown.append(f"attempt {attempt['number']:<4} {attempt['status'].lower()} {began}{end}{reason}")
    return shown


def row(status: dict[str, Any]) -> dict[str, Any]:
    """A status as one row of a table."""
    found, attempts = status["progress"] or {}, status["attempts"]
    began = attempts[0]["started"] if attempts else found.get("began")
    return {
        "search": status["search"],
        "state": status["state"],
        "attempt": attempts[-1]["number"] if attempts else None,
        "trials": done_of_asked(found["done"], found["num_trials"]) if found else None,
        "metric": found.get("metric"),
        "best": (found.get("best") or {}).get("value"),
        "baseline": found.get("baseline"),
        "began": began and at(began)[:-3],  # the minute will do
    }


def _trials(status: dict[str, Any]) -> str:
    found = status["progress"]
    begun = {"running": "running" if "running" in status["state"] else "unfinished"}
    kinds = [s for s in ("running", "pruned", "diverged", "failed") if found[s]]
    counts = "".join(f", {found[kind]} {begun.get(kind, kind)}" for kind in kinds)
    return f"{done_of_asked(found['done'], found['num_trials'], ' of ')} done{counts}"


def _best(found: dict[str, Any]) -> str:
    best, baseline = found["best"], found["baseline"]
    text = "no full trial yet" if best is None else f"trial {best['trial']}, {found['metric']} {best['value']:.4f}"
    if best is not None and best.get("feasible") is False:
        text += ", which misses constraints"
    if baseline is None:
        return text
    gain = "" if best is None else f" ({best['value'] - baseline:+.4f})"
    return f"{text}; baseline {baseline:.4f}{gain}"


def _told(record: SearchRecord, best: TrialRecord) -> dict[str, Any]:
    """A trial; ``feasible`` only where there are constraints."""
    kept = {"feasible": record.is_feasible(best)} if record.objective.constraints else {}
    return {"trial": best.number, "value": best.value, **kept}


def _reported(trial: TrialRecord) -> list[float]:
    return [report["time"] for report in trial.reports]
