"""The sampler's side of a search: an in-memory Optuna study, keyed by the search's own trial numbers."""

import math
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftae import ranking
from ftae.search.params import Params
from ftae.specs.objective import Metrics
from ftae.specs.search import SearchSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)

# A proposal takes TPE time in proportion to the trials it sees. So a study of 500 that ended is cut to the best
# 25, which is all that TPE ever takes for good, and the newest 250 of the others, which it weighs most anyway.
MOST_TRIALS = 500
BEST_TRIALS = 25
NEWEST_TRIALS = 250


class Study:
    """Proposes params and learns from results. It holds no state of its own that the journal lacks:
    ``adopt`` and ``tell``, replayed in order, bring back the same study, and each proposal depends
    only on the study, the seed and the trial's number.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        self._params = Params(spec)
        groups = self._params.groups()
        if len(spec.objective.goals) > 1:
            groups = [{name: distribution} for group in groups for name, distribution in group.items()]
        self._groups = groups
        self._study = self._empty()
        self._running: dict[int, int] = {}  # the search's trial number -> Optuna's

    def propose(self, number: int) -> dict[str, Any]:
        """New params for trial ``number``, which counts as running from now on."""
        self._forget()
        self._study.sampler = self._sampler(number)
        trial = self._study.ask()
        self._running[number] = trial.number
        return self._params.suggest(trial)

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        """Take up a running trial with given params: the file's own, or one of an earlier driver."""
        self._forget()
        self._running[number] = len(self._seen())
        values, distributions = self._params.of_optuna(params)
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=values, distributions=distributions))

    def report(self, number: int, step: int, value: float) -> None:
        """An intermediate value of the first goal; the sampler ranks pruned trials by it."""
        trial = self._seen()[self._running[number]]
        self._study._storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def tell(self, number: int, status: str, metrics: Metrics) -> None:
        """The end of a trial, with the metrics of its last report.

        A diverged trial completes with the worst values and no constraint kept: told to have failed, the sampler
        would leave it out of its model and propose the same region again. Of several goals Optuna takes no
        pruned trial (its TPE fails on the next proposal). So such a trial completes, too, with a constraint of its
        own that it misses by the share of the budget it did not get: it ranks behind all that ran to their
        end, the farther it came the better, as a pruned trial of one goal does.
        """
        index, goals = self._running.pop(number), self._spec.objective.goals
        if status == "failed":
            self._study.tell(index, state=TrialState.FAIL)
            return
        self._constrain(index, status, metrics)
        if status == "pruned" and len(goals) == 1:
            self._study.tell(index, state=TrialState.PRUNED)
        elif status == "diverged":
            self._study.tell(index, [goal.worst() for goal in goals])
        else:
            self._study.tell(index, [metrics[goal.metric] for goal in goals])

    def _constrain(self, index: int, status: str, metrics: Metrics) -> None:
        """Note how far each constraint is missed; Optuna allows what is not above 0."""
        trial = self._seen()[index]
        missed = {
            str(constraint): math.inf if status == "diverged" else constraint.violation(metrics[constraint.metric])
            for constraint in self._spec.objective.constraints
        }
        if status == "pruned" and len(self._spec.objective.goals) > 1:
            missed["budget"] = 1.0 - max(trial.intermediate_values) / self._spec.finetune.max_steps
        for name, violation in missed.items():  # as Trial.set_constraint does, which is not for trials of add_trial
            self._study._storage.set_trial_system_attr(trial._trial_id, f"constraints:{name}", violation)

    @property
    def trials(self) -> list[FrozenTrial]:
        """What the sampler sees."""
        return self._study.trials

    def _seen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _forget(self) -> None:
        """Cut a study that has become too large. Called as trials begin, so a replay cuts where the first run did."""
        trials = self._seen()
        if len(trials) - len(self._running) < MOST_TRIALS:
            return
        modelled = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        best = set(self._ranked(modelled)[:BEST_TRIALS])
        newest = {t.number for t in [t for t in modelled if t.number not in best][-NEWEST_TRIALS:]}
        kept = [t for t in trials if t.number in best | newest or t.state == TrialState.RUNNING]
        self._study = self._empty()
        self._study.add_trials(kept)
        place = {trial.number: index for index, trial in enumerate(kept)}
        self._running = {number: place[index] for number, index in self._running.items()}

    def _empty(self) -> optuna.Study:
        return optuna.create_study(directions=[goal.direction for goal in self._spec.objective.goals])

    def _ranked(self, trials: list[FrozenTrial]) -> list[int]:
        """TPE's order of trials: those that ran to the end, those that came far, those that miss constraints."""
        signs = [goal.sign for goal in self._spec.objective.goals]
        points: dict[int, list[float]] = {}
        cut_short: dict[int, tuple[int, float]] = {}
        missed: dict[int, float] = {}
        for trial in trials:
            if violation := sum(v for v in trial.constraints.values() if v > 0.0):
                missed[trial.number] = violation
            elif trial.state == TrialState.COMPLETE:
                points[trial.number] = [sign * value for sign, value in zip(signs, trial.values, strict=True)]
            else:
                step, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
                cut_short[trial.number] = -step, -signs[0] * value
        return [
            *ranking.ordered(points),
            *sorted(cut_short, key=cut_short.__getitem__),
            *sorted(missed, key=missed.__getitem__),
        ]

    def _sampler(self, number: int) -> BaseSampler:
        # A sampler of its own for every proposal: an interrupted search proposes what it would have.
        settings = self._spec.search
        seed = (settings.seed * 1_000_003 + number) % 2**32
        if settings.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            startup = min(10, max(2, settings.num_trials // 4))
            return _Tpe(self._groups, seed=seed, n_startup_trials=startup)


class _Tpe(TPESampler):
    """TPE over a space that is known, which Optuna would look for in all trials.

    ``groups`` are sampled one by one, each learning from the trials that have all of it: Optuna's own ``group=True``
    with the decomposition given. By several goals each param is sampled alone, as is Optuna's default there.
    """

    def __init__(self, groups: list[dict[str, BaseDistribution]], **settings: Any) -> None:
        super().__init__(**settings)
        self._groups = groups

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: distribution for group in self._groups for name, distribution in group.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # Not the parent's: for other processes it writes down all it sampled, also what the trial will not have.
        sampled = [self._sample_relative(study, trial, group) for group in self._groups]
        return {name: value for params in sampled for name, value in params.items()}
