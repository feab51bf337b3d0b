"""The plan of a search or a training run: what ``ftae validate`` prints before anything is spent."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftae.errors import SpecError
from ftae.specs.data import ImageFolder
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.lint import warnings
from ftae.specs.search import ProductionSpec, SearchSpec


def plan(spec: SearchSpec | ProductionSpec) -> list[str]:
    """The lines of the plan. Needs neither Ray nor torch; with torch it also builds the model.

    Raises:
        FtaeError: a folder the file names is missing, or the model cannot be built as described.
    """
    run = spec.finetune
    _check_paths(run)
    lines = [f"{spec.name}: a valid {'search' if isinstance(spec, SearchSpec) else 'training run'}"]
    if isinstance(spec, SearchSpec):
        lines += _search_lines(spec)
    lines += _run_lines(run)
    checkpoint_bytes = None
    if find_spec("torch") is None:
        lines.append("model        not checked: torch is not installed here")
    else:
        model_lines, checkpoint_bytes = _model_lines(spec)
        lines += model_lines
    if isinstance(spec, SearchSpec):
        lines += _storage_lines(spec, checkpoint_bytes)
    return lines + [f"warning: {text}" for text in warnings(spec)]


def _search_lines(spec: SearchSpec) -> list[str]:
    settings, budget = spec.search, spec.finetune.max_steps
    rungs = spec.rung_steps()
    kept = f"best 1/{settings.scheduler.reduction_factor:g} go on" if settings.scheduler.name == "asha" else ""
    hours = f", at most {settings.max_hours:g} h" if settings.max_hours else ""
    lines = [
        f"objective    {spec.objective.direction} {spec.objective.metric}",
        f"trials       {settings.num_trials} tuned + the untuned baseline, {settings.sampler}{hours}; "
        f"each {settings.resources.cpus:g} CPUs, {settings.resources.gpus:g} GPUs",
        f"rungs        steps {', '.join(map(str, rungs))} of {budget} ({kept})"
        if rungs
        else f"rungs        none: every trial runs {budget} steps",
    ]
    return lines + [
        f"  {path}: {_describe(d.model_dump(exclude_defaults=True))}" for path, d in spec.search_space.items()
    ]


def _describe(distribution: dict[str, Any]) -> str:
    if "choices" in distribution:
        return f"one of {', '.join(map(str, distribution['choices']))}"
    kind = "log" if distribution.get("log") else "linear"
    step = f", step {distribution['step']:g}" if distribution.get("step") else ""
    return f"{distribution['low']:g} .. {distribution['high']:g}, {kind}{step}"


def _run_lines(run: FinetuneSpec) -> list[str]:
    images = run.batch_size * run.grad_accumulation
    return [
        f"training     {run.max_steps} steps of {images} images, evaluated at {', '.join(map(str, run.eval_steps()))}",
        f"losses       {', '.join(f'{weight:g} {term}' for term, weight in run.losses.weights().items())}",
    ]


def _model_lines(spec: SearchSpec | ProductionSpec) -> tuple[list[str], int]:
    from ftae.engine.build import check_search, summarize

    run = spec.finetune
    num_classes = _num_classes(run)
    summary = check_search(spec, num_classes) if isinstance(spec, SearchSpec) else summarize(run, num_classes)
    share = summary.num_trainable / summary.num_parameters
    lines = [
        f"model        {run.model.family}, {summary.num_trainable:,} of {summary.num_parameters:,} parameters "
        f"trainable ({share:.0%}) in {sum(s.trainable for s in summary.stages)} of {len(summary.stages)} stages"
    ]
    for i, stage in enumerate(summary.stages):
        state = "trained" if stage.trainable else "frozen"
        lines.append(f"  {i:2d} {stage.name:<24} {stage.group:<10} {stage.num_parameters:>12,}  {state}")
    if summary.kl_summed_weight is not None:
        lines.append(
            f"kl           {run.losses.kl:g} per element, {summary.kl_summed_weight:g} in summed terms (as LDM has it)"
        )
    return lines, summary.checkpoint_bytes


def _num_classes(run: FinetuneSpec) -> int | None:
    from ftae.engine.sources import list_images

    if run.data.source == "digits":
        return len(run.data.classes)
    if isinstance(run.data, ImageFolder):
        return len(list_images(Path(run.data.train).expanduser()).class_names or ()) or None
    return None


def _storage_lines(spec: SearchSpec, checkpoint_bytes: int | None) -> list[str]:
    storage = Path(spec.search.storage).expanduser().absolute()
    kept = f"checkpoints  the best {spec.search.keep_checkpoints} of the search, and those of running trials"
    if checkpoint_bytes is not None:
        total = checkpoint_bytes * spec.search.keep_checkpoints
        kept += f": about {_size(total)} + {_size(checkpoint_bytes)} a running trial"
    uri = spec.tracking.uri or f"sqlite:///{storage / 'mlflow.db'}"
    return [
        kept,
        f"storage      {storage / spec.name}",
        f"tracking     {uri}, experiment {spec.tracking.experiment or spec.name}",
    ]


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _check_paths(run: FinetuneSpec) -> None:
    if not isinstance(run.data, ImageFolder):
        return
    folders = {"data.train": run.data.train} | ({"data.val": run.data.val} if isinstance(run.data.val, str) else {})
    missing = [
        f"finetune.{leaf}: {path} is not a folder"
        for leaf, path in folders.items()
        if not Path(path).expanduser().is_dir()
    ]
    if missing:
        raise SpecError(missing)
