"""The status of a search on a cluster: the attempts of its jobs, joined with what its journal says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftae.cluster.jobs import Attempt, Client, at, attempts, connect, log
from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord
from ftae.results.summary import UnreadableSearch, progress, read_record, state_of
from ftae.specs.reading.names import redacted
from ftae.storage.store import searches_in
from ftae.wording import done_of_asked, full_trainings, listed, used_of_budget


def describe(
    search: str,
    attempts: Sequence[Attempt],
    found: SearchRecord | UnreadableSearch | None,
    last_line: str | None = None,
) -> dict[str, Any]:
    """Return the status of a search as plain values; times are seconds since the epoch.

    ``progress`` is None where the journal is not visible; the ``last_line`` of the driver's log stands in for it.
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
    """Return what a search is doing, in a word or two.

    While an attempt runs, that is its job's status; afterwards the journal says: complete, interrupted or failed. Where
    the journal is not visible, it is the status of the newest attempt.
    """
    if attempts and (not isinstance(found, SearchRecord) or not attempts[-1].is_over):
        return attempts[-1].status.lower()
    if not isinstance(found, SearchRecord):
        return "not visible here" if found is None else found.state
    return "killed" if attempts and found.close is None else state_of(found)


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
    found = read_record(search, storage)
    # A machine that only follows a cluster need not have access to the storage.
    if isinstance(found, UnreadableSearch) and not (tries and found.state == "unreadable"):
        notify(f"warning: {search}: {found.error}")
    return describe(search, tries, found)


def lines(status: dict[str, Any]) -> list[str]:
    """Return a status as lines for people to read."""
    result = [f"{status['search']}: {status['state']}"]
    if (found := status["progress"]) is not None:
        amount = [_steps(found)] if found["max_steps"] else [_trials(status), _used(found)]
        result += [*amount, *_confirmations(found), f"best         {_best(found)}"]
        if "no_baseline" in found:
            result.append(f"baseline     {found['no_baseline']}")
        if found["began"] is not None:
            result.append(f"time         began {at(found['began'])}, newest event {at(found['newest_event'])}")
    if status["last_line"] is not None:
        result.append(f"log          {status['last_line']}")
    for attempt in status["attempts"]:
        end = "" if attempt["ended"] is None else f" - {at(attempt['ended'])}"
        reason = "" if attempt["reason"] is None else f": {attempt['reason']}"
        began = f"{'since ' if not end else ''}{at(attempt['started'])}"
        result.append(f"attempt {attempt['number']:<4} {attempt['status'].lower()} {began}{end}{reason}")
    return result


def row(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status as one row of a table."""
    found, attempts = status["progress"] or {}, status["attempts"]
    began = attempts[0]["started"] if attempts else found.get("began")
    return {
        "search": status["search"],
        "state": status["state"],
        "attempt": attempts[-1]["number"] if attempts else None,
        "trials": _done(found, "/") if found else None,
        "full trainings": used_of_budget(found["used_budget"], found["budget"]) if found else None,
        "metric": found.get("metric"),
        "best": (found.get("best") or {}).get("value"),
        "baseline": found.get("baseline"),
        "began": began and at(began)[:-3],  # to the minute
    }


def flat(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status as one row of plain values for machines; times are seconds since the epoch."""
    found, attempts = status["progress"] or {}, status["attempts"]
    best = found.get("best") or {}
    counts = ("num_trials", "done", "running", "finished", "pruned", "diverged", "failed", "budget", "used_budget")
    return {
        "search": status["search"],
        "state": status["state"],
        "attempt": attempts[-1]["number"] if attempts else None,
        **{name: found.get(name) for name in (*counts, "step", "max_steps", "metric")},
        "best_trial": best.get("trial"),
        "best": best.get("value"),
        **{name: found.get(name) for name in ("baseline", "no_baseline", "began", "newest_event")},
    }


def _steps(found: dict[str, Any]) -> str:
    """The progress of a production run."""
    return f"steps        {found['step']} of {found['max_steps']}"


def _trials(status: dict[str, Any]) -> str:
    found = status["progress"]
    begun = {"running": "running" if "running" in status["state"] else "unfinished"}
    kinds = [s for s in ("running", "pruned", "diverged", "failed") if found[s]]
    counts = "".join(f", {found[kind]} {begun.get(kind, kind)}" for kind in kinds)
    return f"trials       {_done(found, ' of ')} done{counts}"


def _done(found: dict[str, Any], of: str) -> str:
    """The trials that have ended, of those asked for; a budget asks for no number of trials."""
    return done_of_asked(found["done"], found["num_trials"], of) if found["budget"] is None else str(found["done"])


def _used(found: dict[str, Any]) -> str:
    return f"budget       {full_trainings(found['used_budget'], found['budget'])} used"


def _confirmations(found: dict[str, Any]) -> list[str]:
    counts = found.get("confirmations")
    return [f"confirmed    {counts['done']} of {counts['begun']} further runs done"] if counts else []


def _best(found: dict[str, Any]) -> str:
    best, baseline = found["best"], found["baseline"]
    text = "no full trial yet" if best is None else f"trial {best['trial']}, {found['metric']} {best['value']:.4f}"
    if best is not None and best.get("feasible") is False:
        text += ", which misses constraints"
    if best is not None and (near := [number for number in best.get("within_noise", ()) if number != best["trial"]]):
        text += f", within noise of {'trial' if len(near) == 1 else 'trials'} {listed(near)}"
    if baseline is None:
        return text
    gain = "" if best is None else f" ({best['value'] - baseline:+.4f})"
    return f"{text}; baseline {baseline:.4f}{gain}"
