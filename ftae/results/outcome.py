"""What a search or a production run has led to, as an experiment tracker shows it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ftae.engine.training.loop import process_state_kept
from ftae.errors import one_message
from ftae.results.conclusion import storage_of
from ftae.results.description import description
from ftae.results.export import MODEL, PRODUCTION, export
from ftae.results.search_record import PRODUCTION_TRIAL, SearchRecord, TrialRecord
from ftae.results.stored_spec import run_of, spec_of
from ftae.results.summary import choose, leaderboard, progress
from ftae.specs.files import dump
from ftae.specs.finetune.metrics import is_held_out
from ftae.storage.store import Store
from ftae.tracking import LONGEST_DESCRIPTION, Outcome, OutcomeModel
from ftae.tracking.mlflow_model_folder import make_mlflow_model

REPORT = "report.html"


def outcome_of(record: SearchRecord, store: Store, *, is_final: bool) -> Outcome:
    """The outcome: of a search leaderboard, report and best trial; of a production run its model.

    ``is_final`` false: the search still runs, and the model of its best trial waits for the end.
    """
    outcome = _of_search(record, store, is_final) if record.kind == "search" else _of_production(record, store)
    text = description(record, storage_of(store), LONGEST_DESCRIPTION, is_running=not is_final)
    return replace(outcome, description=text)


def _of_search(record: SearchRecord, store: Store, is_final: bool) -> Outcome:
    outcome = Outcome(
        leaderboard(record), files=_report(store), metrics=_metrics(record), num_ended=progress(record)["done"]
    )
    if not record.ranked():
        return outcome
    best = choose(record)
    tags = {"ftae.best_trial": str(best.number)}
    if record.objective.constraints:
        tags["ftae.feasible"] = json.dumps(record.is_feasible(best))
    if len(record.objective.goals) > 1:
        tags["ftae.front"] = ", ".join(str(trial.number) for trial in record.pareto_front())
    model = None
    if is_final and best.checkpoint is not None:
        model = OutcomeModel(best.reports[-1], best.settings, _exported(store, best))
    return replace(outcome, best_config=dump(run_of(record, best)), tags=tags, model=model)


def _metrics(record: SearchRecord) -> dict[str, float]:
    """The costs, and the metrics of the best trial and of the baseline."""
    metrics = {"search/full_trainings": record.used_budget}
    if record.baseline is not None:
        metrics |= {f"baseline/{name}": value for name, value in record.baseline.metrics.items() if is_held_out(name)}
    if record.ranked():
        metrics |= {f"best/{name}": value for name, value in choose(record).metrics.items() if is_held_out(name)}
    return metrics


def _report(store: Store) -> dict[str, Path]:
    """The newest report, if there is one: by the folder that it is uploaded to, which is the top."""
    store.release(REPORT)  # the mirror's may be an earlier one
    file = store.fetch(REPORT)
    return {"": file} if file.is_file() else {}


def _exported(store: Store, trial: TrialRecord) -> Callable[[Path], None]:
    """Writes what ``ftae export`` writes of a trial."""

    def write(folder: Path) -> None:
        # Whatever goes wrong, the rest of the outcome has arrived, and a search does not end with a traceback.
        with one_message("the best trial cannot be exported"), process_state_kept():
            export(store, folder, trial.number)

    return write


def _of_production(record: SearchRecord, store: Store) -> Outcome:
    """The model of a production run; nothing before the run has written it."""
    source, trial = store.folder / MODEL, record.trials.get(PRODUCTION_TRIAL)
    if not source.is_dir() or trial is None or not trial.reports:
        return Outcome()

    def write(folder: Path) -> None:
        folder.mkdir()
        shutil.copyfile(store.folder / PRODUCTION, folder / PRODUCTION)
        shutil.copytree(source.absolute(), folder / MODEL, copy_function=os.symlink)  # weights are large
        make_mlflow_model(folder, spec_of(record).finetune)

    return Outcome(model=OutcomeModel(trial.reports[-1], {}, write))
