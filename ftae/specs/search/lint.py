"""Doubts about a valid file: settings without effect, and folders and variables that this machine lacks."""

from collections.abc import Iterator
from pathlib import Path

from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.metrics import METRICS, metric_facts
from ftae.specs.finetune.models import CustomModel
from ftae.specs.finetune.needs import Enables, Need
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.folders import Archive, Shards
from ftae.specs.reading.overrides import value_at
from ftae.specs.reading.problems import Problem, dotted, quoted
from ftae.specs.reading.schema import KeepsValidation, roles_below, roles_in
from ftae.specs.search.distributions import CONDITIONS, Space, count_up_to, covers, default_of
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.specs.search.webhooks import webhook_fault

_SIDE = {"minimize": "lower", "maximize": "higher"}


def warnings(spec: SearchSpec | ProductionSpec) -> list[str]:
    """One sentence for each doubt; an empty list where there is none."""
    run, space = spec.finetune, spec.search_space if isinstance(spec, SearchSpec) else {}
    found = [*_without_condition(run, space), *_unused_labels(run, space), *_unmeasured(run), *_untrained(run, space)]
    return [*found, *_about_the_search(spec)] if isinstance(spec, SearchSpec) else found


def _without_condition(run: FinetuneSpec, space: Space) -> Iterator[str]:
    """Settings that no value of their governor gives an effect."""
    for setting, condition in CONDITIONS.items():
        governor = condition.governor
        values = space[governor].corners() if governor in space else (value_at(run, governor),)
        if any(condition.holds(value) for value in values):
            continue
        reason = f"{governor} is {' or '.join(quoted(value).removesuffix('.0') for value in values)}"
        if searched := [path for path in space if covers(setting, path)]:
            yield from (f"{path} is searched without effect: {reason} in every trial" for path in searched)
        elif (value := value_at(run, setting)) != (default := default_of(run, setting)):
            given = isinstance(value, dict) and ", ".join(name for name in value if value[name] != default[name])
            yield f"{setting}{f' ({given})' if given else ''} has no effect: {reason}"


def _unused_labels(run: FinetuneSpec, space: Space) -> Iterator[str]:
    # Where the weight may be 0, accuracy cannot be measured in every trial.
    may_be_off = space["losses.ce"].contains(0.0) if "losses.ce" in space else run.losses.ce == 0.0
    if not may_be_off and "accuracy" not in run.metrics:
        yield "losses.ce trains a classification head that no metric measures: add accuracy to finetune.metrics"
    if run.losses.ce == 0.0 and run.data.labelled_fraction < 1.0 and "losses.ce" not in space:
        yield "data.labelled_fraction has no effect: no loss uses labels (losses.ce is 0)"


def _unmeasured(run: FinetuneSpec) -> Iterator[str]:
    """Images that do not get into training batches, or that no metric measures."""
    replay = run.data.replay
    if replay is not None and replay.share > 0.0 and replay.rows(run.batch_size) == 0:
        yield f"data.replay.share has no effect: {replay.share:g} of a batch of {run.batch_size} is no image"
    if replay is not None and not run.source_metrics():
        yield "what the model still knows of data.replay is not measured: no metric of finetune.metrics can be"
    if run.data.anomaly_classes and "auroc" not in run.metrics:
        yield "no metric measures the images of data.anomaly_classes: add auroc to finetune.metrics"


def _untrained(run: FinetuneSpec, space: Space) -> Iterator[str]:
    """Parts of the model that stay as they are, and networks that nothing uses."""
    if run.model.gradient_codebook and run.losses.codebook == 0.0 and "losses.codebook" not in space:
        yield "the codes stay as they are: they are trained by gradient, and losses.codebook is 0"
    for section, role in roles_in(FinetuneSpec, Enables).items():
        users = _users_of(role.need)
        if getattr(run, section) is not None and not any(
            f"losses.{name}" in space or name in (*run.losses.weights(), *run.metrics) for name in users
        ):
            yield f"{section} has no effect: none of {', '.join(users)} is a loss or metric of the run"
    freezes = run.freeze or run.freeze_depth or {"freeze", "freeze_depth"} & space.keys()
    may_load_itself = isinstance(run.model, CustomModel)
    if freezes and run.model.pretrained is None and not may_load_itself:
        yield "frozen stages keep random weights: model.pretrained is null"


