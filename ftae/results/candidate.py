"""The two sides of a comparison: the winner of a search, a production run, or an exported trial."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.results.confirmation import confirmed
from ftae.results.export import PRODUCTION, PROVENANCE
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.results.stored_spec import run_of, search_of
from ftae.results.summary import choose, find_search, worker_hours
from ftae.results.verdict import noise_of
from ftae.specs.files import load_production
from ftae.specs.finetune.metrics import is_held_out
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.objective import AnyObjective, read_objective
from ftae.storage.journal import FILE_NAME
from ftae.storage.store import Store


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison.

    Attributes:
        name: the search, the production run, or the folder of the export.
        kind: ``search`` (its best trial), ``run`` or ``export``.
        trial: the number of the trial; None for a production run.
        metrics: the held-out metrics; of a trial that is confirmed, the means over seeds.
        full_trainings: what the search took, as far as that is known.
        hours: the hours that its workers were busy, together, as far as that is known.
        deviations: the standard deviation of those ``metrics`` of which it is known.
        run: the complete run that made the model.
        settings: how the search was done, by path; empty for an export and a run.
        objective: what the search or run is judged by.
        facts: fingerprints of the data, digests of networks, versions.
    """

    name: str
    kind: str
    trial: int | None
    metrics: Mapping[str, float]
    full_trainings: float | None
    hours: float | None
    deviations: Mapping[str, float] = field(repr=False)
    run: FinetuneSpec = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    objective: AnyObjective = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def description(self) -> str:
        """``trial 7 of small``, ``the run small``, ``the export exports/small (trial 7)``."""
        if self.kind == "export":
            return f"the export {self.name} (trial {self.trial})"
        return f"the run {self.name}" if self.trial is None else f"trial {self.trial} of {self.name}"


def candidate(name: str, storage: str) -> Candidate:
    """What ``name`` stands for: the folder of an export or a run, or a search by its folder or its name.

    Raises:
        FtaeError: there is no such thing, it cannot be read, or no trial of it ran to its full budget.
    """
    folder = Path(name).expanduser()
    if (folder / PROVENANCE).is_file() and not (folder / FILE_NAME).is_file():
        return _of_export(folder)
    return _of_store(find_search(name, storage))


def _of_store(store: Store) -> Candidate:
    record = replay(store.folder)
    is_search = record.kind == "search"
    best = choose(record)
    seeds = confirmed(record).get(best.number)
    names = [name for name in best.metrics if is_held_out(name)]
    deviations = noise_of(record, best)
    if seeds is not None:  # of a mean
        spreads = {name: seeds.sd_of(name) for name in names}
        deviations = {name: sd / math.sqrt(seeds.num_seeds) for name, sd in spreads.items() if sd is not None}
    return Candidate(
        name=record.name,
        kind="search" if is_search else "run",
        trial=best.number if is_search else None,
        metrics={name: best.metrics[name] if seeds is None else seeds.mean_of(name) for name in names},
        full_trainings=record.used_budget,
        hours=worker_hours(record),
        deviations=deviations,
        run=run_of(record, best),
        settings=_settings(record) if is_search else {},
        objective=record.objective,
        facts=record.facts,
    )


def _settings(record: SearchRecord) -> dict[str, Any]:
    search = search_of(record)
    settings = search.search.model_dump(mode="json", exclude={"storage", "notify"})
    space = {path: distribution.model_dump(mode="json") for path, distribution in search.search_space.items()}
    return {"search": settings, "search_space": space, "objective": str(search.objective)}


def _of_export(folder: Path) -> Candidate:
    """Raises FtaeError where the folder is not as ``ftae export`` writes it."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        objective, metric = read_objective(found["objective"]), found["metrics"]
        metrics = {name: float(value) for name, value in metric.items() if is_held_out(name)}
        goal, deviations = objective.first.metric, dict[str, float]()
        if len(objective.goals) == 1 and "noise" in found:
            deviations = {goal: float(found["noise"])}
        if (seeds := found.get("confirmed")) is not None:
            metrics[goal] = float(seeds["mean"])
            if seeds["sd"] is not None:
                deviations = {goal: seeds["sd"] / math.sqrt(len(seeds["values"]))}
        trial = int(found["trial"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise FtaeError(f"{folder / PROVENANCE} is damaged, or not written by ftae export") from error
    return Candidate(
        name=str(folder),
        kind="export",
        trial=trial,
        metrics=metrics,
        full_trainings=found.get("full_trainings"),
        hours=found.get("worker_hours"),
        deviations=deviations,
        run=load_production(folder / PRODUCTION).finetune,
        settings={},
        objective=objective,
        facts=found,
    )
