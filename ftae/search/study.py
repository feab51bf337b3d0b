"""The sampler's side of a search: an in-memory Optuna study, keyed by the search's own trial numbers."""

import json
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from ftae.specs.distributions import Choices, Distribution
from ftae.specs.search import SearchSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Proposes params and learns from results. It holds no state of its own that the journal lacks:
    ``adopt`` and ``tell``, replayed in order, bring back the same study, and each proposal depends
    only on the study, the seed and the trial's number.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        self._distributions = {path: _to_optuna(d) for path, d in spec.search_space.items()}
        self._study = optuna.create_study(direction=spec.objective.direction)
        self._index: dict[int, int] = {}  # the search's trial number -> Optuna's

    def propose(self, number: int) -> dict[str, Any]:
        """New params for trial ``number``, which counts as running from now on."""
        self._study.sampler = self._sampler(number)
        trial = self._study.ask(self._distributions)
        self._index[number] = trial.number
        return {path: self._from_optuna(path, trial.params[path]) for path in self._distributions}

    def adopt(self, number: int, params: dict[str, Any]) -> None:
        """Take up a running trial with given params: the file's own, or one of an earlier driver."""
        self._index[number] = len(self._study.trials)
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={path: self._to_optuna(path, params[path]) for path in self._distributions},
                distributions=self._distributions,
            )
        )

    def report(self, number: int, step: int, value: float) -> None:
        """An intermediate value; the sampler ranks pruned trials by it."""
        trial = self._study.trials[self._index[number]]
        self._study._storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def tell(self, number: int, status: str, value: float | None) -> None:
        """The end of a trial.

        A diverged trial completes with the worst value: told to have failed, the sampler would leave
        it out of its model and propose the same region again.
        """
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        if status == "diverged":
            self._study.tell(self._index[number], self._spec.objective.worst())
        else:
            final = value if status == "finished" else None
            self._study.tell(self._index[number], final, state=state[status])

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.trials

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        # A sampler of its own for every proposal: an interrupted search proposes what it would have.
        settings = self._spec.search
        seed = (settings.seed * 1_000_003 + number) % 2**32
        if settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            startup = min(10, max(2, settings.num_trials // 4))
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)

    def _to_optuna(self, path: str, value: Any) -> Any:
        return _encoded(value) if _is_encoded(self._spec.search_space[path]) else value

    def _from_optuna(self, path: str, value: Any) -> Any:
        return json.loads(value) if _is_encoded(self._spec.search_space[path]) else value


def _to_optuna(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choices):
        encode = _encoded if _is_encoded(distribution) else (lambda choice: choice)
        return CategoricalDistribution([encode(choice) for choice in distribution.choices])
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=distribution.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=distribution.log, step=step)


def _is_encoded(distribution: Distribution) -> bool:
    """Optuna's categories are scalars; lists travel as JSON."""
    return isinstance(distribution, Choices) and any(isinstance(c, (list, tuple, dict)) for c in distribution.choices)


def _encoded(choice: Any) -> str:
    return json.dumps(choice)
