"""The plan of a search or a training run, which ``ftae validate`` prints before any time is spent."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ftae.errors import SpecError
from ftae.results.replay import fold
from ftae.results.summary import record_of
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.problems import dotted, quoted
from ftae.specs.search.distributions import Choices, Distribution, conditions_of
from ftae.specs.search.lint import missing_folders, warnings
from ftae.specs.search.resources import Resources
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.storage.journal import FILE_NAME
from ftae.wording import count, duration, full_trainings, size, used_of_budget

if TYPE_CHECKING:
    from ftae.engine.frozen_cache.plan import FrozenCachePlan
    from ftae.engine.sizing import StageSummary


def plan(spec: SearchSpec | ProductionSpec) -> list[str]:
    """The lines of the plan. Needs neither Ray nor torch; with torch, the model is built, too.

    Raises:
        FtaeError: a folder that the file names is missing, its images do not fit the run, the search would write into
            it, or the model cannot be built.
    """
    run = spec.finetune
    if missing := missing_folders(spec):
        raise SpecError([f"{dotted(place)}: {rule}" for place, rule in missing])
    from ftae.engine.data.dataset import check_listed

    about_images = check_listed(run)
    lines = [f"{spec.name}: a valid {'search' if isinstance(spec, SearchSpec) else 'training run'}"]
    if isinstance(spec, SearchSpec):
        lines += _search_lines(spec)
    lines += _run_lines(run)
    lines += [f"images       {line}" for line in about_images]
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
    rungs, rule = spec.rung_steps(), settings.scheduler.description()
    if len(spec.objective.shown_metrics) > 1:  # the other metrics count only at the end
        rule += f", by {spec.objective.first.metric} alone"
    hours = f", at most {settings.max_hours:g} h" if settings.max_hours else ""
    lines = [
        f"objective    {spec.objective}",
        f"trials       {_trials(spec)} tuned + the untuned baseline, {settings.sampler}{hours}; "
        f"each {_resources(settings.resources)}",
        f"budget       {_trainings(spec)}",
        f"stopping     at steps {', '.join(map(str, rungs))} of {budget}: {rule}"
        if rungs
        else f"stopping     never: every trial runs {budget} steps",
    ]
    if settings.confirm.seeds:
        lines.append(
            f"confirmed    {settings.confirm.top} best, with {count(settings.confirm.seeds, 'further seed')} each"
        )
    lines += _warm_start_lines(spec) if settings.warm_start else []
    return lines + [f"  {path}: {_describe(d)}{_where(path, spec)}" for path, d in spec.search_space.items()]


def _warm_start_lines(spec: SearchSpec) -> list[str]:
    """Which earlier trials the search learns from: those in its journal, if it has begun."""
    from ftae.search.curves.earlier_searches import described, warm_start

    spec = spec.with_absolute_paths()
    begun = record_of(spec.name, spec.search.storage)
    facts = begun.facts if begun is not None and begun.trials else warm_start(spec)
    return [f"warm start   {line}" for line in described(facts)]


def _trials(spec: SearchSpec) -> str:
    most, expected = spec.search.num_trials, spec.expected_trials()
    return str(most) if expected == most else f"about {expected} (at most {most})"


def _trainings(spec: SearchSpec) -> str:
    """What the search takes, in full trainings, by its budget or by what its scheduler is expected to stop."""
    budget, expected = spec.search.budget, spec.expected_budget()
    if budget is None:
        about = "" if expected == spec.search.num_trials else "about "
        return f"{about}{full_trainings(expected)}"
    most = f"{full_trainings(budget)}; a stopped trial counts with the share of its steps"
    return most if expected == budget else f"about {used_of_budget(expected)} of at most {most}"


def _where(path: str, spec: SearchSpec) -> str:
    """The conditions, on other searched leaves, under which a trial has this one."""
    conditions = [str(c) for c in conditions_of(path) if c.governor in spec.search_space]
    return f", where {' and '.join(conditions)}" if conditions else ""


def _resources(wanted: Resources) -> str:
    one = f"{wanted.cpus:g} CPUs, {wanted.gpus:g} GPUs"
    return one if wanted.workers == 1 else f"{wanted.workers} workers of {one}"


def _describe(distribution: Distribution) -> str:
    if isinstance(distribution, Choices):
        return f"one of {', '.join(map(str, distribution.choices))}"
    kind = "log" if distribution.log else "linear"
    step = f", step {distribution.step:g}" if distribution.step else ""
    off = f", or off ({quoted(distribution.off).removesuffix('.0')})" if distribution.or_off else ""
    return f"{distribution.low:g} .. {distribution.high:g}, {kind}{step}{off}"


def _run_lines(run: FinetuneSpec) -> list[str]:
    images = run.batch_size * run.grad_accumulation
    return [
        f"training     {run.max_steps} steps of {images} images, evaluated at {', '.join(map(str, run.eval_steps()))}",
        f"losses       {', '.join(f'{weight:g} {term}' for term, weight in run.losses.weights().items())}",
        *_task_lines(run),
    ]


def _task_lines(run: FinetuneSpec) -> list[str]:
    """What the run does beyond the reconstruction of its input."""
    data, lines = run.data, []
    if run.checkpoint_stages is True:
        lines.append("memory       activations of the stages are computed again: checkpoint_stages")
    if data.paired:
        lines.append("pairs        the model gets A and is measured against B")
    if data.unpaired:
        lines.append("domains      the model learns both ways, A to B and B to A; freeze_depth counts in each")
    if run.losses.adversarial > 0.0 and run.is_conditional:
        lines.append("adversarial  the discriminator sees the input of the model beside each image")
    if data.degrade is not None:
        lines.append(f"degraded     the input of the model has {data.degrade}; it is measured against the clean images")
    if data.labelled_fraction < 1.0:
        lines.append(f"labels       {data.labelled_fraction:g} of the training images of each class, all of validation")
    if data.anomaly_classes:
        lines.append(
            f"anomalies    {', '.join(data.anomaly_classes)}: never trained on; auroc says how well they stand out"
        )
    if data.replay is not None:
        rows = data.replay.rows(run.batch_size)
        measured = ", ".join(f"val_source/{name}" for name in run.source_metrics())
        lines.append(f"replay       {rows} of {run.batch_size} images a batch from {data.replay.source}; {measured}")
    return lines


def _model_lines(spec: SearchSpec | ProductionSpec) -> tuple[list[str], int]:
    from ftae.engine.data.dataset import load_dataset
    from ftae.engine.data.sources import normal_class_names
    from ftae.engine.data.stored_parts import decoded_as_needed
    from ftae.engine.sizing import summarize
    from ftae.engine.training.evaluator import check_images
    from ftae.search.sizing import check_search

    run = spec.finetune
    if not run.data.image_folders():  # generated, or part of a package: available at once
        check_images(run, load_dataset(run.data))
    num_classes = len(normal_class_names(run.data) or ()) or None
    summary = check_search(spec, num_classes) if isinstance(spec, SearchSpec) else summarize(run, num_classes)
    lines = _stage_lines("model", run.model.family, summary.stages)
    if run.model.takes_noise:
        lines.append(
            "             frozen from the noise on: the first stages decide pose and layout, the last ones texture"
        )
    if summary.new_stages:
        lines.append(f"new          {', '.join(summary.new_stages)}; the others come from {run.model.pretrained}")
    lines += _kl_lines(spec, summary.num_latents)
    if summary.codebooks:
        codes = " + ".join(map(str, summary.codebooks))
        moved = f"{run.losses.codebook:g} codebook" if summary.gradient_codebooks else "a moving average"
        lines.append(f"codes        {codes}; effective weights: {run.losses.commitment:g} commitment, {moved}")
    lines += _frozen_cache_lines(summary.frozen_cache)
    if needed := decoded_as_needed(run):
        lines.append(f"on demand    the images do not fit into the cache: {needed}")
    if summary.discriminator:
        origin = "new" if run.discriminator.pretrained is None else f"from {run.discriminator.pretrained}"
        lines += _stage_lines("adversarial", f"{run.discriminator.architecture}, {origin}", summary.discriminator)
        lines.append(f"{'':<13}discriminator.freeze_depth counts from the image on: the first stages see textures")
    return lines, summary.checkpoint_bytes


def _stage_lines(label: str, name: str, stages: Sequence["StageSummary"]) -> list[str]:
    """The parameters of a network, and a line for each of its stages."""
    total, trained = (
        sum(counts) for counts in zip(*((s.num_parameters, s.num_trainable) for s in stages), strict=True)
    )
    lines = [
        f"{label:<13}{name}, {trained:,} of {total:,} parameters trainable ({trained / total:.0%}) in "
        f"{sum(s.trainable for s in stages)} of {len(stages)} stages"
    ]
    for i, stage in enumerate(stages):
        state = _state_of(stage)
        lines.append(f"  {i:2d} {stage.name:<25} {stage.group:<10} {stage.num_parameters:>12,}  {state}")
    return lines


def _state_of(stage: "StageSummary") -> str:
    state = "trained" if stage.trainable else "idle" if stage.idle else "frozen"
    if stage.num_came_frozen:
        count = f"{stage.num_came_frozen:,} of them " if stage.num_came_frozen < stage.num_parameters else ""
        state += f", {count}frozen by the module itself" if stage.trainable else " by the module itself"
    return state + (", new" if stage.new else "")


def _frozen_cache_lines(plan: "FrozenCachePlan") -> list[str]:
    """How far the frozen start is computed once for each image; empty where there is nothing to cache."""
    parts = []
    for name, allocation in (("training", plan.training), ("validation", plan.evaluation)):
        if allocation.point is not None:
            parts.append(f"{name} through {allocation.point.stage}, about {size(allocation.num_bytes)}")
        elif allocation.reason is not None:
            parts.append(f"{name} none: {allocation.reason}")
    return [f"frozen cache {'; '.join(parts)}"] if parts else []


# The distribution of a pixel that a reconstruction term assumes, and the factor that makes the summed term the negative
# log-likelihood.
_LIKELIHOODS = {
    "mse": ("Gaussian of unit variance", 0.5),
    "l1": ("Laplacian of unit scale", 1.0),
    "bce": ("Bernoulli", 1.0),
}


def _kl_lines(spec: SearchSpec | ProductionSpec, num_latents: int) -> list[str]:
    """The weight of the KL, and beta: the weight when pixels and latents are summed (Higgins et al. 2017)."""
    run = spec.finetune
    losses, elements = run.losses, math.prod(run.data.shape)
    searched = spec.search_space.get("losses.kl") if isinstance(spec, SearchSpec) else None
    if losses.kl == 0.0 and searched is None:
        return []
    summed = elements / num_latents
    lines = [f"kl           {losses.kl:g} per element, {losses.kl * summed:g} in summed terms (LDM's convention)"]
    pixel_terms = [term for term in _LIKELIHOODS if getattr(losses, term) > 0.0]
    if len(pixel_terms) == 1:
        kind, factor = _LIKELIHOODS[pixel_terms[0]]
        scale = factor * summed / getattr(losses, pixel_terms[0])
        ends = sorted(searched.corners()) if searched is not None else []
        reach = f", searched from {ends[0] * scale:g} to {ends[-1] * scale:g}" if ends else ""
        lines.append(f"beta         {losses.kl * scale:g}{reach}; 1 is the VAE whose pixels are {kind}")
    return lines


def _storage_lines(spec: SearchSpec, checkpoint_bytes: int | None) -> list[str]:
    storage = spec.search.with_absolute_paths().storage.rstrip("/")
    if not spec.search.in_object_store:
        from ftae.engine.data.files.listing import check_output

        check_output(Path(storage) / spec.name, spec.finetune.data.image_folders())
    uri = spec.tracking.uri or f"sqlite:///{storage}/mlflow.db"
    kept = f"checkpoints  the best {spec.search.keep_checkpoints} of the search, and the newest of running trials"
    space, probe = [], []
    if checkpoint_bytes is not None:
        kept += f"; each about {size(checkpoint_bytes)}"
        space = [_space_line(spec, checkpoint_bytes)]
        probe = _probe_lines(spec, Path(storage) / spec.name)
    return [
        kept,
        f"storage      {storage}/{spec.name}",
        *space,
        f"tracking     {uri}, experiment {spec.tracking.experiment or spec.name}",
        *probe,
    ]


def _space_line(spec: SearchSpec, checkpoint_bytes: int) -> str:
    from ftae.search.sizing import check_quota, space_needed

    space, quota = space_needed(spec, checkpoint_bytes), spec.search.max_storage_gb
    check_quota(spec, space.total(spec.search.max_concurrent or 1))
    most = "" if quota is None else f" (at most {quota:g} GB, by search.max_storage_gb)"
    return f"space        about {size(space.lasting)}, and {size(space.per_running_trial)} a running trial{most}"


def _probe_lines(spec: SearchSpec, folder: Path) -> list[str]:
    """What the preflight of the search measured, if the search has begun in a folder that this machine sees."""
    from ftae.engine.sizing import Probe, trial_seconds
    from ftae.search.sizing import search_hours

    if not (folder / FILE_NAME).is_file():
        return []
    probe = Probe.of(fold(folder).facts.get("probe", {}))
    if probe is None:
        return []
    trial = duration(trial_seconds(probe, spec.finetune))
    hours = search_hours(probe, spec)
    return [f"preflight    {probe} on {probe.node}; about {trial} a full trial, {hours} the search"]
