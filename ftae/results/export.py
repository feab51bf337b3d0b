"""Writes a trial of a search as one folder that a production run starts from."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftae.engine.data.files.listing import check_output
from ftae.engine.models.pretrained.model_folder import weights_origin
from ftae.engine.training.export_model import SINGLE_FILE, ExportedModel, export_model
from ftae.engine.training.export_onnx import check_onnx_installed, export_onnx
from ftae.errors import FtaeError
from ftae.results.confirmation import confirmed
from ftae.results.replay import replay
from ftae.results.search_record import WARM_START, SearchRecord, TrialRecord
from ftae.results.stored_spec import run_of, search_of
from ftae.results.summary import choose, over_seeds, worker_hours
from ftae.results.verdict import verdict
from ftae.specs.files import dump
from ftae.specs.finetune.metrics import is_held_out
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.search import ProductionSpec, SearchSpec
from ftae.storage.store import Store
from ftae.tracking.mlflow_model_folder import make_mlflow_model
from ftae.wording import full_trainings

# In the folder of an exported trial; the first two in that of a production run, too.
PRODUCTION, MODEL, PROVENANCE = "production.yaml", "model", "provenance.json"


@dataclass(frozen=True)
class Export:
    """A trial that was exported.

    ``onnx``: the largest differences of ONNX from PyTorch; see ``export_onnx``.
    """

    trial: TrialRecord
    model: ExportedModel
    onnx: dict[str, float] | None = None


def export(
    store: Store,
    out: Path,
    trial_number: int | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    onnx: bool = False,
) -> Export:
    """Write a trial of a search to the new folder ``out``: the given one, or the best (see ``choose``).

    ``out`` gets ``production.yaml`` (what ``ftae train`` runs), ``model/``, ``provenance.json``, ``README.md`` and
    ``reconstructions.png``, of a VAE ``vae.safetensors``, and what makes it a model of MLflow; with ``onnx`` also
    ``encoder.onnx`` and ``decoder.onnx``, or ``translator.onnx``. It appears whole or not at all.

    Raises:
        FtaeError: no trial ran to its full budget, the given one did not, or its checkpoint was not kept; ``out``
            exists or lies among the images; another version of ftae ran the search; the model cannot be written as
            ONNX.
    """
    if onnx:
        check_onnx_installed()
    record = replay(store.folder)
    search = search_of(record)
    trial = chosen_trial(record, store, trial_number, weights)
    spec = run_of(record, trial)
    check_output(out, spec.data.image_folders())
    if out.exists():
        raise FtaeError(f"{out} exists; remove it or choose another folder with --out")
    parts = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    try:
        assert trial.checkpoint is not None
        assert trial.picture is not None
        model = export_model(spec, store.fetch(trial.checkpoint), parts / MODEL)
        (parts / PRODUCTION).write_text(dump(_production(record, search, trial)), encoding="utf-8")
        origin = weights_origin(str(parts / MODEL))
        provenance = _provenance(record, search, trial, model) | ({} if origin is None else {"weights": origin})
        (parts / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(store.fetch(trial.picture), parts / "reconstructions.png")
        readme = _readme(record, search, trial, model, origin, (parts / SINGLE_FILE).is_file())
        (parts / "README.md").write_text(readme, encoding="utf-8")
        make_mlflow_model(parts, spec)
        differences = export_onnx(spec, parts / MODEL, parts) if onnx else None
        parts.rename(out)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return Export(trial, model, differences)


def chosen_trial(
    record: SearchRecord, store: Store, number: int | None = None, weights: Mapping[str, float] | None = None
) -> TrialRecord:
    """Return the trial whose model to use: trial ``number``, or the best (see ``choose``).

    Raises:
        FtaeError: no trial ran to its full budget, or the chosen one has no checkpoint.
    """
    ranked = record.ranked()
    if not ranked:
        raise FtaeError(f"{store.name}: no tuned trial ran to its full budget yet, so there is no tuned model")
    kept = [t.number for t in ranked if t.checkpoint and store.names(t.checkpoint)]
    chosen = choose(record, None, weights).number if number is None else number
    if chosen not in kept:
        raise FtaeError(
            f"{store.name}: trial {chosen} has no checkpoint; choose one of {', '.join(map(str, kept))} "
            "(search.keep_checkpoints says how many are kept)"
        )
    return record.trials[chosen]


def _production(record: SearchRecord, search: SearchSpec, trial: TrialRecord) -> ProductionSpec:
    return ProductionSpec(
        name=f"{search.name}-trial-{trial.number}",
        finetune=run_of(record, trial),
        tracking=search.tracking,
        from_search={
            "search": search.name,
            "trial": trial.number,
            "dataset_fingerprint": record.facts.get("dataset_fingerprint"),
            "objective": search.objective.model_dump(mode="json"),
        },
    )


def _provenance(record: SearchRecord, search: SearchSpec, trial: TrialRecord, model: ExportedModel) -> dict[str, Any]:
    baseline, seeds = record.baseline, confirmed(record).get(trial.number)
    return {
        "search": search.name,
        "search_digest": search.digest(),
        "trial": trial.number,
        "params": trial.params,
        "changes": trial.changes,
        "seed": search.finetune.seed,
        "finetune_digest": run_of(record, trial).digest(),
        "objective": search.objective.model_dump(),
        "value": trial.value,
        "baseline": None if baseline is None else baseline.value,
        "metrics": trial.metrics,
        **({} if record.noise is None else {"noise": record.noise}),
        **({} if seeds is None else {"confirmed": over_seeds(seeds)}),
        "full_trainings": record.used_budget,
        "worker_hours": worker_hours(record),
        "latents": asdict(model),
        **record.facts,
        **_earlier_searches(record),
    }


def _earlier_searches(record: SearchRecord) -> dict[str, Any]:
    """The earlier searches that the search learned from, without their trials."""
    found = record.facts.get(WARM_START, [])
    return {WARM_START: [{key: one[key] for key in ("search", "digest")} for one in found]} if found else {}


def _readme(
    record: SearchRecord,
    search: SearchSpec,
    trial: TrialRecord,
    model: ExportedModel,
    origin: Mapping[str, Any] | None,
    has_single_file: bool,
) -> str:
    caption = _caption(search.finetune)
    baseline = record.baseline
    names = [name for name in trial.metrics if is_held_out(name)]
    rows = "\n".join(f"| {name} | {_cell(baseline, name)} | {trial.metrics[name]:.6g} |" for name in names)
    workers = search.search.resources.workers
    command = "ftae train production.yaml" + (f" --workers {workers}" if workers > 1 else "")
    params = "\n".join(f"- `{path}`: {value}" for path, value in trial.settings.items())
    one_file = f"- `{SINGLE_FILE}`: its weights in one file, in the names that ComfyUI and other programs load.\n"
    one_file = one_file if has_single_file else ""
    return f"""# {search.name}, trial {trial.number}

