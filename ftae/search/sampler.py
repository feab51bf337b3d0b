"""The sampler's side of a search: an in-memory Optuna study, keyed by the search's own trial numbers."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftae.results import ranking
from ftae.search.params import Params
from ftae.specs.search.configurations import configurations, count_up_to, identity
from ftae.specs.search.objective import Metrics
from ftae.specs.search.search import SearchSpec

# A proposal takes TPE time in proportion to the trials it sees. So a study of 500 that ended is cut to the best
# 25, which is all that TPE ever takes for good, and the newest 250 of the others, which it weighs most anyway.
MOST_TRIALS = 500

BEST_TRIALS = 25

NEWEST_TRIALS = 250

ASKS = 20  # for params that no trial has had, before one is taken that is left


class Study:
    """Proposes params and learns from results. It holds no state of its own that the journal lacks:
    ``adopt`` and ``tell``, replayed in order, bring back the same study, and each proposal depends
    only on the study, the seed and the trial's number.

    Optuna's own study is made anew for every proposal: what the sampler is to see can then be said by what Optuna
    documents, also of trials that Optuna did not ask for.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        self._params = Params(spec)
        groups = self._params.groups()
        if len(spec.objective.goals) > 1:
            groups = [{name: distribution} for group in groups for name, distribution in group.items()]
        self._groups = groups
        self._seen: dict[int, FrozenTrial] = {}  # by the search's own numbers, in the order they began
        self._tried: dict[int, str] = {}  # what was trained, by trial; a fault of the machine tells nothing of it
        size = count_up_to(spec.search.num_trials + 1, spec)
        self._size = size if size <= spec.search.num_trials else math.inf  # no search comes to the end of a larger one

    @property
    def is_exhausted(self) -> bool:
        """Whether every configuration of the space was tried, or is being tried."""
        return len(set(self._tried.values())) >= self._size

    def propose(self, number: int) -> dict[str, Any] | None:
        """New params for trial ``number``, which counts as running from now on; None where the space is exhausted.

        Trials are deterministic: what was trained is not trained again.
        """
        self._forget()
        params = self._untried(number)
        if params is not None:
            self._begin(number, params)
        return params

    def _untried(self, number: int) -> dict[str, Any] | None:
        if self.is_exhausted:
            return None
        study, tried = self._study(), set(self._tried.values())
        for attempt in range(ASKS):
            study.sampler = self._sampler(number, attempt)
            trial = study.ask()
            params = self._params.suggest(trial)
            if identity(self._spec, params) not in tried:
                return params
            study.tell(trial, state=TrialState.FAIL)  # or the next answer would keep away from it
        return next((c for c in configurations(self._spec) if identity(self._spec, c) not in tried), None)

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        """Take up a running trial with given params: the file's own, or one of an earlier driver."""
        self._forget()
        self._begin(number, params)

    def report(self, number: int, step: int, value: float) -> None:
        """An intermediate value of the first goal; the sampler ranks pruned trials by it."""
        self._seen[number].intermediate_values[step] = value

    def tell(self, number: int, status: str, metrics: Metrics) -> None:
        """The end of a trial, with the metrics of its last report.

        A diverged trial completes with the worst values and no constraint kept: told to have failed, the sampler
        would leave it out of its model and propose the same region again. Of several goals Optuna takes no
        pruned trial (its TPE fails on the next proposal). So such a trial completes, too, with a constraint of its
        own that it misses by the share of the budget it did not get: it ranks behind all that ran to their
        end, the farther it came the better, as a pruned trial of one goal does.
        """
        trial, goals = self._seen[number], self._spec.objective.goals
        if status == "failed":
            del self._tried[number]
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
        """How far each constraint is missed; Optuna allows what is not above 0."""
        missed = {
            str(constraint): math.inf if status == "diverged" else constraint.violation(metrics[constraint.metric])
            for constraint in self._spec.objective.constraints
        }
        if status == "pruned" and len(self._spec.objective.goals) > 1:
            missed["budget"] = 1.0 - max(trial.intermediate_values) / self._spec.finetune.max_steps
        return missed

    def _begin(self, number: int, params: dict[str, Any]) -> None:
        values, distributions = self._params.of_optuna(params)
        self._seen[number] = create_trial(state=TrialState.RUNNING, params=values, distributions=distributions)
        self._tried[number] = identity(self._spec, params)

    @property
    def trials(self) -> list[FrozenTrial]:
        """What the sampler sees."""
        return self._study().trials

    def _forget(self) -> None:
        """Cut a study that has become too large. Called as trials begin, so a replay cuts where the first run did."""
        running = {n for n, trial in self._seen.items() if trial.state == TrialState.RUNNING}
        if len(self._seen) - len(running) < MOST_TRIALS:
            return
        modelled = {n: t for n, t in self._seen.items() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)}
        best = set(self._ranked(modelled)[:BEST_TRIALS])
        newest = set([number for number in modelled if number not in best][-NEWEST_TRIALS:])
        self._seen = {n: trial for n, trial in self._seen.items() if n in best | newest | running}

    def _study(self) -> optuna.Study:
        with _quiet():
            study = optuna.create_study(directions=[goal.direction for goal in self._spec.objective.goals])
        study.add_trials(self._seen.values())
        return study

    def _ranked(self, trials: dict[int, FrozenTrial]) -> list[int]:
        """The numbers of trials in TPE's order: those that ran to the end, that came far, that miss constraints."""
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
        # A sampler of its own for every proposal: an interrupted search proposes what it would have.
        settings = self._spec.search
        seed = (settings.seed * 1_000_003 + number + attempt * 500_029) % 2**32
        if settings.sampler == "random" or attempt >= ASKS // 2:  # TPE may keep to what it has found
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
        sampled = [super(_Tpe, self).sample_relative(study, trial, group) for group in self._groups]
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs that it has made a study, which is no news here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
