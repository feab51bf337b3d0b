"""Chooses the params of new trials: ``SAMPLERS``, from the name in the file to the class that proposes.

A proposal is a pure function of the journal, the seed and the trial's number. ``adopt``, ``report`` and ``end``, called
again in the order of the journal, bring back the same sampler.
"""

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftae.results import ranking
from ftae.search.curves.curve_sampler import CurveSampler
from ftae.search.curves.decisions import Proposal
from ftae.search.curves.forecaster import Forecaster
from ftae.search.params import Params
from ftae.specs.search.distributions import Tried
from ftae.specs.search.objective import Metrics
from ftae.specs.search.search import SearchSpec

# The time of a TPE proposal grows with the number of trials. So when MAX_TRIALS have ended, the sampler keeps only the
# best 25, which is the most that TPE models as good, and the newest 250 of the others, to which TPE gives most weight.
MAX_TRIALS = 500
BEST_TRIALS = 25
NEWEST_TRIALS = 250
MAX_ATTEMPTS = 20  # to sample params that no trial has had; then the first such params of the space are taken
Groups = list[dict[str, BaseDistribution]]


class Sampler(Protocol):
    """Proposes params and learns from results, with trials numbered as in the search."""

    @property
    def is_exhausted(self) -> bool:
        """Whether every configuration of the space was tried, or is being tried."""

    def propose(self, number: int) -> Proposal | None:
        """New params for trial ``number``; None if the space is exhausted. Changes nothing.

        Trials are deterministic, so no params are trained twice.
        """

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        """A trial with these params has begun: proposed here, the file's own, or from the journal."""

    def report(self, number: int, step: int, value: float) -> None:
        """Take an intermediate value of the first goal."""

    def end(self, number: int, status: str, metrics: Metrics) -> None:
        """Take the end of a trial, with the metrics of its last report."""


MakeOptunaSampler = Callable[[SearchSpec, Params, int], BaseSampler]  # from the search, its params and a seed