def _users_of(need: Need) -> list[str]:
    """The loss terms and metrics with a need."""
    found = [name for name, needs in Losses.TERMS.items() if need in needs]
    return list(dict.fromkeys([*found, *(name for name, metric in METRICS.items() if need in metric.needs)]))


def _about_the_search(spec: SearchSpec) -> Iterator[str]:
    settings = spec.search
    comparable = roles_below(FinetuneSpec, KeepsValidation)
    for path in spec.search_space:
        if path.startswith("data.") and path not in comparable:
            yield f"{path} is searched, so that trials are not measured on the same images"
    for goal in spec.objective.goals:
        if goal.metric == "val/input_psnr":
            yield "objective.metric val/input_psnr depends on the images alone: it is the same in every trial"
        better = metric_facts(goal.metric).better
        if better not in (None, goal.direction):
            yield f"objective.direction is {goal.direction}, but {goal.metric} is better where it is {_SIDE[better]}"
    wanted = spec.expected_trials()
    size = count_up_to(wanted, spec)
    if 1 < size < wanted:  # with a single one, every leaf was reported as having no effect
        asked = f"search.num_trials ({wanted})"
        if wanted < settings.num_trials:
            asked = f"search.budget ({settings.budget:g}, about {wanted} trials)"
        yield (
            f"{asked} exceeds the {size} configurations of the search space: "
            "the search ends when all of them have been tried"
        )
    if settings.max_concurrent is not None and settings.max_concurrent > settings.most_at_a_time:
        limit = f"search.num_trials is {settings.num_trials}"
        if settings.most_at_a_time < settings.num_trials:
            limit = f"search.budget is {settings.budget:g}, and each running trial keeps a full training of it"
        yield f"search.max_concurrent ({settings.max_concurrent}) is never reached: {limit}"
    if settings.budget is not None and settings.budget >= settings.num_trials:
        yield f"search.budget ({settings.budget:g}) is never reached: search.num_trials is {settings.num_trials}"
    if settings.resources.gpus and spec.finetune.device == "cpu":
        yield "search.resources reserves GPUs that no trial uses: finetune.device is cpu"
    for variable in settings.notify:
        if fault := webhook_fault(variable):
            yield f"search.notify posts nothing from this machine: {fault}; on a cluster, the head node needs it"
    yield from settings.scheduler.warnings(spec.finetune)


def missing_folders(spec: SearchSpec | ProductionSpec) -> list[Problem]:
    """The folders and archives of images that do not exist, each with its place in the file."""
    data = spec.finetune.data
    found: list[Problem] = []
    for leaf, name in data.image_folders().items():
        owner = data.replay if leaf.startswith("data.replay.") and data.replay is not None else data
        if isinstance(owner, Shards):  # patterns and URLs
            continue
        path = Path(name).expanduser()
        if fault := _file_fault(path) if owner.of_floats else _path_fault(path, isinstance(owner, Archive)):
            found.append((("finetune", *leaf.split(".")), f"{dotted((name,))} {fault}"))
    return found


def _file_fault(path: Path) -> str | None:
    return None if path.is_file() else "is not a file"


def _path_fault(path: Path, may_be_file: bool) -> str | None:
    if path.is_dir() or (may_be_file and path.is_file()):
        return None
    if may_be_file:
        return "is not an archive: there is no such file"
    return "is not a folder; source: archive reads the images in an archive" if path.is_file() else "is not a folder"
