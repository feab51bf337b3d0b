"""A search: one fine-tuning run, which of its leaves to vary, what to optimise, and with what means."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from ftae.errors import FtaeError
from ftae.lookup import did_you_mean
from ftae.specs.base import Spec
from ftae.specs.distributions import Choices, Distribution, Range
from ftae.specs.finetune import METRIC_BOUNDS, FinetuneSpec, Positive
from ftae.specs.overrides import Leaf, apply_overrides, leaf, value_at

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Objective(Spec):
    """The one number a search optimises: a held-out, unweighted metric and its direction."""

    metric: str
    direction: Literal["minimize", "maximize"]

    def worst(self) -> float:
        """The worst value the metric can take: what a diverged trial scores."""
        low, high = METRIC_BOUNDS[self.metric.removeprefix("val/")]
        return low if self.direction == "maximize" else high

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``."""
        return a > b if self.direction == "maximize" else a < b


class Fifo(Spec):
    """Every trial runs to its full budget."""

    name: Literal["fifo"]


class Asha(Spec):
    """Asynchronous successive halving (Li et al., MLSys 2020), the stopping variant.

    At each rung only the best ``1/reduction_factor`` of the trials so far go on. The first rung is
    at ``grace_fraction`` of the budget: fine-tuning curves cross, so it defaults to a third.
    """

    name: Literal["asha"]
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    grace_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.33


class Resources(Spec):
    """What one trial gets. A fraction of a GPU shares it (memory is not isolated)."""

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Resources":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus above 1 must be a whole number, got {self.gpus:g}")
        return self


class SearchSettings(Spec):
    """How to search. ``num_trials`` counts tuned trials; the untuned baseline comes on top.

    ``max_concurrent``: None runs as many trials as the cluster has room for. ``keep_checkpoints``:
    the best K of the whole search stay on disk. ``max_failures``: how often a trial is started
    again after a fault of the machine. ``storage``: the folder searches live in.
    """

    num_trials: Positive = 16
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    max_concurrent: Positive | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Annotated[Asha | Fifo, Field(discriminator="name")] = Asha(name="asha")
    resources: Resources = Resources()
    keep_checkpoints: Positive = 3
    max_failures: Annotated[int, Field(ge=0)] = 2
    storage: str = "searches"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Tracking(Spec):
    """Where MLflow is. ``uri`` None: an embedded SQLite store in the storage folder.

    ``experiment`` None: the name of the search.
    """

    uri: str | None = None
    experiment: str | None = None


class ProductionSpec(Spec):
    """One training run: what ``ftae export`` writes and ``ftae train`` runs.

    ``from_search`` says where it came from: the name of the search and the number of the trial.
    """

    name: Name
    finetune: FinetuneSpec
    tracking: Tracking = Tracking()
    from_search: dict[str, Any] | None = None


def _kind_of_distribution(value: Any) -> str:
    has_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "choices" if has_choices else "range"


FileDistribution = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind_of_distribution)
]


class SearchSpec(Spec):
    """A whole search file. ``finetune`` is also the first configuration tried."""

    name: Name
    finetune: FinetuneSpec
    search_space: Annotated[dict[str, FileDistribution], Field(min_length=1)]
    objective: Objective
    search: SearchSettings = SearchSettings()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _fits_the_run(self) -> "SearchSpec":
        problems = self._objective_problems()
        space = {}
        for path, distribution in self.search_space.items():
            try:
                space[path] = coerced(self.finetune, path, distribution)
            except FtaeError as error:
                problems.extend(f"search_space.{path}: {line}" for line in str(error).splitlines())
        if problems:
            raise ValueError("\n".join(problems))
        object.__setattr__(self, "search_space", space)  # frozen for everyone else
        return self

    def _objective_problems(self) -> list[str]:
        metric, choices = self.objective.metric, [f"val/{name}" for name in self.finetune.metrics]
        if metric in choices:
            return []
        if metric.startswith("train/") or metric in ("loss", "val/loss"):
            return [
                f"objective.metric: must be a held-out, unweighted metric, got {metric!r}: a weighted loss is not "
                f"comparable between trials with other weights. Choose one of {', '.join(choices)}"
            ]
        return [
            f"objective.metric: must be one of finetune.metrics, got {metric!r}{did_you_mean(metric, choices)}. "
            f"Choose one of {', '.join(choices)}"
        ]

    def rung_steps(self) -> list[int]:
        """The steps at which trials are compared; none without ASHA, or where none lies before the end.

        The first is the first evaluation at or behind ``grace_fraction`` of the budget.
        """
        scheduler, budget = self.search.scheduler, self.finetune.max_steps
        if isinstance(scheduler, Fifo):
            return []
        step = next(s for s in self.finetune.eval_steps() if s >= scheduler.grace_fraction * budget)
        rungs = []
        while step < budget:
            rungs.append(step)
            step = round(step * scheduler.reduction_factor)
        return rungs

    def file_params(self) -> dict[str, Any]:
        """The file's own value of every searched leaf: the params of the first tuned trial."""
        return {path: value_at(self.finetune, path) for path in self.search_space}

    def trial_spec(self, params: dict[str, Any]) -> FinetuneSpec:
        """The complete run of a trial with these params: what a worker trains and an export writes down."""
        threads = self.finetune.num_threads or max(1, int(self.search.resources.cpus))
        return apply_overrides(self.finetune, {**params, "num_threads": threads})


def coerced(spec: FinetuneSpec, path: str, distribution: Distribution) -> Distribution:
    """``distribution`` with every bound and choice coerced through the leaf of ``spec`` at ``path``.

    Raises:
        FtaeError: no such leaf, a value the leaf or the whole spec refuses, or the spec's own value
            (the first configuration tried) lies outside.
    """
    target = leaf(spec, path)
    if isinstance(distribution, Choices):
        values = tuple(_accepted(target, choice) for choice in distribution.choices)
        result: Distribution = Choices(choices=values)
    else:
        number = target.number_type()
        if number is None:
            raise FtaeError("low and high need a numeric leaf; list its values as {choices: [...]}")
        step = None if distribution.step is None else number(distribution.step)
        values = (_accepted(target, distribution.low), _accepted(target, distribution.high))
        result = Range(low=values[0], high=values[1], log=distribution.log, step=step)
    for value in values:
        _whole_spec_accepts(spec, path, value)
    own = value_at(spec, path)
    if not result.contains(own):
        raise FtaeError(f"must contain finetune's own value {own!r}, the first configuration tried")
    return result


def _accepted(target: Leaf, value: Any) -> Any:
    try:
        return target.coerce(value)
    except ValidationError as error:
        raise FtaeError("\n".join(f"the leaf refuses {value!r}: {e['msg']}" for e in error.errors())) from error


def _whole_spec_accepts(spec: FinetuneSpec, path: str, value: Any) -> None:
    try:
        apply_overrides(spec, {path: value})
    except ValidationError as error:
        reasons = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise FtaeError(f"with {value!r}: {reasons}") from error
