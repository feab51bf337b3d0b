"""The two kinds of files: a search (a run, the leaves to vary, the objective, the means) and a production run."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from ftae.specs.finetune.discriminator import not_shared
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.base import Spec
from ftae.specs.reading.names import search_name_problem
from ftae.specs.reading.overrides import apply_overrides, value_at
from ftae.specs.reading.problems import matching, quoted, refusal
from ftae.specs.search.distributions import Choices, drop_inactive, has_effect
from ftae.specs.search.objective import AnyObjective, check_measured
from ftae.specs.search.settings import Asha, SearchSettings, Tracking
from ftae.specs.search.space import FileDistribution, checked_space, typed_space

_PLAIN = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]*", "of letters, digits, dot, dash and underscore, a letter or digit first"
)

Name = Annotated[str, Field(max_length=80), _PLAIN]


class ProductionSpec(Spec):
    """One training run, which ``ftae export`` writes and ``ftae train`` runs."""

    name: Annotated[str, Field(max_length=100), _PLAIN]  # of an export: the name of the search and -trial-N
    """The name of the run."""
    finetune: FinetuneSpec
    """The run itself."""
    tracking: Tracking = Tracking()
    """Where MLflow is."""
    from_search: dict[str, JsonValue] | None = None
    """Where the run comes from: the name of the search and the number of the trial."""

    def with_absolute_paths(self) -> "ProductionSpec":
        """The same run with absolute paths."""
        return self.model_copy(
            update={"finetune": self.finetune.with_absolute_paths(), "tracking": self.tracking.with_absolute_paths()}
        )


_TRUSTED = object()  # a key of the validation context, which holds the data of the file otherwise


def _is_free(name: str) -> str:
    if (reason := search_name_problem(name)) is not None:
        raise ValueError(f"{quoted(name)} {reason}")
    return name


class SearchSpec(Spec):
    """A whole search file."""

    name: Annotated[Name, AfterValidator(_is_free)]
    """The name of the search, which is also that of its folder."""
    finetune: FinetuneSpec
    """The run to tune, which is also the first configuration tried."""
    search_space: Annotated[dict[str, FileDistribution], Field(min_length=1)]
    """The leaves of ``finetune`` to vary, by dotted path, with their values."""
    objective: AnyObjective
    """What to optimise."""
    search: Annotated[SearchSettings, Field(validate_default=True)] = SearchSettings()
    """How to search."""
    tracking: Annotated[Tracking, Field(validate_default=True)] = Tracking()
    """Where MLflow is."""

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

    @field_validator("search")
    @classmethod
    def _suits_the_objective(cls, settings: SearchSettings, info: ValidationInfo) -> SearchSettings:
        """Several metrics need other defaults: the curve model has one value to improve."""
        objective = info.data.get("objective")
        if objective is None or len(objective.goals) == 1:
            return settings
        given = settings.model_fields_set
        wrong = [
            ((key,), f"{name} optimises one metric, and objective has {len(objective.goals)}; use {other}")
            for key, name, chosen, other in (
                ("sampler", "curve", settings.sampler, "tpe or random"),
                ("scheduler", "forecast", settings.scheduler.name, "asha or fifo"),
            )
            if key in given and chosen == name
        ]
        if wrong:
            raise refusal(wrong)
        defaults = {"sampler": "tpe", "scheduler": Asha()}
        return settings.model_copy(update={key: value for key, value in defaults.items() if key not in given})

    @field_validator("search")
    @classmethod
    def _can_start_warm(cls, settings: SearchSettings, info: ValidationInfo) -> SearchSettings:
        """Earlier searches help one sampler, and no search helps itself."""
        if not settings.warm_start:
            return settings
        if settings.sampler != "curve":
            rule = f"has no effect with sampler {settings.sampler}; use sampler curve, or leave it out"
            raise refusal([(("warm_start",), rule)])
        if (name := info.data.get("name")) in settings.warm_start:
            rule = f"{quoted(name)} is this search itself; name earlier ones"
            raise refusal([(("warm_start", settings.warm_start.index(name)), rule)])
        return settings

    @field_validator("search")
    @classmethod
    def _has_a_number_of_trials(cls, settings: SearchSettings, info: ValidationInfo) -> SearchSettings:
        """A budget alone limits a search, so that the number of trials follows from it."""
        run = info.data.get("finetune")
        if run is None or settings.budget is None or "num_trials" in settings.model_fields_set:
            return settings
        return settings.model_copy(update={"num_trials": most_trials(settings.budget, run)})

    @field_validator("tracking")
    @classmethod
    def _has_a_place(cls, tracking: Tracking, info: ValidationInfo) -> Tracking:
        settings = info.data.get("search")
        if tracking.uri is None and settings is not None and settings.in_object_store:
            raise ValueError(
                "needs a uri: the embedded store is a file beside the search, which cannot be in search.storage "
                f"({settings.storage})"
            )
        return tracking

    @classmethod
    def trusted(cls, dumped: Mapping[str, Any]) -> "SearchSpec":
        """The search that another process of the same search dumped; its space is not checked again."""
        return cls.model_validate(dumped, context={_TRUSTED: True})

    def with_absolute_paths(self) -> "SearchSpec":
        """The same search with absolute paths, so that a worker can run it from any folder."""
        space = dict(self.search_space)
        for path, distribution in self.search_space.items():
            if isinstance(distribution, Choices):
                choices = tuple(self._absolute_choice(path, choice) for choice in distribution.choices)
                space[path] = Choices(choices=choices)
        sections = {name: getattr(self, name).with_absolute_paths() for name in ("finetune", "search", "tracking")}
        return self.model_copy(update={**sections, "search_space": space})

    def _absolute_choice(self, path: str, choice: Any) -> Any:
        if not isinstance(choice, str):
            return choice
        # The choice is set even where it has no effect by itself.
        values = drop_inactive(self.finetune, {path: choice}) | {path: choice}
        return value_at(apply_overrides(self.finetune, values).with_absolute_paths(), path)

    def rung_steps(self) -> list[int]:
        """The steps at which trials are compared; the scheduler may have none."""
        return self.search.scheduler.rung_steps(self.finetune)

    def expected_budget(self) -> float:
        """What the tuned trials take, in full trainings, if the scheduler stops as many as it is expected to."""
        full = self._full_trials()
        expected = full + (self.search.num_trials - full) * self._expected_share()
        return expected if self.search.budget is None else min(self.search.budget, expected)

    def expected_trials(self) -> int:
        """The number of tuned trials, which with a budget depends on how many the scheduler stops."""
        if self.search.budget is None:
            return self.search.num_trials
        full = self._full_trials()
        return min(self.search.num_trials, full + round((self.search.budget - full) / self._expected_share()))

    def _full_trials(self) -> int:
        """The number of tuned trials that are never stopped."""
        return int(self.search.scheduler.runs_file_to_the_end)

    def _expected_share(self) -> float:
        """The share of its steps that a trial takes on average."""
        return self.search.scheduler.expected_steps(self.finetune) / self.finetune.max_steps

    def file_params(self) -> dict[str, Any]:
        """The params of the first tuned trial: the file's own value of every searched leaf that has an effect."""
        run = self.finetune
        return {path: value_at(run, path) for path in self.search_space if has_effect(run, path, {})}

    def trial_spec(self, params: dict[str, Any]) -> FinetuneSpec:
        """The complete run of a trial with these params, which a worker trains and an export writes."""
        return self._with({**params, **self.machine()})

    def _with(self, values: dict[str, Any]) -> FinetuneSpec:
        return apply_overrides(self.finetune, drop_inactive(self.finetune, values))

    def machine(self) -> dict[str, Any]:
        """The leaves of finetune that the resources decide; the last digits of a result depend on them."""
        resources, device = self.search.resources, self.finetune.device
        threads = self.finetune.num_threads or max(1, int(resources.cpus))
        return {"num_threads": threads, "device": ("cuda" if resources.gpus else "cpu") if device == "auto" else device}


def most_trials(budget: float, run: FinetuneSpec) -> int:
    """The number of trials that ``budget`` full trainings hold if each ends at its first evaluation."""
    return math.ceil(budget * run.max_steps / run.eval_steps()[0])


def _measured(run: FinetuneSpec | None, written: Any) -> list[str]:
    """The metrics that the run reports; without a valid run those that the data of the file name, or else all."""
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
