"""A search: one fine-tuning run, which of its leaves to vary, what to optimise, and with what means."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from ftae.specs.base import Positive, Spec
from ftae.specs.conditions import has_effect, settled
from ftae.specs.discriminator import not_shared
from ftae.specs.distributions import Choices
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.metrics import METRICS
from ftae.specs.names import search_name_problem
from ftae.specs.objective import AnyObjective, check_measured
from ftae.specs.overrides import apply_overrides, value_at
from ftae.specs.problems import matching, refusal, shown
from ftae.specs.resources import Resources
from ftae.specs.space import FileDistribution, checked_space, typed_space

_PLAIN = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]*", "of letters, digits, dot, dash and underscore, a letter or digit first"
)
Name = Annotated[str, Field(max_length=80), _PLAIN]


class Fifo(Spec):
    """Every trial runs to its full budget."""

    name: Literal["fifo"]


class Asha(Spec):
    """Asynchronous successive halving (Li et al., MLSys 2020), the stopping variant.

    At each rung only the best ``1/reduction_factor`` of the trials so far go on, by the objective alone (of several
    metrics, the first): constraints are held against trials that ran to their end. The first rung is
    at ``grace_fraction`` of the budget: fine-tuning curves cross, so it defaults to a third.
    """

    name: Literal["asha"]
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    grace_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.33


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
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Annotated[Asha | Fifo, Field(discriminator="name")] = Asha(name="asha")
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

    def located(self) -> "SearchSettings":
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
                f"must be http(s)://HOST or sqlite:///FILE (or a database's, {', '.join(_SERVERS)}), got {shown(uri)}"
            )
        return uri

    def located(self) -> "Tracking":
        """The same with an absolute path where the store is a local file."""
        path = (self.uri or "").removeprefix("sqlite:///")
        if path == (self.uri or "") or Path(path).is_absolute():
            return self
        return self.model_copy(update={"uri": f"sqlite:///{Path(path).absolute()}"})


class ProductionSpec(Spec):
    """One training run: what ``ftae export`` writes and ``ftae train`` runs.

    ``from_search`` says where it came from: the name of the search and the number of the trial.
    """

    name: Annotated[str, Field(max_length=100), _PLAIN]  # of an export: that of the search and -trial-N
    finetune: FinetuneSpec
    tracking: Tracking = Tracking()
    from_search: dict[str, JsonValue] | None = None

    def located(self) -> "ProductionSpec":
        """The same run with absolute paths."""
        return self.model_copy(update={"finetune": self.finetune.located(), "tracking": self.tracking.located()})


_TRUSTED = object()  # no key of a file, which is the context otherwise


def _free(name: str) -> str:
    if (reason := search_name_problem(name)) is not None:
        raise ValueError(f"{shown(name)} {reason}")
    return name


class SearchSpec(Spec):
    """A whole search file. ``finetune`` is also the first configuration tried."""

    name: Annotated[Name, AfterValidator(_free)]
    finetune: FinetuneSpec
    search_space: Annotated[dict[str, FileDistribution], Field(min_length=1)]
    objective: AnyObjective
    search: SearchSettings = SearchSettings()
    tracking: Annotated[Tracking, Field(validate_default=True)] = Tracking()

    @field_validator("search_space", mode="wrap")
    @classmethod
    def _fits_finetune(cls, raw: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if not isinstance(raw, dict) or not raw:
            return handler(raw)
        if (info.context or {}).get(_TRUSTED):
            return typed_space(raw, info.data["finetune"])
        return checked_space(raw, info.data.get("finetune"), (info.context or {}).get("finetune"))

    @field_validator("objective")
    @classmethod
    def _is_measured(cls, objective: AnyObjective, info: ValidationInfo) -> AnyObjective:
        run, written = info.data.get("finetune"), (info.context or {}).get("finetune")
        check_measured(objective, _measured(run, written))
        return objective

    @field_validator("search")
    @classmethod
    def _batches_can_be_shared(cls, settings: SearchSettings, info: ValidationInfo) -> SearchSettings:
        run, space = info.data.get("finetune"), info.data.get("search_space") or {}
        if run is None:
            return settings
        reasons = settings.resources.unshareable(run.batch_size, space.get("batch_size"))
        adversarial = space.get("losses.adversarial")
        weights = (run.losses.adversarial,) if adversarial is None else adversarial.corners()
        if settings.resources.workers > 1 and max(weights) > 0.0:
            reasons.append(not_shared(settings.resources.workers))
        if reasons:
            raise refusal((("resources", "workers"), reason) for reason in reasons)
        return settings

    @field_validator("tracking")
    @classmethod
    def _has_a_place(cls, tracking: Tracking, info: ValidationInfo) -> Tracking:
        settings = info.data.get("search")
        if tracking.uri is None and settings is not None and settings.in_object_store:
            raise ValueError(
                f"needs a uri: the embedded store is a file beside the search, which search.storage "
                f"({settings.storage}) has no place for"
            )
        return tracking

    @classmethod
    def trusted(cls, dumped: Mapping[str, Any]) -> "SearchSpec":
        """A search as another process of the same search dumped it: its space is not checked again."""
        return cls.model_validate(dumped, context={_TRUSTED: True})

    def located(self) -> "SearchSpec":
        """The same search with absolute paths, so that a worker can run it from any folder."""
        space = dict(self.search_space)
        for path, distribution in self.search_space.items():
            if isinstance(distribution, Choices):
                space[path] = Choices(choices=tuple(self._located(path, choice) for choice in distribution.choices))
        located = {name: getattr(self, name).located() for name in ("finetune", "search", "tracking")}
        return self.model_copy(update={**located, "search_space": space})

    def _located(self, path: str, choice: Any) -> Any:
        if not isinstance(choice, str):
            return choice
        values = settled(self.finetune, {path: choice}) | {path: choice}  # also where it has no effect by itself
        return value_at(apply_overrides(self.finetune, values).located(), path)

    def rung_steps(self) -> list[int]:
        """The steps at which trials are compared; none without ASHA, or where none lies before the end.

        The first is the first evaluation at or behind ``grace_fraction`` of the budget.
        """
        scheduler, budget = self.search.scheduler, self.finetune.max_steps
        if isinstance(scheduler, Fifo):
            return []
        grace = round(scheduler.grace_fraction * budget, 6)  # 0.55 * 100 is a little more than 55
        step = next(s for s in self.finetune.eval_steps() if s >= grace)
        rungs = []
        while step < budget:
            rungs.append(step)
            step = max(step + 1, round(step * scheduler.reduction_factor))
        return rungs

    def file_params(self) -> dict[str, Any]:
        """The file's own value of every searched leaf that has an effect: the params of the first tuned trial."""
        run = self.finetune
        return {path: value_at(run, path) for path in self.search_space if has_effect(run, path, {})}

    def trial_spec(self, params: dict[str, Any]) -> FinetuneSpec:
        """The complete run of a trial with these params: what a worker trains and an export writes down."""
        return self._with({**params, **self.machine()})

    def _with(self, values: dict[str, Any]) -> FinetuneSpec:
        return apply_overrides(self.finetune, settled(self.finetune, values))

    def machine(self) -> dict[str, Any]:
        """The leaves of finetune that the resources decide: the last digits of a result depend on them."""
        resources, device = self.search.resources, self.finetune.device
        threads = self.finetune.num_threads or max(1, int(resources.cpus))
        return {"num_threads": threads, "device": ("cuda" if resources.gpus else "cpu") if device == "auto" else device}


def _measured(run: FinetuneSpec | None, written: Any) -> list[str]:
    """What the run reports; where neither it nor what the file says of it tells, all that may be."""
    if run is not None:
        return list(run.measured())
    data = written.get("data") if isinstance(written, dict) else None
    sets = ("val", "val_source") if isinstance(data, dict) and data.get("replay") else ("val",)
    return [f"{images}/{name}" for images in sets for name in _metrics(written)]


def _metrics(written: Any) -> Iterable[str]:
    default = FinetuneSpec.model_fields["metrics"].default
    names: Any = written.get("metrics", default) if isinstance(written, dict) else None
    if names and isinstance(names, (list, tuple)) and all(name in list(METRICS) for name in names):
        return names
    return METRICS
