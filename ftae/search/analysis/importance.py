"""Which params mattered: Optuna's evaluators over the rebuilt study, and what they cannot tell."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from ftae.results.search_record import SearchRecord
from ftae.search.analysis.study import Rated, rated
from ftae.search.sampler import quiet_optuna
from ftae.specs.search.objective import Goal
from ftae.specs.search.search import SearchSpec
from ftae.wording import count, listed

MOST_TRIALS = 1000
MOST_FOR_FANOVA = 150  # its time grows with the square of their number: a second, and ten for twice as many
TREES = 32
LEAST_TRIALS = 4  # with a value, below which there is nothing to explain
FEW_TRIALS = 20
CORRELATED = 0.6  # from this rank correlation on, two params share what one of them may have caused


@dataclass(frozen=True)
class Importance:
    """How much each param explains of one goal, between 0 and 1 and 1 together; the most important first.

    Attributes:
        metric: the goal.
        overall: by fANOVA: of all differences between trials.
        at_the_top: by PED-ANOVA: of what the best tenth has in common; empty where it cannot be told.
        warnings: what the shares cannot tell, in sentences.
    """

    metric: str
    overall: dict[str, float]
    at_the_top: dict[str, float]
    warnings: Sequence[str]


def importance(record: SearchRecord, spec: SearchSpec, goal: Goal) -> Importance:
    """Rate the params of a search for one of its goals.

    Without enough trials both ratings are empty, and the warnings say why.
    """
    found = rated(record, spec, goal, MOST_TRIALS)
    told = _limits(found)
    if len({trial.value for trial in found.trials}) < LEAST_TRIALS:
        why = f"{count(len(found.trials), 'trial')} with a known end cannot tell which params mattered"
        return Importance(goal.metric, {}, {}, [why, *told])
    with quiet_optuna():
        study = found.study(goal)
    common = [path for path in found.trials[0].params if all(path in trial.params for trial in found.trials)]
    varied = [path for path in common if len({str(trial.params[path]) for trial in found.trials}) > 1]
    if not varied:
        return Importance(goal.metric, {}, {}, ["no param has two values in these trials", *told])
    few = rated(record, spec, goal, MOST_FOR_FANOVA)
    with quiet_optuna():
        overall = _evaluated(few.study(goal), varied, FanovaImportanceEvaluator(n_trees=TREES, seed=0))
    top = _evaluated(study, varied, _ped_anova()) if len(found.trials) >= FEW_TRIALS else {}
    if len(few.trials) < len(found.trials):
        told.append(f"fANOVA rates {len(few.trials)} of these {len(found.trials)} trials, evenly from first to last")
    told += _conditional(found.trials, common) + _together(found.trials, varied)
    return Importance(goal.metric, overall, {path: top[path] for path in overall if path in top}, told)


def _ped_anova() -> PedAnovaImportanceEvaluator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PedAnovaImportanceEvaluator()


def _evaluated(study: optuna.Study, params: list[str], evaluator: Any) -> dict[str, float]:
    """Optuna's importances; empty where the evaluator cannot tell, such as for values that are all equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(get_param_importances(study, evaluator=evaluator, params=params))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def _limits(found: Rated) -> list[str]:
    told = []
    if LEAST_TRIALS <= len(found.trials) < FEW_TRIALS:
        told.append(f"{len(found.trials)} trials are few: the order may change with every trial more")
    if found.num_forecast:
        told.append(f"{count(found.num_forecast, 'stopped trial')} count with the end that was forecast, not measured")
    if found.num_without:
        told.append(
            f"left out: {count(found.num_without, 'trial')} that diverged, failed or stopped without a forecast; a "
            "param that decides over those looks harmless here: see the slices"
        )
    return told


def _conditional(trials: Sequence[FrozenTrial], common: list[str]) -> list[str]:
    sometimes = sorted({path for trial in trials for path in trial.params} - set(common))
    if not sometimes:
        return []
    return [f"not rated, since only some trials have them: {listed(sometimes)}"]


def _together(trials: Sequence[FrozenTrial], params: list[str]) -> list[str]:
    """The pairs of numeric params that rose and fell together, as a sampler makes them."""
    columns = {path: [trial.params[path] for trial in trials] for path in params}
    numeric = [path for path, values in columns.items() if all(isinstance(v, int | float) for v in values)]
    told = []
    for one, other in combinations(numeric, 2):
        together = float(spearmanr(columns[one], columns[other]).statistic)
        if abs(together) >= CORRELATED:
            told.append(
                f"{one} and {other} were not varied independently (rank correlation {together:+.2f}): their shares "
                "cannot be told apart"
            )
    return told
