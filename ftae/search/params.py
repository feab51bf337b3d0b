"""The params of a trial in Optuna's form: a conditional param exists only where it has an effect."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ftae.specs.reading.overrides import value_at
from ftae.specs.reading.schema import Governed
from ftae.specs.search.distributions import Choices, Distribution, Range, conditions_of, has_effect, in_order
from ftae.specs.search.search import SearchSpec

SWITCH = CategoricalDistribution([False, True])


class Params:
    """Translates between the params of a trial (values of leaves, by path) and the params that Optuna samples.

    A leaf whose governor is off has no param. A leaf with ``or_off`` has a switch, and a value only if that is on.
    """

    def __init__(self, spec: SearchSpec) -> None:
        self._run, self._space = spec.finetune, spec.search_space
        self._order = in_order(self._space)
        self._optuna = {path: _to_optuna(distribution) for path, distribution in self._space.items()}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Sample the params of a new trial."""
        chosen: dict[str, Any] = {}
        for path in self._order:
            if has_effect(self._run, path, chosen):
                chosen[path] = self._suggest(trial, path)
        return {path: chosen[path] for path in self._space if path in chosen}

    def of_optuna(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """The values that Optuna would have sampled to give ``params``, and their distributions, by name."""
        values: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for path, value in params.items():
            if not has_effect(self._run, path, params):
                continue
            distribution = self._space[path]
            is_on = True
            if isinstance(distribution, Range) and distribution.or_off:
                is_on = values[_switch(path)] = not distribution.is_off(value)
                distributions[_switch(path)] = SWITCH
            if is_on:
                values[path] = _encoded(value) if _is_encoded(distribution) else value
                distributions[path] = self._optuna[path]
        return values, distributions

    def groups(self) -> list[dict[str, BaseDistribution]]:
        """The params to sample jointly: those of every trial, and those that exist under the same conditions.

        A joint model of all params could not learn from a trial in which any of them is missing.
        """
        groups: dict[frozenset[tuple[str, tuple[Any, ...]]], dict[str, BaseDistribution]] = {}
        for path in sorted(self._space):
            key = frozenset((c.governor, c.values) for c in conditions_of(path) if not self._always_holds(c))
            distribution = self._space[path]
            if isinstance(distribution, Range) and distribution.or_off:
                groups.setdefault(key, {})[_switch(path)] = SWITCH
                key |= {(path, ())}
            if not self._optuna[path].single():
                groups.setdefault(key, {})[path] = self._optuna[path]
        return list(groups.values())

    def _always_holds(self, condition: Governed) -> bool:
        governor = condition.governor
        values = self._space[governor].corners() if governor in self._space else (value_at(self._run, governor),)
        return all(condition.holds(value) for value in values)

    def _suggest(self, trial: optuna.Trial, path: str) -> Any:
        distribution = self._space[path]
        if isinstance(distribution, Range) and distribution.or_off and not _suggest(trial, _switch(path), SWITCH):
            return distribution.off
        value = _suggest(trial, path, self._optuna[path])
        return json.loads(value) if _is_encoded(distribution) else value


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    is_int = isinstance(distribution, IntDistribution)
    suggest: Callable[..., Any] = trial.suggest_int if is_int else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _switch(path: str) -> str:
    return f"{path} is on"


def _to_optuna(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choices):
        encode = _encoded if _is_encoded(distribution) else (lambda choice: choice)
        return CategoricalDistribution([encode(choice) for choice in distribution.choices])
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=distribution.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=distribution.log, step=step)


def _is_encoded(distribution: Distribution) -> bool:
    """Whether the choices are encoded as JSON, because Optuna's categories are scalars."""
    return isinstance(distribution, Choices) and any(isinstance(c, (list, tuple, dict)) for c in distribution.choices)


def _encoded(choice: Any) -> str:
    return json.dumps(choice)
