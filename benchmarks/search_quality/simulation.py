"""A search, simulated: workers take trials as they become free, and time passes in training steps."""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np

from benchmarks.search_quality.recorded_task import RecordedTask
from benchmarks.search_quality.unit_space import Params, Vector

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the budget, at which regret is taken
DIVERGES_AT = 0.05  # the share of its steps that a diverging trial gets
ROUNDING = 1e-9


class Method(Protocol):
    """What decides in a search. Values are such that more is better."""

    eval_steps: list[int]

    def next(self) -> tuple[int, Params] | None:
        """The number and the params of a trial to start; None if there is none now."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Take an evaluation; returns whether the trial continues."""

    def diverged(self, number: int) -> None:
        """The trial diverged, and is over."""

    def best(self) -> Params | None:
        """What the search would hand over now: the best trial that ran to its end."""

    def close(self) -> None:
        """The search is over."""


@dataclass(frozen=True)
class Outcome:
    """``regret``: how far the trial that the search hands over truly stays below the best, after each of ``SHARES``.

    Before any trial has ended it is taken from the median of all configurations.
    """

    regret: list[float]
    started: int
    finished: int


@dataclass
class _Trial:
    params: Params
    curve: Vector
    evaluation: int = 0  # index of the next one


class Simulation:
    """One search with ``budget`` full trainings shared by ``workers``. ``noise_factor`` scales the recorded noise."""

    def __init__(
        self, task: RecordedTask, method: Method, *, workers: int, budget: float, seed: int, noise_factor: float = 1.0
    ) -> None:
        self._task, self._method, self._seed, self._noise_factor = task, method, seed, noise_factor
        self._end = budget * task.max_steps / workers
        self._workers, self._idle = workers, 0
        self._queue: list[tuple[float, int, int]] = []  # when, in which order at the same time, which trial
        self._order = count()
        self._trials: dict[int, _Trial] = {}
        self._finished = 0
        self._regrets: list[tuple[float, float]] = []

    def run(self) -> Outcome:
        for _ in range(self._workers):
            self._start_trial(0.0)
        while self._queue:
            now, _, number = heapq.heappop(self._queue)
            if now <= self._end + ROUNDING and not self._goes_on(number, now):
                free, self._idle = self._idle + 1, 0
                for _ in range(free):
                    self._start_trial(now)
        return Outcome([self._regret(share) for share in SHARES], len(self._trials), self._finished)

    def _start_trial(self, now: float) -> None:
        proposed = self._method.next()
        if proposed is None:
            self._idle += 1
            return
        number, params = proposed
        noise = self._task.noise(params, np.random.default_rng([self._seed, 5, number]))
        self._trials[number] = _Trial(params, self._task.curve(params) + self._noise_factor * noise)
        diverges = self._task.diverging.contains(params)
        steps = DIVERGES_AT * self._task.max_steps if diverges else self._method.eval_steps[0]
        self._wait(number, now + steps)

    def _wait(self, number: int, until: float) -> None:
        heapq.heappush(self._queue, (until, next(self._order), number))

    def _goes_on(self, number: int, now: float) -> bool:
        """The trial has come to its next evaluation, or has diverged; returns whether it keeps its worker."""
        trial, steps = self._trials[number], self._method.eval_steps
        if self._task.diverging.contains(trial.params):
            self._method.diverged(number)
            return False
        step = steps[trial.evaluation]
        goes_on = self._method.report(number, step, self._task.at(trial.curve, step))
        if step == steps[-1]:
            self._finished += 1
            best = self._method.best()
            if best is not None:
                self._regrets.append((now, self._task.best - self._task.end(best)))
            return False
        if goes_on:
            trial.evaluation += 1
            self._wait(number, now + steps[trial.evaluation] - step)
        return goes_on

    def _regret(self, share: float) -> float:
        until = self._end * share + ROUNDING
        known = [regret for time, regret in self._regrets if time <= until]
        return known[-1] if known else self._task.best - self._task.median
