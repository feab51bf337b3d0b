"""What a search has found: the best trial, and the leaderboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.storage.store import Store, open_store, searches_in


def find_search(name: str, storage: str) -> Store:
    """A search, by its name below ``storage`` or by the path of its folder, its journal up to date.

    Raises:
        FtaeError: there is none; the message lists those in ``storage``.
    """
    by_path = Path(name).absolute()
    for store in (open_store(storage, name, "reader"), open_store(str(by_path.parent), by_path.name, "reader")):
        if store.exists():
            store.refresh()
            return store
    known = searches_in(storage)
    choices = f"choose one of {', '.join(known)}" if known else "it holds none"
    raise FtaeError(f"there is no search {name!r} in {storage}; {choices}")


def best(store: Store, number: int | None = None, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The best trial that ran to its full budget (see ``SearchRecord.chosen``), or the given one, as one plain object.

    ``value`` and ``baseline`` are the objective (of several metrics, the first); ``checkpoint`` is a folder, None if it
    was not kept; ``verdict`` and ``beats_baseline`` say whether tuning helped at all, ``warning`` that the verdict is
    one. Where there are constraints, ``feasible`` and ``baseline_feasible`` say who keeps them; where there are
    several metrics, ``pareto_front`` lists the trials that no other dominates.

    Raises:
        FtaeError: no tuned trial ran to its full budget yet, or not the given one; the weights cannot choose.
    """
    record = replay(store.folder)
    trial, baseline = record.chosen(number, weights), record.baseline
    kept = trial.checkpoint if trial.checkpoint and store.names(trial.checkpoint) else None
    result = {
        "search": record.search["name"],
        "trial": trial.number,
        "metric": record.objective.first.metric,
        "value": trial.value,
        "baseline": None if baseline is None else baseline.value,
        "beats_baseline": record.beats_baseline(trial),
        "verdict": record.verdict(trial),
        "warning": record.warns_of(trial),
        "params": trial.params,
        "metrics": trial.metrics,
        "checkpoint": str(store.fetch(kept)) if kept else None,
    }
    if record.objective.constraints:
        untuned = None if baseline is None else record.is_feasible(baseline)
        result |= {"feasible": record.is_feasible(trial), "baseline_feasible": untuned}
    if len(record.objective.goals) > 1:
        result["front"] = [other.number for other in record.pareto_front()]
    return result


def state_of(record: SearchRecord) -> str:
    """complete, interrupted or failed; ``running`` when its driver has not left (or was killed)."""
    return "running or killed" if record.close is None else str(record.close["status"])