{verdict(record, trial)}

| metric | baseline (untuned) | trial {trial.number} |
|---|---|---|
{rows}

The objective was to {search.objective}, held out, over {len(record.trials) - 1} tuned trials, which took
{full_trainings(record.used_budget)} together.

Params:

{params}

{_latents_note(search, model)}
{_licence_note(origin)}
![{caption}](reconstructions.png)

{caption}.

- `model/`: the tuned model, as measured above.
{one_file}- `production.yaml`: the run that made it. `{command}` repeats it to the last digit on the same
  kind of machine; `--max-steps N` trains for longer, `--resume` continues an interrupted run.
- `provenance.json`: params, seed, digests, versions, dataset fingerprint.
- `MLmodel` and what lies beside it: `mlflow.pyfunc.load_model` loads this folder, `mlflow models serve -m .` serves it,
  with the packages of `requirements.txt`.
"""


def _caption(run: FinetuneSpec) -> str:
    """What the picture shows."""
    if run.use == "sample":
        return "Samples of fixed noise"
    if run.data.unpaired:
        others = "output | the way back" + (" | true output" if run.data.truly_paired else "")
    elif run.data.paired:
        others = "output | true output | absolute difference"
    else:
        others = "reconstruction | " + ("absolute difference" if run.data.degrade is None else "clean image")
    return f"Fixed validation images, each as input | {others}"


def _licence_note(origin: Mapping[str, Any] | None) -> str:
    if origin is None:
        return ""
    file, licence = origin.get("file"), origin.get("licence")
    return f"\nThe weights are tuned from those of {file}, whose licence goes on to hold: **{licence}**\n"


def _cell(baseline: TrialRecord | None, metric: str) -> str:
    return "" if baseline is None or metric not in baseline.metrics else f"{baseline.metrics[metric]:.6g}"


def _latents_note(search: SearchSpec, model: ExportedModel) -> str:
    if not search.finetune.model.has_latents:
        return ""
    if search.finetune.model.pretrained is None:
        return "The model was trained from scratch: there are no earlier latents to be compatible with."
    if model.latents_compatible:
        return "The encoder gives the latents of the pretrained model: models trained on those still fit."
    note = (
        "The encoder side moved: **latents are no longer compatible** with models trained on the pretrained encoder's."
    )
    if model.scaling_factor is not None:
        note += f" `scaling_factor` was recomputed on the training images: {model.scaling_factor:.6g}."
    elif model.recomputed:
        note += f" {' and '.join(f'`{name}`' for name in model.recomputed)} were recomputed on the training images."
    return note