class OptunaSampler:
    """A ``Sampler`` that asks one of Optuna's.

    Builds a new Optuna study for every proposal: that is how Optuna's public interface takes trials, with their
    intermediate values and constraints, which it did not propose itself.
    """

    def __init__(self, forecaster: Forecaster, make: MakeOptunaSampler) -> None:
        self._spec, self._make_sampler = forecaster.spec, make
        self._params = Params(self._spec)
        self._seen: dict[int, FrozenTrial] = {}  # in the order in which they began
        self._tried = Tried(self._spec, self._spec.search.num_trials)

    @property
    def is_exhausted(self) -> bool:
        return self._tried.is_exhausted

    def propose(self, number: int) -> Proposal | None:
        params = self._tried.first_new(self._asked(number))
        return None if params is None else Proposal(params)

    def _asked(self, number: int) -> Iterator[dict[str, Any]]:
        """What Optuna proposes, again and again."""
        study = self._study()
        for attempt in range(MAX_ATTEMPTS):
            study.sampler = self._sampler(number, attempt)
            trial = study.ask()
            yield self._params.suggest(trial)
            study.tell(trial, state=TrialState.FAIL)  # a running trial would change the next attempt

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        self._seen = self._kept()
        values, distributions = self._params.of_optuna(params)
        self._seen[number] = create_trial(state=TrialState.RUNNING, params=values, distributions=distributions)
        self._tried.add(number, params)

    def report(self, number: int, step: int, value: float) -> None:
        """Pruned trials are ranked by intermediate values."""
        self._seen[number].intermediate_values[step] = value

    def end(self, number: int, status: str, metrics: Metrics) -> None:
        """A diverged trial completes with the worst values, and violates every constraint. If it failed instead, Optuna
        would leave it out of the model and propose the same region again.

        With several goals Optuna accepts no pruned trial: TPE fails at the next proposal. So a pruned trial completes
        and violates an additional constraint by the share of the budget that it did not get. It ranks behind all
        trials that ran to their end, and higher the further it came, like a pruned trial with one goal.
        """
        trial, goals = self._seen[number], self._spec.objective.goals
        if status == "failed":
            self._tried.remove(number)
            self._seen[number] = _ended(trial, TrialState.FAIL)
            return
        values: list[float] | None = [goal.worst() for goal in goals]
        state = TrialState.COMPLETE
        if status == "pruned" and len(goals) == 1:
            state, values = TrialState.PRUNED, None
        elif status != "diverged":
            values = [metrics[goal.metric] for goal in goals]
        self._seen[number] = _ended(trial, state, values, self._missed(trial, status, metrics))

    def _missed(self, trial: FrozenTrial, status: str, metrics: Metrics) -> dict[str, float]:
        """By how much each constraint is violated; a value of at most 0 satisfies it."""
        missed = {
            str(constraint): math.inf if status == "diverged" else constraint.violation(metrics[constraint.metric])
            for constraint in self._spec.objective.constraints
        }
        if status == "pruned" and len(self._spec.objective.goals) > 1:
            missed["budget"] = 1.0 - max(trial.intermediate_values) / self._spec.finetune.max_steps
        return missed

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials that the next proposal depends on."""
        return self._study().trials

    def _kept(self) -> dict[int, FrozenTrial]:
        """All trials, or fewer if there are too many. The others are dropped when a trial begins, as in a replay."""
        running = {n for n, trial in self._seen.items() if trial.state == TrialState.RUNNING}
        if len(self._seen) - len(running) < MAX_TRIALS:
            return self._seen
        modelled = {n: t for n, t in self._seen.items() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)}
        best = set(self._ranked(modelled)[:BEST_TRIALS])
        newest = set([number for number in modelled if number not in best][-NEWEST_TRIALS:])
        return {n: trial for n, trial in self._seen.items() if n in best | newest | running}

    def _study(self) -> optuna.Study:
        with quiet_optuna():
            study = optuna.create_study(directions=[goal.direction for goal in self._spec.objective.goals])
        study.add_trials(self._kept().values())
        return study

    def _ranked(self, trials: dict[int, FrozenTrial]) -> list[int]:
        """Trial numbers in TPE's order: trials that ran to the end, pruned ones, those that violate constraints."""
        signs = [goal.sign for goal in self._spec.objective.goals]
        points: dict[int, list[float]] = {}
        cut_short: dict[int, tuple[int, float]] = {}
        missed: dict[int, float] = {}
        for number, trial in trials.items():
            if violation := sum(v for v in trial.constraints.values() if v > 0.0):
                missed[number] = violation
            elif trial.state == TrialState.COMPLETE:
                points[number] = [sign * value for sign, value in zip(signs, trial.values, strict=True)]
            else:
                step, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
                cut_short[number] = -step, -signs[0] * value
        return [
            *ranking.ordered(points),
            *sorted(cut_short, key=cut_short.__getitem__),
            *sorted(missed, key=missed.__getitem__),
        ]

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        # Every proposal has its own sampler and seed, so that a resumed search proposes what it would have proposed.
        seed = (self._spec.search.seed * 1_000_003 + number + attempt * 500_029) % 2**32
        make = self._make_sampler if attempt < MAX_ATTEMPTS // 2 else random_sampler  # others may repeat themselves
        return make(self._spec, self._params, seed)


def random_sampler(spec: SearchSpec, params: Params, seed: int) -> BaseSampler:
    """Every value at random, independent of the trials before."""
    return RandomSampler(seed=seed)


def tpe_sampler(spec: SearchSpec, params: Params, seed: int) -> BaseSampler:
    """The tree-structured Parzen estimator (Bergstra et al. 2011), after some random trials."""
    groups = params.groups()
    if len(spec.objective.goals) > 1:  # one by one, as Optuna samples by default
        groups = [{name: distribution} for group in groups for name, distribution in group.items()]
    startup = min(10, max(2, spec.expected_trials() // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _GroupedTpe(groups, seed=seed, n_startup_trials=startup)


# By the name in the file.
SAMPLERS: dict[str, Callable[[Forecaster], Sampler]] = {
    "curve": CurveSampler,
    "tpe": partial(OptunaSampler, make=tpe_sampler),
    "random": partial(OptunaSampler, make=random_sampler),
}


class _GroupedTpe(TPESampler):
    """TPE that samples the params of each group jointly, and learns from the trials that have the whole group.

    Optuna's ``group=True`` does the same, but derives the groups from the trials; here they follow from the space.
    """

    def __init__(self, groups: Groups, **settings: Any) -> None:
        super().__init__(**settings)
        self._groups = groups

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: distribution for group in self._groups for name, distribution in group.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampled = [super(_GroupedTpe, self).sample_relative(study, trial, group) for group in self._groups]
        return {name: value for params in sampled for name, value in params.items()}


def _ended(
    trial: FrozenTrial,
    state: TrialState,
    values: list[float] | None = None,
    missed: dict[str, float] | None = None,
) -> FrozenTrial:
    return create_trial(
        state=state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        constraints=missed,
    )


_VERBOSITY = threading.Lock()  # Optuna has one for the whole process, and two searches may run in threads


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Inside, Optuna does not log that it has created a study."""
    with _VERBOSITY:
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)
