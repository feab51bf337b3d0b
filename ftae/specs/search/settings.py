"""How to search and where results go: trials, sampler, scheduler, resources, storage, tracking."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Positive, Spec
from ftae.specs.reading.problems import quoted, refusal
from ftae.specs.search.distributions import Choices, Distribution, Range


class Resources(Spec):
    """What one worker process gets, and how many of them train a trial, each on its share of every batch.

    A fraction of a GPU shares it (memory is not isolated). ``gpus_per_trial: N`` is short for
    ``{gpus: 1, workers: N}``.
    """

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    workers: Positive = 1
    gpus_per_trial: Annotated[Positive | None, Field(exclude=True)] = None

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, given: Any) -> Any:
        """``gpus_per_trial`` written out; a wrong value stays where it is, to be named there."""
        number = given.get("gpus_per_trial") if isinstance(given, dict) else None
        if type(number) is not int or number < 1:
            return given
        if beside := [key for key in ("gpus", "workers") if key in given]:
            rule = f"stands for gpus: 1 and workers: {number}, leave out {' and '.join(beside)}"
            raise refusal([(("gpus_per_trial",), rule)])
        return {**given, "gpus": 1, "workers": number, "gpus_per_trial": None}

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_number(cls, left: int | None) -> int | None:
        if left is not None:  # text or a boolean, which pydantic would take for a number
            raise ValueError("must be a whole number")
        return left

    @field_validator("gpus")
    @classmethod
    def _at_most_one(cls, gpus: float) -> float:
        if gpus > 1:
            raise ValueError(
                f"must be at most 1, the share of one process, got {gpus:g}; "
                "gpus_per_trial (or workers) trains a trial on several"
            )
        return gpus

    @field_validator("workers")
    @classmethod
    def _share_no_gpu(cls, workers: int, info: ValidationInfo) -> int:
        gpus = info.data.get("gpus", 0.0)
        if workers > 1 and 0.0 < gpus < 1.0:
            raise ValueError(f"must be 1 where a trial gets a fraction of a GPU (gpus: {gpus:g}), got {workers}")
        return workers

    def unshareable(self, batch_size: int, searched: Distribution | None) -> list[str]:
        """Why the workers cannot take equal shares of every batch; nothing where they can.

        ``searched``: what the sampler may choose for ``batch_size``, if it may.
        """
        workers = self.workers
        if isinstance(searched, Range):
            even = searched.low % workers == 0 and (searched.step or 1) % workers == 0
            span = f"{quoted(searched.low)} .. {quoted(searched.high)}, step {quoted(searched.step or 1)}"
            rule = f"{workers} workers cannot share every batch_size of {span} evenly, use multiples of {workers}"
            return [] if even else [rule]
        sizes = searched.choices if isinstance(searched, Choices) else (batch_size,)
        return [f"{workers} workers cannot share batch_size {size} evenly" for size in sizes if size % workers]


class SchedulerSpec(Spec):
    """Decides which trials end early. A scheduler overrides what differs: here every trial runs to its full budget."""

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


class Fifo(SchedulerSpec):
    """Every trial runs to its full budget."""

    name: Literal["fifo"]


class Asha(SchedulerSpec):
    """Asynchronous successive halving (Li et al., MLSys 2020), the stopping variant.

    At each rung only the best ``1/reduction_factor`` of the trials so far go on, by the objective alone (of several
    metrics, the first): constraints are held against trials that ran to their end. The first rung is
    at ``grace_fraction`` of the budget: fine-tuning curves cross, so it defaults to a third.
    """

    name: Literal["asha"]
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    grace_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.33

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
        if self.rung_steps(run):
            return []
        return [
            "no trial can be stopped early: no evaluation lies between search.scheduler.grace_fraction "
            f"({self.grace_fraction:g}) of the budget and its end; lower it, or raise finetune.num_evals"
        ]


AnyScheduler = Annotated[Asha | Fifo, Field(discriminator="name")]

SamplerName = Literal["tpe", "random"]


class SearchSettings(Spec):
    """How to search. ``num_trials`` counts tuned trials; the untuned baseline comes on top.

    ``max_concurrent``: None runs as many trials as the cluster has room for. ``keep_checkpoints``:
    the best K of the whole search stay on disk. ``max_storage_gb``: what a search may take of its
    storage, in 1e9 bytes. ``max_failures``: how often a trial is started again after a fault of the
    machine. ``max_hours`` counts anew with every ``--resume``. ``wait_for_nodes_minutes``: how long a search waits for
    a cluster that has no room for a trial to add nodes; a Ray of this machine's own adds none, and is not waited for.
    ``storage``: the folder searches live in, on all nodes the same, or an object store's URL (``s3://bucket/prefix``).
    """

    num_trials: Positive = 16
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    max_concurrent: Positive | None = None
    sampler: SamplerName = "tpe"
    scheduler: AnyScheduler = Asha(name="asha")
    resources: Resources = Resources()
    keep_checkpoints: Positive = 3
    max_storage_gb: Annotated[float, Field(gt=0.0)] | None = None
    max_failures: Annotated[int, Field(ge=0)] = 2
    wait_for_nodes_minutes: Annotated[float, Field(ge=0.0)] = 15.0
    storage: str = "searches"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def in_object_store(self) -> bool:
        return "://" in self.storage

    def with_absolute_paths(self) -> "SearchSettings":
        """The same with an absolute path as storage, unless it is the URL of an object store."""
        if self.in_object_store:
            return self
        return self.model_copy(update={"storage": str(Path(self.storage).expanduser().absolute())})


_SERVERS = ("postgresql", "mysql", "mssql")

_SERVED = re.compile(rf"https?://[^/]|sqlite:///.|({'|'.join(_SERVERS)})(\+\w+)?://.")


class Tracking(Spec):
    """Where MLflow is. ``uri`` None: an embedded SQLite store in the storage folder.

    ``experiment`` None: the name of the search.
    """

    uri: str | None = None
    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = None

    @field_validator("uri")
    @classmethod
    def _is_served(cls, uri: str | None) -> str | None:
        if uri is not None and not _SERVED.match(uri):
            raise ValueError(
                f"must be http(s)://HOST or sqlite:///FILE (or a database's, {', '.join(_SERVERS)}), got {quoted(uri)}"
            )
        return uri

    def with_absolute_paths(self) -> "Tracking":
        """The same with an absolute path where the store is a local file."""
        path = (self.uri or "").removeprefix("sqlite:///")
        if path == (self.uri or "") or Path(path).is_absolute():
            return self
        return self.model_copy(update={"uri": f"sqlite:///{Path(path).absolute()}"})
