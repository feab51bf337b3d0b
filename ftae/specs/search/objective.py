"""What a search optimises: held-out, unweighted metrics with directions, and constraints on metrics."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, PlainSerializer, Tag, TypeAdapter, field_validator

from ftae.specs.finetune.metrics import metric_facts
from ftae.specs.reading.base import Spec
from ftae.specs.reading.problems import Problem, one_of, quoted, refusal

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, in a file ``METRIC >= NUMBER`` or ``METRIC <= NUMBER``; the bound itself is allowed."""

    metric: str
    sense: Literal[">=", "<="]
    bound: float

    def violation(self, value: float) -> float:
        """How far ``value`` misses the bound, as a share of the bound (of 1 where the bound is 0); 0 where it holds.

        Shares of several constraints can be added; decibels and nats cannot.
        """
        missing = self.bound - value if self.sense == ">=" else value - self.bound
        return max(0.0, missing) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {self.sense} {repr(self.bound).removesuffix('.0')}"


def _constraint(given: Any) -> Constraint:
    if isinstance(given, Constraint):
        return given
    found = re.fullmatch(r"\s*(\S+?)\s*(>=|<=)\s*([-+.\w]+)\s*", given) if isinstance(given, str) else None
    try:
        if found is None:
            raise ValueError
        return Constraint(found[1], ">=" if found[2] == ">=" else "<=", float(found[3]))
    except ValueError:
        form = "must be METRIC >= NUMBER or METRIC <= NUMBER, such as 'val/psnr >= 27'"
        raise ValueError(f"{form}, got {quoted(given)}") from None


Constraints = tuple[Annotated[Constraint, BeforeValidator(_constraint), PlainSerializer(str, return_type=str)], ...]


class Goal(Spec):
    """One of several metrics to optimise, with its direction."""

    metric: str
    """The name of the metric in reports, such as ``val/psnr``."""
    direction: Literal["minimize", "maximize"]
    """Whether smaller or larger values are better."""

    @property
    def sign(self) -> float:
        """The factor that turns values so that more is better."""
        return 1.0 if self.direction == "maximize" else -1.0

    def worst(self) -> float:
        """The worst value of the metric, which a diverged trial scores."""
        facts = metric_facts(self.metric)
        return facts.low if self.direction == "maximize" else facts.high


