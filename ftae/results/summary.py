"""What a search has found so far, in words and plain values: state, progress, best trial, leaderboard."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.results import ranking
from ftae.results.confirmation import Confirmed, chosen_by_mean, confirmed
from ftae.results.replay import replay
from ftae.results.search_record import PRODUCTION_TRIAL, SearchRecord, TrialRecord
from ftae.results.verdict import beats_baseline, needs_warning, unmeasured, verdict, within_noise
from ftae.storage.journal import UnreadableJournal
from ftae.storage.store import Store, open_store, searches_in

RUNNING_OR_KILLED = "running or killed"

# ------------------------------------------------------------------------------------- finding a search


def find_search(name: str, storage: str) -> Store:
    """Find a search by its name below ``storage`` or by the path of its folder; its journal is up to date.

    Raises:
        FtaeError: there is none; the message lists the searches in ``storage``.
    """
    by_path = Path(name).absolute()
    for store in (open_store(storage, name, "reader"), open_store(str(by_path.parent), by_path.name, "reader")):
        if store.exists():
            store.refresh()
            return store
    raise FtaeError(no_search(name, storage))


def no_search(name: str, storage: str) -> str:
    """The message that ``storage`` has no search of this name, with those that it has."""
    known = searches_in(storage)
    choices = f"choose one of {', '.join(known)}" if known else "it holds none"
    return f"there is no search {name!r} in {storage}; {choices}"


@dataclass(frozen=True)
class UnreadableSearch:
    """A journal that cannot be read: its state in a word or two, and the error."""

    state: str
    error: FtaeError | OSError


def read_record(search: str, storage: str) -> SearchRecord | UnreadableSearch | None:
    """Read the journal of a search; None if this machine sees no such search in ``storage``."""
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
    """Read the journal of a search; None if this machine sees no such search in ``storage``, or it never began.

    Raises:
        UnreadableJournal: the journal is damaged.
    """
    found = read_record(search, storage)
    if isinstance(found, UnreadableSearch) and found.state == "damaged":
        raise found.error
    return found if isinstance(found, SearchRecord) else None


# ---------------------------------------------------------------------------------------------- progress


def state_of(record: SearchRecord) -> str:
    """complete, interrupted or failed; ``running or killed`` where no driver has written its end."""
    return RUNNING_OR_KILLED if record.close is None else record.close.status


def progress(record: SearchRecord) -> dict[str, Any]:
    """Return counts of the tuned trials, the best of them, and the objective of the untuned model, as plain values.

    Times are seconds since the epoch. ``budget`` and ``used_budget`` are in full trainings; the budget is None if the
    search has none. ``step`` and ``max_steps`` are those of a production run, None for a search. ``confirmations``: how
    many have ended and have begun, where there are any. ``no_baseline``: why the untuned model, which has begun, has no
    objective. ``best`` has ``within_noise``, the trials that may be as good, where there are any.
    """
    tuned = record.tuned
    counts = Counter(trial.status for trial in tuned)
    ranked, untuned = record.ranked(), record.baseline
    times = [
        t for trial in record.all_trials.values() for t in (trial.started, trial.ended, *_report_times(trial)) if t
    ]
    production = record.trials.get(PRODUCTION_TRIAL) if record.kind == "production" else None
    return {
        "num_trials": record.num_trials,
        "done": len(tuned) - counts["running"],
        **{status: counts[status] for status in ("running", "finished", "pruned", "diverged", "failed")},
        "budget": record.budget,
        "used_budget": round(record.used_budget, 3),
        "step": None if production is None else production.step,
        "max_steps": None if production is None else record.search["finetune"].get("max_steps"),
        "metric": record.objective.first.metric,
        "best": _best_so_far(record, choose(record)) if ranked else None,
        "baseline": None if untuned is None else untuned.value,
        **({} if (reason := unmeasured(record)) is None else {"no_baseline": reason}),
        "began": min(times, default=None),
        "newest_event": max(times, default=None),
        **({"confirmations": _ended_and_begun(record)} if record.confirmations else {}),
    }


def _ended_and_begun(record: SearchRecord) -> dict[str, int]:
    begun = record.confirmations.values()
    return {"done": sum(trial.status != "running" for trial in begun), "begun": len(begun)}


def _best_so_far(record: SearchRecord, trial: TrialRecord) -> dict[str, Any]:
    feasible = {"feasible": record.is_feasible(trial)} if record.objective.constraints else {}
    near = {"within_noise": numbers} if (numbers := within_noise(record)) else {}
    return {"trial": trial.number, "value": trial.value, **feasible, **near}


def _report_times(trial: TrialRecord) -> list[float]:
    return [report["time"] for report in trial.reports]


# -------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Segment:
    """The time that a trial spent on one worker, in seconds since the epoch."""

    trial: TrialRecord
    node: str
    begin: float
    end: float


def segments_of(record: SearchRecord) -> list[Segment]:
    """Where each trial ran, in the order of time. A trial that was retried has one for each start."""
    found: list[Segment] = []
    for trial in record.all_trials.values():
        newest = max([trial.started, *(report["time"] for report in trial.reports)])
        ended = trial.ended if trial.ended is not None else newest
        starts = [(start["time"], str(start.get("node") or "")) for start in trial.starts] or [(trial.started, "")]
        ends = [*(time for time, _ in starts[1:]), ended]
        found += [Segment(trial, node, begin, max(begin, end)) for (begin, node), end in zip(starts, ends, strict=True)]
    return sorted(found, key=lambda segment: (segment.begin, segment.trial.number))


def worker_hours(record: SearchRecord) -> float:
    """The hours that all trials ran, together."""
    return sum(segment.end - segment.begin for segment in segments_of(record)) / 3600.0


# ----------------------------------------------------------------------------------------------- results


def choose(record: SearchRecord, number: int | None = None, weights: Mapping[str, float] | None = None) -> TrialRecord:
    """Return trial ``number``; or the trial of the Pareto front with the best of ``ranking.scores`` by ``weights``;
    or, without either, the confirmed trial with the best mean over seeds; or, where the first of the ranking is not
    confirmed, that one.

    Raises:
        FtaeError: no tuned trial, or not trial ``number``, ran to its full budget; the weights cannot choose.
    """
    ranked = record.ranked()
    if not ranked:
        baseline = "" if (reason := unmeasured(record)) is None else f"; the baseline {reason}"
        raise FtaeError(f"{record.name}: no tuned trial ran to its full budget yet{baseline}")
    if number is not None:
        if number not in (trial.number for trial in ranked):
            numbers = ", ".join(str(trial.number) for trial in ranked)
            raise FtaeError(f"{record.name}: trial {number} did not run to its full budget; choose one of {numbers}")
        return record.trials[number]
    if weights is None:
        return chosen_by_mean(record) or ranked[0]
    ranking.check_weights(record.objective, weights)
    front = record.pareto_front() or ranked[:1]  # where none keeps the constraints, the one nearest to them
    scores = ranking.scores(record.objective, {t.number: t.metrics for t in front}, weights)
    return max(front, key=lambda trial: (scores[trial.number], -trial.number))


def best(store: Store, number: int | None = None, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the trial that ``choose`` returns as plain values.

    ``value`` and ``baseline`` are the objective (of several metrics, the first); ``checkpoint`` is a folder, None if it
    was not kept; ``verdict`` and ``beats_baseline`` say whether tuning helped, ``warning`` whether the verdict is a
    warning. With constraints, ``feasible`` and ``baseline_feasible`` say which model keeps them; with several metrics,
    ``front`` lists the trials that no other dominates. ``noise`` is the standard deviation of a run as the model of the
    curves has it, at most, and ``within_noise`` lists the trials that are no worse than the best by more than that;
    both are left out where it is not known. ``confirmed`` has the values of a confirmed trial by seed, their mean and
    their standard deviation.

    Raises:
        FtaeError: as ``choose``.
    """
    record = replay(store.folder)
    trial, untuned = choose(record, number, weights), record.baseline
    kept = trial.checkpoint if trial.checkpoint and store.names(trial.checkpoint) else None
    result = {
        "search": record.name,
        "trial": trial.number,
        "metric": record.objective.first.metric,
        "value": trial.value,
        "baseline": None if untuned is None else untuned.value,
        "beats_baseline": beats_baseline(record, trial),
        "verdict": verdict(record, trial),
        "warning": needs_warning(record, trial),
        "params": trial.params,
        "metrics": trial.metrics,
        "checkpoint": str(store.fetch(kept)) if kept else None,
    }
    if record.objective.constraints:
        baseline_feasible = None if untuned is None else record.is_feasible(untuned)
        result |= {"feasible": record.is_feasible(trial), "baseline_feasible": baseline_feasible}
    if len(record.objective.goals) > 1:
        result["front"] = [other.number for other in record.pareto_front()]
    if record.noise is not None:
        result |= {"noise": record.noise, "within_noise": within_noise(record)}
    if (seeds := confirmed(record).get(trial.number)) is not None:
        result["confirmed"] = over_seeds(seeds)
    return result


