"""What a search has found: the best trial, and the leaderboard."""

from pathlib import Path
from typing import Any

from ftae import journal
from ftae.errors import FtaeError
from ftae.journal import SearchRecord
from ftae.storage import Store, open_store, searches_in


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


def best(store: Store) -> dict[str, Any]:
    """The best trial that ran to its full budget, as one plain object.

    ``value`` and ``baseline`` are the objective; ``checkpoint`` is a folder, ``beats_baseline`` says
    whether tuning helped at all.

    Raises:
        FtaeError: no tuned trial ran to its full budget yet.
    """
    record = journal.replay(store.folder)
    ranked, baseline = record.ranked(), record.baseline
    if not ranked:
        raise FtaeError(f"{store.name}: no tuned trial ran to its full budget yet")
    trial = ranked[0]
    assert trial.value is not None
    assert trial.checkpoint is not None
    return {
        "search": record.search["name"],
        "trial": trial.number,
        "metric": record.search["objective"]["metric"],
        "value": trial.value,
        "baseline": None if baseline is None else baseline.value,
        "beats_baseline": record.beats_baseline(trial),
        "params": trial.params,
        "metrics": trial.metrics,
        "checkpoint": str(store.fetch(trial.checkpoint)),
    }


def state_of(record: SearchRecord) -> str:
    """complete, interrupted or failed; ``running`` when its driver has not left (or was killed)."""
    return "running or killed" if record.close is None else str(record.close["status"])
