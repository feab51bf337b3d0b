"""Other rules for a search: Optuna's samplers and pruners, and the stopping rule of Ray's ASHA scheduler.

Ray's rule is written anew here, after the brackets of ``ray.tune.schedulers.AsyncHyperBandScheduler``: Ray's own class
needs a running Tune. Every peer tries the file's configuration first, as ftae does, and evaluates nine times.
"""

import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.search_quality.recorded_task import RecordedTask
from benchmarks.search_quality.unit_space import Params
from ftae.search.params import Params as Translation

NUM_EVALS = 9
REDUCTION_FACTOR = 3
DIVERGED = -1e6


def _multivariate(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
    "mvtpe": _multivariate,
    "gp": lambda seed: GPSampler(seed=seed),
}


def _halving(max_steps: int) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=round(max_steps / 9), reduction_factor=REDUCTION_FACTOR)


def _hyperband(max_steps: int) -> BasePruner:
    least = round(max_steps / 9)
    return HyperbandPruner(min_resource=least, max_resource=max_steps, reduction_factor=REDUCTION_FACTOR)


PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "full": lambda max_steps: NopPruner(),
    "halving": _halving,
    "hyperband": _hyperband,
    "median": lambda max_steps: MedianPruner(n_warmup_steps=round(max_steps / 3) - 1),
}


class OptunaSearch:
    """A search as Optuna's documentation has it, for one of ``SAMPLERS`` and one of ``PRUNERS``."""

    def __init__(self, task: RecordedTask, *, seed: int, sampler: str, pruner: str = "full") -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._params = Translation(task.spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                direction="maximize", sampler=SAMPLERS[sampler](seed), pruner=PRUNERS[pruner](task.max_steps)
            )
        self._study.enqueue_trial(self._params.of_optuna(task.spec.file_params())[0])
        self.eval_steps = [round(i * task.max_steps / NUM_EVALS) for i in range(1, NUM_EVALS + 1)]
        self._trials: dict[int, tuple[optuna.Trial, Params]] = {}
        self._best: tuple[float, Params] | None = None

    def next(self) -> tuple[int, Params] | None:
        trial = self._study.ask()
        params = self._params.suggest(trial)
        self._trials[trial.number] = trial, params
        return trial.number, params

    def report(self, number: int, step: int, value: float) -> bool:
        trial, params = self._trials[number]
        if step == self.eval_steps[-1]:
            self._study.tell(trial, value)
            if self._best is None or value > self._best[0]:
                self._best = value, params
            return False
        trial.report(value, step)
        goes_on = self._goes_on(trial, step, value)
        if not goes_on:
            self._stop(trial, value)
        return goes_on

    def _goes_on(self, trial: optuna.Trial, step: int, value: float) -> bool:
        return not trial.should_prune()

    def _stop(self, trial: optuna.Trial, value: float) -> None:
        self._study.tell(trial, state=TrialState.PRUNED)

    def diverged(self, number: int) -> None:
        self._study.tell(self._trials[number][0], DIVERGED)

    def best(self) -> Params | None:
        return None if self._best is None else self._best[1]

    def close(self) -> None:
        self._trials.clear()


class RayStock(OptunaSearch):
    """Tune with OptunaSearch and ASHAScheduler, all as they are: TPE, to which a stopped trial is a complete one.

    Rungs are at a ninth and at a third of the budget. A trial is compared at the highest rung that it has reached, once
    at each, with the values of the trials that came there before.
    """

    def __init__(self, task: RecordedTask, *, seed: int) -> None:
        super().__init__(task, seed=seed, sampler="tpe")
        self._rungs: dict[float, dict[int, float]] = {task.max_steps / 3: {}, task.max_steps / 9: {}}

    def _goes_on(self, trial: optuna.Trial, step: int, value: float) -> bool:
        for rung, values in self._rungs.items():
            if step < rung or trial.number in values:
                continue
            cutoff = np.percentile(list(values.values()), (1 - 1 / REDUCTION_FACTOR) * 100) if values else value
            values[trial.number] = value
            return bool(value >= cutoff)
        return True

    def _stop(self, trial: optuna.Trial, value: float) -> None:
        self._study.tell(trial, value)


def make_peer(name: str, task: RecordedTask, seed: int) -> OptunaSearch:
    """The method ``ray_stock``, or ``optuna_SAMPLER`` or ``optuna_SAMPLER_PRUNER``."""
    if name == "ray_stock":
        return RayStock(task, seed=seed)
    _, sampler, *pruner = name.split("_")
    return OptunaSearch(task, seed=seed, sampler=sampler, pruner=pruner[0] if pruner else "full")


PEERS = ["ray_stock"] + [f"optuna_{s}" + (f"_{p}" if p != "full" else "") for s in SAMPLERS for p in PRUNERS]
