"""A search: one fine-tuning run, which of its leaves to vary, what to optimise, and with what means."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.networks import not_shared
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.names import search_name_problem
from ftae.specs.reading.overrides import apply_overrides, value_at
from ftae.specs.reading.problems import matching, quoted, refusal
from ftae.specs.search.conditions import drop_inactive, has_effect
from ftae.specs.search.distributions import Choices
from ftae.specs.search.objective import AnyObjective, check_measured
from ftae.specs.search.settings import SearchSettings, Tracking
from ftae.specs.search.space import FileDistribution, checked_space, typed_space

_PLAIN = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]*", "of letters, digits, dot, dash and underscore, a letter or digit first"
)

Name = Annotated[str, Field(max_length=80), _PLAIN]


class ProductionSpec(Spec):
    """One training run: what ``ftae export`` writes and ``ftae train`` runs.

    ``from_search`` says where it came from: the name of the search and the number of the trial.
    """

    name: Annotated[str, Field(max_length=100), _PLAIN]  # of an export: that of the search and -trial-N
    finetune: FinetuneSpec
    tracking: Tracking = Tracking()
    from_search: dict[str, JsonValue] | None = None

    def with_absolute_paths(self) -> "ProductionSpec":
        """The same run with absolute paths."""
        return self.model_copy(
            update={"finetune": self.finetune.with_absolute_paths(), "tracking": self.tracking.with_absolute_paths()}
        )


_TRUSTED = object()  # no key of a file, which is the context otherwise


def _free(name: str) -> str:
    if (reason := search_name_problem(name)) is not None:
        raise ValueError(f"{quoted(name)} {reason}")
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

    def with_absolute_paths(self) -> "SearchSpec":
        """The same search with absolute paths, so that a worker can run it from any folder."""
        space = dict(self.search_space)
        for path, distribution in self.search_space.items():
            if isinstance(distribution, Choices):
                space[path] = Choices(choices=tuple(self._located(path, choice) for choice in distribution.choices))
        with_absolute_paths = {
            name: getattr(self, name).with_absolute_paths() for name in ("finetune", "search", "tracking")
        }
        return self.model_copy(update={**with_absolute_paths, "search_space": space})

    def _located(self, path: str, choice: Any) -> Any:
        if not isinstance(choice, str):
            return choice
        values = drop_inactive(self.finetune, {path: choice}) | {path: choice}  # also where it has no effect by itself
        return value_at(apply_overrides(self.finetune, values).with_absolute_paths(), path)

    def rung_steps(self) -> list[int]:
        """The steps at which trials are compared; the scheduler may have none."""
        return self.search.scheduler.rung_steps(self.finetune)

    def file_params(self) -> dict[str, Any]:
        """The file's own value of every searched leaf that has an effect: the params of the first tuned trial."""
        run = self.finetune
        return {path: value_at(run, path) for path in self.search_space if has_effect(run, path, {})}

    def trial_spec(self, params: dict[str, Any]) -> FinetuneSpec:
        """The complete run of a trial with these params: what a worker trains and an export writes down."""
        return self._with({**params, **self.machine()})

    def _with(self, values: dict[str, Any]) -> FinetuneSpec:
        return apply_overrides(self.finetune, drop_inactive(self.finetune, values))

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
