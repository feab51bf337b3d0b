"""The Optuna study of a search, rebuilt from its journal for analyses."""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.search.params import Params
from ftae.specs.search.objective import Goal
from ftae.specs.search.search import SearchSpec


@dataclass(frozen=True)
class Rated:
    """The tuned trials whose end is known, for one goal.

    Attributes:
        trials: Optuna's trials, all complete.
        num_forecast: how many of them were stopped, and have the end that was expected of them.
        num_without: how many ended without a comparable value: stopped without a forecast, diverged, or failed.
    """

    trials: Sequence[FrozenTrial]
    num_forecast: int
    num_without: int

    def study(self, goal: Goal) -> optuna.Study:
        """A study of these trials."""
        study = optuna.study.create_study(
            storage=optuna.storages.InMemoryStorage(), study_name="rebuilt", direction=goal.direction
        )
        study.add_trials(self.trials)
        return study


def rated(record: SearchRecord, spec: SearchSpec, goal: Goal, most: int) -> Rated:
    """Give the trials of a search the values of one goal at their end.

    A trial that was stopped has the end that its forecast expected, for the goal that forecasts are of, the first. A
    value from the middle of a training would count every stopped trial as bad, however good its params are.

    Args:
        record: the search.
        spec: its spec.
        goal: one of its goals.
        most: of more trials, evenly many from first to last are taken.
    """
    params, tuned = Params(spec), [t for t in record.tuned if t.status != "running"]
    is_first = goal.metric == record.objective.first.metric
    values = {t.number: value for t in tuned if (value := _end(t, goal, is_first)) is not None}
    known = [trial for trial in tuned if trial.number in values]
    chosen = [known[i * len(known) // most] for i in range(most)] if len(known) > most else known
    return Rated(
        [_of_optuna(params, trial, values[trial.number]) for trial in chosen],
        num_forecast=sum(trial.status == "pruned" for trial in chosen),
        num_without=len(tuned) - len(known),
    )


def _end(trial: TrialRecord, goal: Goal, is_first: bool) -> float | None:
    if trial.status == "finished":
        return trial.metrics.get(goal.metric)
    return trial.forecast["mean"] if trial.status == "pruned" and trial.forecast and is_first else None


def _of_optuna(params: Params, trial: TrialRecord, value: float) -> FrozenTrial:
    values, distributions = params.of_optuna(trial.params)
    return create_trial(state=TrialState.COMPLETE, value=value, params=values, distributions=distributions)