class _Judging:
    """How an objective judges the metrics of a trial, with one goal or several."""

    if TYPE_CHECKING:
        constraints: Constraints

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The metrics to optimise, with their directions."""
        raise NotImplementedError

    @property
    def first(self) -> Goal:
        """The goal by which trials are stopped early."""
        return self.goals[0]

    @property
    def shown_metrics(self) -> list[str]:
        """The metrics of the goals, then those of the constraints."""
        return list(dict.fromkeys([*(g.metric for g in self.goals), *(c.metric for c in self.constraints)]))

    def point(self, metrics: Metrics) -> tuple[float, ...]:
        """The value of every goal, turned so that more is better."""
        return tuple(goal.sign * metrics[goal.metric] for goal in self.goals)

    def violation(self, metrics: Metrics) -> float:
        """The sum of the violations of all constraints; 0 where all hold."""
        return sum(constraint.violation(metrics[constraint.metric]) for constraint in self.constraints)

    def missed(self, metrics: Metrics) -> list[str]:
        """The constraints that do not hold, each with the measured value."""
        return [f"{c} (it is {metrics[c.metric]:.6g})" for c in self.constraints if c.violation(metrics[c.metric])]

    def problems(self, measured: Sequence[str]) -> list[Problem]:
        """The problems of the objective for a run with these metrics, each with its place in the objective."""
        found: list[Problem] = []
        places = [self._place(i) for i in range(len(self.goals))]
        for i, (goal, place) in enumerate(zip(self.goals, places, strict=True)):
            if goal.metric not in measured:
                found.append(((*place, "metric"), _not_measured(goal.metric, measured)))
            elif goal.metric in (other.metric for other in self.goals[:i]):
                found.append(((*place, "metric"), f"{goal.metric} is given twice"))
        for i, constraint in enumerate(self.constraints):
            earlier = [c for c in self.constraints[:i] if c.metric == constraint.metric]
            if constraint.metric not in measured:
                found.append((("constraints", i), _not_measured(constraint.metric, measured)))
            elif reason := _says_nothing(constraint):
                found.append((("constraints", i), reason))
            else:
                found += [(("constraints", i), rule) for other in earlier if (rule := _at_odds(constraint, other))]
        return found

    def __str__(self) -> str:
        kept = f", where {' and '.join(map(str, self.constraints))}" if self.constraints else ""
        return ", ".join(f"{goal.direction} {goal.metric}" for goal in self.goals) + kept

    def _place(self, index: int) -> tuple[str | int, ...]:
        return ()


class Objective(_Judging, Spec):
    """One metric to optimise, and constraints that a trial must keep to win."""

    metric: str
    """The name of the metric in reports, such as ``val/psnr``."""
    direction: Literal["minimize", "maximize"]
    """Whether smaller or larger values are better."""
    constraints: Constraints = ()
    """Bounds such as ``val/kl <= 25``."""

    @property
    def goals(self) -> tuple[Goal, ...]:
        return (Goal(metric=self.metric, direction=self.direction),)


class Objectives(_Judging, Spec):
    """Several metrics at once: a search finds the trials that no other trial beats in all of them."""

    metrics: tuple[Goal, ...]
    """The metrics, with a direction each; the first decides which trials are stopped early."""
    constraints: Constraints = ()
    """Bounds such as ``val/kl <= 25``."""

    @field_validator("metrics")
    @classmethod
    def _are_several(cls, metrics: tuple[Goal, ...]) -> tuple[Goal, ...]:
        if len(metrics) < 2:
            raise ValueError("must be two or more, for one write objective: {metric: ..., direction: ...}")
        return metrics

    @property
    def goals(self) -> tuple[Goal, ...]:
        return self.metrics

    def _place(self, index: int) -> tuple[str | int, ...]:
        return "metrics", index


def check_measured(objective: "AnyObjective", measured: Sequence[str]) -> None:
    """Check an objective against the metrics of its run.

    Raises:
        pydantic.ValidationError: a metric is not measured or given twice, or a bound always or never holds.
    """
    if found := objective.problems(measured):
        raise refusal(found)


def _not_measured(metric: str, measured: Sequence[str]) -> str:
    is_loss = metric.startswith("train/") or metric in ("loss", "val/loss")
    reason = "a weighted loss cannot be compared between trials" if is_loss else "finetune.metrics lacks it"
    return f"{reason}, {one_of(measured, metric)}"


def _says_nothing(constraint: Constraint) -> str | None:
    facts, bound = metric_facts(constraint.metric), constraint.bound
    may_hold = facts.low < bound <= facts.high if constraint.sense == ">=" else facts.low <= bound < facts.high
    if may_hold:
        return None
    return f"is met always or never, {constraint.metric} lies between {facts.low:g} and {facts.high:g}"


def _at_odds(constraint: Constraint, other: Constraint) -> str | None:
    """Why two constraints on one metric do not go together."""
    if constraint.sense == other.sense:
        return f"{constraint} and {other} bound {constraint.metric} on the same side, keep the stricter of the two"
    low, high = sorted((constraint, other), key=lambda c: c.sense, reverse=True)
    return f"no trial can keep both {low} and {high}" if low.bound > high.bound else None


def _kind_of_objective(value: Any) -> str:
    is_several = "metrics" in value if isinstance(value, dict) else isinstance(value, Objectives)
    return "several" if is_several else "one"


AnyObjective = Annotated[
    Annotated[Objective, Tag("one")] | Annotated[Objectives, Tag("several")], Discriminator(_kind_of_objective)
]

_READER: TypeAdapter[AnyObjective] = TypeAdapter(AnyObjective)


def read_objective(dumped: Mapping[str, Any]) -> AnyObjective:
    """The objective of a dumped search."""
    return _READER.validate_python(dumped)
