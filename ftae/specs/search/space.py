"""Checks a search space against the run: which leaves may be searched, their values, and which of them fit together."""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from ftae.errors import FtaeError
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.overrides import Leaf, apply_overrides, leaf, leaf_in, value_at
from ftae.specs.reading.problems import Problem, dotted, problems, quoted, refusal
from ftae.specs.reading.schema import Governed, Joint, Location, Means, NotSearched, roles_below
from ftae.specs.search.distributions import Choices, Distribution, Range, covers, drop_inactive, has_effect

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


def coerced(spec: Spec, path: str, distribution: Distribution) -> Distribution:
    """``distribution`` with every bound and choice converted to the type of the leaf of ``spec`` at ``path``.

    Raises:
        FtaeError: there is no such leaf.
        pydantic.ValidationError: the leaf or the whole spec refuses a value, or the spec's own value (of the first
            configuration tried) lies outside.
    """
    result = typed(spec, path, distribution)
    found = []
    for value in result.corners():
        found += [f"with {quoted(value)}: {reason}" for reason in validation_errors(spec, {path: value})]
    own = value_at(spec, path)
    if has_effect(spec, path, {}) and not result.contains(own):
        found.append(f"must contain finetune's own value ({quoted(own)}), the first configuration tried")
    if found:
        raise refusal(((), rule) for rule in found)
    return result


def typed(spec: Spec, path: str, distribution: Distribution) -> Distribution:
    """``coerced`` without the check that the spec would be valid, for a distribution that was checked before."""
    target = leaf(spec, path)
    if isinstance(distribution, Choices):
        return _coerced_choices(target, distribution)
    return _coerced_range(target, distribution)


def validation_errors(spec: Spec, values: Mapping[str, Any]) -> list[str]:
    """Why ``spec`` would not be valid with these leaves replaced; an empty list where it would.

    As in a trial, values that have no effect beside the others are left out.
    """
    try:
        apply_overrides(spec, drop_inactive(spec, values))
    except ValidationError as error:
        return [f"{dotted(location)}: {rule}" for location, rule in problems(type(spec), error)]
    return []


def _coerced_choices(target: Leaf, distribution: Choices) -> Choices:
    values: dict[Location, Any] = {("choices", i): choice for i, choice in enumerate(distribution.choices)}
    return Choices(choices=tuple(_coerced_values(target, values)))


def _coerced_range(target: Leaf, given: Range) -> Range:
    number = target.number_type()
    if number is None:
        raise refusal([((), "low and high need a numeric leaf, list its values as {choices: [...]}")])
    low, high = _coerced_values(target, {("low",): given.low, ("high",): given.high})
    step = None if given.step is None else _coerced_values(Leaf(number), {("step",): given.step})[0]
    result = Range(low=low, high=high, log=given.log, step=step, or_off=given.or_off)
    return result.with_off(_off(target, result)) if result.or_off else result


def _off(target: Leaf, given: Range) -> Any:
    """The value that means off: 0, or None where the leaf takes no 0."""
    for off in (0, None):
        try:
            value = target.coerce(off)
        except ValidationError:
            continue
        if off is not None and given.low <= off <= given.high:
            raise refusal(
                [(("low",), f"must be above 0, which is the value of or_off for off, got {quoted(given.low)}")]
            )
        return value
    raise refusal([(("or_off",), "needs a leaf that may be 0 or null; this one may be neither")])


def _coerced_values(target: Leaf, values: Mapping[Location, Any]) -> list[Any]:
    result, found = [], []
    for location, value in values.items():
        try:
            result.append(target.coerce(value))
        except ValidationError as error:
            found += [((*location, *inner), rule) for inner, rule in problems(target.annotation, error)]
    if found:
        raise refusal(found)
    return result
