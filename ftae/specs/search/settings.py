"""How to search and where results go: sampler, scheduler, limits, storage, tracking."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Positive, Spec, absolute
from ftae.specs.reading.names import search_name_problem
from ftae.specs.reading.problems import quoted, refusal
from ftae.specs.reading.schema import Means
from ftae.specs.search.resources import Resources
from ftae.specs.search.webhooks import check_variables

REPLAYED_SHARE = 0.4  # of its budget that a trial takes on average; see benchmarks/search_quality/


class SchedulerSpec(Spec):
    """Decides which trials end early. A scheduler overrides what differs: here every trial runs to its full budget."""

    runs_file_to_the_end: ClassVar[bool] = False  # whether the file's own configuration is never stopped

    def rung_steps(self, run: FinetuneSpec) -> list[int]:
        """The steps, before the end, at which trials are compared."""
        return []

    def description(self) -> str:
        """What happens at a rung, in a few words for the plan."""
        return "every trial goes on"

    def expected_steps(self, run: FinetuneSpec) -> float:
        """The steps that a trial runs on average."""
        return run.max_steps

    def warnings(self, run: FinetuneSpec) -> list[str]:
        """Why these settings may not do in ``run`` what the user expects."""
        return []


def _never_stopped(grace_fraction: float) -> str:
    return (
        "no trial can be stopped early: no evaluation lies between search.scheduler.grace_fraction "
        f"({grace_fraction:g}) of the budget and its end; lower it, or raise finetune.num_evals"
    )


class Fifo(SchedulerSpec):
    """Every trial runs to its full budget."""

    name: Literal["fifo"] = "fifo"


class Asha(SchedulerSpec):
    """Asynchronous successive halving (Li et al., MLSys 2020), the stopping variant.

    Trials are compared by the objective alone (with several metrics by the first); constraints count for trials that
    ran to the end.
    """

    name: Literal["asha"] = "asha"
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """At each rung the best ``1/reduction_factor`` of the trials so far continue."""
    grace_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.33
    """The share of the budget at which the first rung lies: a third, because curves of fine-tuning cross."""

    def rung_steps(self, run: FinetuneSpec) -> list[int]:
        """The first rung is the first evaluation at or after ``grace_fraction`` of the budget."""
        grace = round(self.grace_fraction * run.max_steps, 6)  # 0.55 * 100 is a little more than 55
        step = next(step for step in run.eval_steps() if step >= grace)
        rungs = []
        while step < run.max_steps:
            rungs.append(step)
            step = max(step + 1, round(step * self.reduction_factor))
        return rungs

    def description(self) -> str:
        return f"best 1/{self.reduction_factor:g} go on"

    def expected_steps(self, run: FinetuneSpec) -> float:
        """As if exactly one in ``reduction_factor`` trials continued at each rung."""
        steps = [0, *self.rung_steps(run), run.max_steps]
        return sum((end - start) / self.reduction_factor**i for i, (start, end) in enumerate(pairwise(steps)))

    def warnings(self, run: FinetuneSpec) -> list[str]:
        return [] if self.rung_steps(run) else [_never_stopped(self.grace_fraction)]


class Forecast(SchedulerSpec):
    """Stops a trial that will hardly beat the best, as learned from all curves of the search.

    Trials are compared by the objective alone; constraints count for the best that is to be beaten. The file's own
    configuration always runs to its end.
    """

    runs_file_to_the_end: ClassVar[bool] = True
    name: Literal["forecast"] = "forecast"
    grace_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.11
    """The share of the budget from which on a trial may be stopped, at each evaluation."""
    min_chance: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """A trial is stopped where its chance to beat the best is smaller."""

    def rung_steps(self, run: FinetuneSpec) -> list[int]:
        """The evaluations from ``grace_fraction`` of the budget on."""
        grace = self.grace_fraction * run.max_steps - 0.5  # steps of evaluations are rounded
        return [step for step in run.eval_steps() if grace <= step < run.max_steps]

    def description(self) -> str:
        return (
            f"a trial whose chance to beat the best is below {self.min_chance:.0%} stops, "
            "as learned from all curves of this search"
        )

    def expected_steps(self, run: FinetuneSpec) -> float:
        """The share of the budget that trials took in replays of recorded searches, by the default settings."""
        return run.max_steps * max(REPLAYED_SHARE, self.grace_fraction) if self.rung_steps(run) else run.max_steps

    def warnings(self, run: FinetuneSpec) -> list[str]:
        return [] if self.rung_steps(run) else [_never_stopped(self.grace_fraction)]


AnyScheduler = Annotated[Forecast | Asha | Fifo, Field(discriminator="name")]

SamplerName = Literal["curve", "tpe", "random"]


MOST_SEEDS = 1000


class Confirm(Spec):
    """Trains the best trials again with other seeds, when all trials of the search have ended."""

    seeds: Annotated[int, Field(ge=0, le=MOST_SEEDS)] = 0
    """Further seeds for each of them, the numbers that follow its own seed; 0 confirms none."""
    top: Positive = 3
    """Number of trials, the best of the search; at most ``keep_checkpoints``."""

    @property
    def num_runs(self) -> int:
        """The most runs that this asks for."""
        return self.seeds * self.top


class SearchSettings(Spec):
    """How to search."""

    num_trials: Annotated[Positive, Means()] = 16
    """Number of tuned trials; the untuned baseline comes on top. With ``budget``, the most that begin, by default
    as many as the budget holds if each ends at its first evaluation."""
    budget: Annotated[Annotated[float, Field(ge=1.0)] | None, Means()] = None
    """What the tuned trials may take together, in full trainings: a stopped trial counts with the share of its steps.
    Null sets no such limit."""
    max_hours: Annotated[Annotated[float, Field(gt=0.0)] | None, Means()] = None
    """Ends the search after so many hours, counted anew with every ``--resume``."""
    max_concurrent: Annotated[Positive | None, Means()] = None
    """Trials that run at a time; null runs as many as the cluster has room for."""
    sampler: SamplerName = "curve"
    """How params are chosen. With several metrics to optimise: ``tpe``, also by default."""
    scheduler: AnyScheduler = Forecast()
    """Which trials are stopped early. With several metrics to optimise: any but ``forecast``, by default ``asha``."""
    resources: Annotated[Resources, Means()] = Resources()
    """What a trial gets of the cluster."""
    keep_checkpoints: Annotated[Positive, Means()] = 3
    """Number of trials, the best of the search, whose checkpoints stay."""
    confirm: Annotated[Confirm, Means()] = Confirm()
    """Whether the best trials are trained again with other seeds."""
    max_storage_gb: Annotated[Annotated[float, Field(gt=0.0)] | None, Means()] = None
    """What the search may take of its storage, in 1e9 bytes; null is everything."""
    max_failures: Annotated[int, Field(ge=0), Means()] = 2
    """How often a trial is started again after a fault of the machine."""
    wait_for_nodes_minutes: Annotated[float, Field(ge=0.0), Means()] = 15.0
    """How long a search waits for a cluster without room for a trial to add nodes. A Ray that ftae starts on this
    machine adds none, and is not waited for."""
    storage: Annotated[str, Means()] = "searches"
    """The folder of all searches, the same on all nodes, or the URL of an object store (``s3://bucket/prefix``)."""
    notify: Annotated[tuple[str, ...], Means()] = ()
    """Environment variables of the driver that hold the URLs of webhooks: told of the first trial that beats the
    baseline, and of the end; see Notifications."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sampler."""
    warm_start: tuple[str, ...] = ()
    """Earlier searches with the same objective, by name below ``storage``, by folder or by URL. The first trials
    follow what did best there; see Warm start."""

    @field_validator("notify", mode="before")
    @classmethod
    def _are_variables(cls, names: Any) -> Any:
        return check_variables(names)

    @field_validator("warm_start")
    @classmethod
    def _are_searches(cls, searches: tuple[str, ...]) -> tuple[str, ...]:
        """A name is that of a folder below the storage; what has a slash is a place of its own."""
        wrong = [
            ((i,), f"{quoted(search)} {reason}")
            for i, search in enumerate(searches)
            if (reason := search_name_problem(search.rstrip("/").rpartition("/")[2])) is not None
        ]
        wrong += [((i,), f"names {quoted(one)} twice") for i, one in enumerate(searches) if one in searches[:i]]
        if wrong:
            raise refusal(wrong)
        return searches

    @field_validator("confirm")
    @classmethod
    def _finalists_are_kept(cls, confirm: Confirm, info: ValidationInfo) -> Confirm:
        kept = info.data.get("keep_checkpoints")
        if confirm.seeds and kept is not None and confirm.top > kept:
            raise refusal(
                [(("top",), f"must be at most keep_checkpoints ({kept}): other models are deleted, got {confirm.top}")]
            )
        return confirm

    @property
    def in_object_store(self) -> bool:
        """Whether the storage is an object store."""
        return "://" in self.storage

    @property
    def most_at_a_time(self) -> int:
        """The most trials that may run at a time: each keeps a full training of the budget for itself."""
        limits = (self.num_trials, self.max_concurrent, self.budget)
        return int(min(limit for limit in limits if limit is not None))

    def with_absolute_paths(self) -> "SearchSettings":
        """The same settings with absolute paths; names of searches and URLs of object stores stay."""
        warm_start = tuple(_absolute_search(search) for search in self.warm_start)
        storage = self.storage if self.in_object_store else absolute(self.storage)
        return self.model_copy(update={"storage": storage, "warm_start": warm_start})


def _absolute_search(search: str) -> str:
    """A name and a URL stay as they are."""
    return absolute(search) if "/" in search and "://" not in search else search


_DATABASES = ("postgresql", "mysql", "mssql")
_TRACKING_URI = re.compile(rf"https?://[^/]|sqlite:///.|({'|'.join(_DATABASES)})(\+\w+)?://.")


class Tracking(Spec):
    """Where MLflow is."""

    uri: str | None = None
    """The address of the server or database; null is an embedded SQLite store in the storage folder."""
    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """The name of the experiment; null takes the name of the search."""

    @field_validator("uri")
    @classmethod
    def _is_served(cls, uri: str | None) -> str | None:
        if uri is not None and not _TRACKING_URI.match(uri):
            forms = f"http(s)://HOST or sqlite:///FILE (or a database's, {', '.join(_DATABASES)})"
            raise ValueError(f"must be {forms}, got {quoted(uri)}")
        return uri

    def with_absolute_paths(self) -> "Tracking":
        """The same settings with an absolute path where the store is a local file."""
        path = (self.uri or "").removeprefix("sqlite:///")
        if path == (self.uri or "") or Path(path).is_absolute():
            return self
        return self.model_copy(update={"uri": f"sqlite:///{Path(path).absolute()}"})
