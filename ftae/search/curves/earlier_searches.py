"""``search.warm_start``: reads the trials of earlier searches, as the journal of a new one keeps them."""

from typing import Any

import numpy as np

from ftae.errors import FtaeError
from ftae.results.search_record import WARM_START, SearchRecord
from ftae.results.stored_spec import search_of
from ftae.results.summary import UnreadableSearch, no_search, read_record
from ftae.search.curves.forecaster import LENGTH, MAX_FITTED_TRIALS, Forecaster
from ftae.search.curves.gaussian_process import Observations, fit
from ftae.search.curves.related_tasks import observations_of
from ftae.search.curves.unit_cube import UnitCube
from ftae.specs.reading.overrides import value_at
from ftae.specs.search.search import SearchSpec
from ftae.wording import count


def warm_start(spec: SearchSpec) -> dict[str, Any]:
    """What the ``open`` event of a new search says about the earlier searches that it names.

    Returns:
        ``{"warm_start": [...]}``, of each earlier search ``search``, ``digest``, ``trials`` (``params`` of this search
        space, ``shares`` of the budget, ``values``) and ``model`` (hyperparameters); empty where the file names none.

    Raises:
        FtaeError: there is no such search, it cannot be read, it optimises something else, or it has no trial with a
            value.
    """
    found = [_taken_from(name, spec) for name in spec.search.warm_start]
    return {WARM_START: found} if found else {}


def described(facts: dict[str, Any]) -> list[str]:
    """How many trials come from which search, a line each."""
    return [f"{count(len(search['trials']), 'trial')} of {search['search']}" for search in facts.get(WARM_START, ())]


def _taken_from(name: str, spec: SearchSpec) -> dict[str, Any]:
    record = _read(name, spec.search.storage)
    earlier = search_of(record)
    ours, theirs = spec.objective.first, earlier.objective.first
    if (theirs.metric, theirs.direction) != (ours.metric, ours.direction):
        raise FtaeError(
            f"search.warm_start: {name} has to {theirs.direction} {theirs.metric}, and this search has to "
            f"{ours.direction} {ours.metric}; name a search with the same objective"
        )
    forecaster = Forecaster(earlier, record)
    seen = forecaster.observations()
    if seen is None:
        raise FtaeError(f"search.warm_start: {name} has too few trials with a value to learn from; leave it out")
    numbers = list(dict.fromkeys(seen.trials.tolist()))
    trials = [_trial(number, seen, record, earlier, spec) for number in numbers]
    cube, fitted = UnitCube(spec), set(forecaster.selected(MAX_FITTED_TRIALS))
    ours_seen = observations_of(cube, trials, ours.sign)
    chosen = ours_seen.of_trials({i for i, number in enumerate(numbers) if number in fitted})
    model = fit(chosen, np.full(cube.num_columns, LENGTH), scale=ours_seen.scale())
    return {"search": name, "digest": earlier.digest(), "trials": trials, "model": model.tolist()}


def _read(name: str, storage: str) -> SearchRecord:
    """The record of a search below ``storage``; a name with a slash is a folder or a URL of its own."""
    folder, _, search = name.rstrip("/").rpartition("/") if "/" in name else (storage, "", name)
    found = read_record(search, folder or "/")
    if isinstance(found, UnreadableSearch):
        raise FtaeError(f"search.warm_start: {name} cannot be read: {found.error}") from found.error
    if found is None:
        raise FtaeError(f"search.warm_start: {no_search(search, folder or '/')}")
    return found


def _trial(
    number: int, seen: Observations, record: SearchRecord, earlier: SearchSpec, spec: SearchSpec
) -> dict[str, Any]:
    """One trial: its params as far as this search has them, and the part of its curve that the process sees."""
    rows, sign = seen.trials == number, spec.objective.first.sign
    return {
        "params": _params(record.trials[number].params, earlier, spec),
        "shares": [round(share, 6) for share in seen.shares[rows].tolist()],
        "values": [sign * value for value in seen.values[rows].tolist()],
    }


def _params(params: dict[str, Any], earlier: SearchSpec, spec: SearchSpec) -> dict[str, Any]:
    """The value of every leaf that this search varies: the trial's, or that of the earlier file.

    A leaf is left out that had no effect in the trial, or that the earlier file does not have.
    """
    found: dict[str, Any] = {}
    for path in spec.search_space:
        if path in params:
            found[path] = params[path]
        elif path not in earlier.search_space:
            try:
                found[path] = value_at(earlier.finetune, path)
            except FtaeError:  # of another family of models
                continue
    return found
