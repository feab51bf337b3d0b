"""The search space of a file: which leaves it names, and what may be chosen for each and together."""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from ftae.errors import FtaeError
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.run import OPTIMIZERS_WITH, SCHEDULES_WITH, FinetuneSpec
from ftae.specs.reading.overrides import leaf_in
from ftae.specs.reading.problems import Problem, problems, quoted, refusal
from ftae.specs.search.distributions import Choices, Distribution, Range, coerced, typed, validation_errors

# What makes trials comparable, or is set for each of them by the search.
_SAME_FOR_ALL = frozenset({"max_steps", "num_evals", "metrics", "num_threads", "device"})


def _kind_of_distribution(value: Any) -> str:
    has_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "choices" if has_choices else "range"


FileDistribution = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind_of_distribution)
]

_FILE_DISTRIBUTION: TypeAdapter[Distribution] = TypeAdapter(FileDistribution)


def checked_space(raw: dict[Any, Any], run: FinetuneSpec | None, written: Any) -> dict[str, Distribution]:
    """The search space, coerced to ``run``; every entry is checked by itself, so that no fault hides another.

    ``written`` stands in where ``run`` is not valid: what the file says of it.
    """
    space: dict[str, Distribution] = {}
    found: list[Problem] = []
    for path, entry in raw.items():
        wrong = _path_problem(str(path), written if run is None else run.model_dump())
        found += [((path,), wrong)] if wrong else []
        if wrong and not isinstance(entry, dict):
            continue
        kind: Any = FileDistribution
        try:
            distribution = _FILE_DISTRIBUTION.validate_python(entry)
            kind = type(distribution)
            space[path] = distribution if wrong or run is None else coerced(run, path, distribution)
        except ValidationError as error:
            found += [((path, *location), rule) for location, rule in problems(kind, error)]
    if run is not None and not found:
        found = joint_problems(run, space)
    if found:
        raise refusal(found)
    return space


def typed_space(raw: dict[str, Any], run: FinetuneSpec) -> dict[str, Distribution]:
    """``checked_space`` of what was checked before."""
    return {path: typed(run, path, _FILE_DISTRIBUTION.validate_python(entry)) for path, entry in raw.items()}


def _path_problem(path: str, run: Any) -> str | None:
    if path == "frozen_cache_gb":
        return "cannot be searched: no result depends on it"
    if path in _SAME_FOR_ALL:
        return "cannot be searched: every trial has the same budget and is measured alike"
    try:
        leaf_in(FinetuneSpec, run, path)
    except FtaeError as error:
        return f"names no leaf of finetune: {error}"
    return None


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
                for reason in validation_errors(run, {path: value, other: its_value}):
                    found.append(((other,), f"with {quoted(its_value)} and {path} {quoted(value)}: {reason}"))
    lowest = {path: [c for c in d.corners() if isinstance(c, (int, float))] for path, d in space.items()}
    reasons = [] if found else validation_errors(run, {path: min(values) for path, values in lowest.items() if values})
    return found + [((), f"with every number at its lowest: {reason}") for reason in reasons]


def _covers(rule: tuple[str, ...], path: str) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in rule)


def _telling(path: str, distribution: Distribution) -> tuple[Any, ...]:
    """The values to try: of a loss weight every rule asks alone whether it is 0."""
    corners = distribution.corners()
    if path.removeprefix("losses.") not in Losses.TERMS:
        return corners
    return tuple({value > 0.0: value for value in reversed(corners)}.values())
