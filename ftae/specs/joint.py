"""Values of a search space that are valid one by one and not together: the sampler would meet them in mid-search."""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

from ftae.specs.distributions import Distribution, objections
from ftae.specs.finetune import OPTIMIZERS_WITH, SCHEDULES_WITH, FinetuneSpec
from ftae.specs.losses import Losses
from ftae.specs.problems import Problem, shown

# Within each of these a value may be refused for that of another leaf; no rule of a run spans two of them.
RULES = (
    ("model", "data", "perceptual", "features", "losses", "discriminator", "metrics", "sample_posterior"),
    ("optimizer.name", *(f"optimizer.{setting}" for setting in OPTIMIZERS_WITH)),
    ("schedule.name", *(f"schedule.{setting}" for setting in SCHEDULES_WITH)),
)


def joint_problems(run: FinetuneSpec, space: Mapping[str, Distribution]) -> list[Problem]:
    """Tried are the pairs that a rule spans, and everything at its lowest (where the last loss weight goes to 0)."""
    found: list[Problem] = []
    for rule in RULES:
        values = {path: _telling(path, space[path]) for path in space if _covers(rule, path)}
        for (path, some), (other, others) in combinations(values.items(), 2):
            for value, its_value in product(some, others):
                for reason in objections(run, {path: value, other: its_value}):
                    found.append(((other,), f"with {shown(its_value)} and {path} {shown(value)}: {reason}"))
    lowest = {path: [c for c in d.corners() if isinstance(c, (int, float))] for path, d in space.items()}
    reasons = [] if found else objections(run, {path: min(values) for path, values in lowest.items() if values})
    return found + [((), f"with every number at its lowest: {reason}") for reason in reasons]


def _covers(rule: tuple[str, ...], path: str) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in rule)


def _telling(path: str, distribution: Distribution) -> tuple[Any, ...]:
    """The values to try: of a loss weight every rule asks alone whether it is 0."""
    corners = distribution.corners()
    if path.removeprefix("losses.") not in Losses.TERMS:
        return corners
    return tuple({value > 0.0: value for value in reversed(corners)}.values())