def over_seeds(trial: Confirmed) -> dict[str, Any]:
    """A confirmed trial as plain values."""
    return {
        "values": {str(seed): value for seed, value in trial.values.items()},
        "mean": trial.mean,
        "sd": trial.sd,
        "diverged": trial.num_diverged,
        "missing_constraints": trial.num_missing,
    }


def leaderboard(record: SearchRecord) -> list[dict[str, Any]]:
    """Return one row per trial: the ranked ones first, then the baseline, however it ended, and the rest by number.

    ``front`` (with several metrics): whether the trial is on the Pareto front. ``feasible`` (with constraints): whether
    it keeps them. ``within_noise`` (where the best has others beside it that may be as good): whether a ranked trial is
    among these. ``forecast``, ``forecast_sd`` (where a trial was stopped by its forecast): the objective that was
    expected at its end. ``seeds``, ``mean``, ``sd`` (where trials are confirmed): the number of runs, and the mean and
    the standard deviation of the objective over them.
    """
    others = [t for t in record.trials.values() if t.kind == "baseline" or t.status != "finished"]
    ordered = [*record.ranked(), *sorted(others, key=lambda trial: trial.number)]
    front = {trial.number for trial in record.pareto_front()} if len(record.objective.goals) > 1 else None
    uncertain = _uncertain(record)
    return [
        {
            "trial": trial.number,
            "kind": trial.kind,
            "status": trial.status,
            **({} if front is None else {"front": trial.number in front}),
            **({"feasible": record.is_feasible(trial)} if record.objective.constraints else {}),
            **{metric: trial.metrics.get(metric) for metric in record.objective.shown_metrics},
            **uncertain(trial),
            "step": trial.step,
            **{f"params.{path}": trial.params.get(path) for path in record.searched},
            "reason": trial.reason,
        }
        for trial in ordered
    ]


def _uncertain(record: SearchRecord) -> Callable[[TrialRecord], dict[str, Any]]:
    """The columns that only some searches have, of a trial."""
    is_forecast = any(trial.forecast for trial in record.trials.values())
    seeds, near = confirmed(record), within_noise(record)

    def of(trial: TrialRecord) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if near:
            is_ranked = trial.kind != "baseline" and trial.status == "finished"
            row["within_noise"] = trial.number in near if is_ranked else None
        if is_forecast:
            expected = trial.forecast or {}
            row |= {"forecast": expected.get("mean"), "forecast_sd": expected.get("sd")}
        if seeds:
            own = seeds.get(trial.number)
            row |= {"seeds": own and own.num_seeds, "mean": own and own.mean, "sd": own and own.sd}
        return row

    return of
