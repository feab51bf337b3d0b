"""Checks a search space against the run: which leaves may be searched, and which values go together."""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from ftae.errors import FtaeError
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import leaf_in
from ftae.specs.reading.problems import Problem, problems, quoted, refusal
from ftae.specs.reading.roles import Governed, Joint, Means, NotSearched, roles_below
from ftae.specs.search.conditions import covers
from ftae.specs.search.distributions import Choices, Distribution, Range, coerced, typed, validation_errors

# The leaves that cannot be searched, and why.
NOT_SEARCHED = {
    **{path: role.reason for path, role in roles_below(FinetuneSpec, NotSearched).items()},
    **dict.fromkeys(roles_below(FinetuneSpec, Means), "no result depends on it"),
}


def _joint_groups() -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for path, role in roles_below(FinetuneSpec, Joint).items():
        groups.setdefault(role.group, []).append(path)
    for setting, governed in roles_below(FinetuneSpec, Governed).items():
        if governed.values:
            groups.setdefault(governed.governor, [governed.governor]).append(setting)
    return [tuple(paths) for paths in groups.values()]


# Within each group a value may be refused because of another leaf; no rule of a run spans two groups.
JOINT_GROUPS = _joint_groups()


def _kind_of_distribution(value: Any) -> str:
    has_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "choices" if has_choices else "range"


FileDistribution = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind_of_distribution)
]

_FILE_DISTRIBUTION: TypeAdapter[Distribution] = TypeAdapter(FileDistribution)


def checked_space(raw: dict[Any, Any], run: FinetuneSpec | None, written: Any) -> dict[str, Distribution]:
    """The search space with its values converted to the types of ``run``.

    Every entry is checked by itself, so that no fault hides another. Where the run is not valid (None), ``written``
    takes its place: the data of the file.

    Raises:
        pydantic.ValidationError: with every problem of the space.
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
    """The same for a space that was checked before."""
    return {path: typed(run, path, _FILE_DISTRIBUTION.validate_python(entry)) for path, entry in raw.items()}


def _path_problem(path: str, run: Any) -> str | None:
    if path in NOT_SEARCHED:
        return f"cannot be searched: {NOT_SEARCHED[path]}"
    try:
        leaf_in(FinetuneSpec, run, path)
    except FtaeError as error:
        return f"names no leaf of finetune: {error}"
    return None


def joint_problems(run: FinetuneSpec, space: Mapping[str, Distribution]) -> list[Problem]:
    """Which values do not go together.

    Pairs of leaves of one group are tried, and everything at its lowest, where the last loss weight goes to 0.
    """
    found: list[Problem] = []
    for group in JOINT_GROUPS:
        values = {path: _to_try(path, space[path]) for path in space if any(covers(part, path) for part in group)}
        for (path, values_of_one), (other, values_of_other) in combinations(values.items(), 2):
            for value, other_value in product(values_of_one, values_of_other):
                for reason in validation_errors(run, {path: value, other: other_value}):
                    found.append(((other,), f"with {quoted(other_value)} and {path} {quoted(value)}: {reason}"))
    lowest = {path: [c for c in d.corners() if isinstance(c, (int, float))] for path, d in space.items()}
    reasons = [] if found else validation_errors(run, {path: min(values) for path, values in lowest.items() if values})
    return found + [((), f"with every number at its lowest: {reason}") for reason in reasons]


def _to_try(path: str, distribution: Distribution) -> tuple[Any, ...]:
    """The corners; of a loss weight one that is 0 and one that is not, since rules depend on nothing else."""
    corners = distribution.corners()
    if path.removeprefix("losses.") not in Losses.TERMS:
        return corners
    return tuple({value > 0.0: value for value in reversed(corners)}.values())
