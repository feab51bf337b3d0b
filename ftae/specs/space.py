"""The search space of a file: which leaves it names, and what may be chosen for each."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from ftae.errors import FtaeError
from ftae.specs.distributions import Choices, Distribution, Range, coerced, typed
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.joint import joint_problems
from ftae.specs.overrides import leaf_in
from ftae.specs.problems import Problem, problems, refusal

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
    if path == "prefix_cache_gb":
        return "cannot be searched: no result depends on it"
    if path in _SAME_FOR_ALL:
        return "cannot be searched: every trial has the same budget and is measured alike"
    try:
        leaf_in(FinetuneSpec, run, path)
    except FtaeError as error:
        return f"names no leaf of finetune: {error}"
    return None
