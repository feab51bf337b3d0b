"""A production run: the same loop as a trial, run to the end, tracked, its model saved."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from ftae.engine.checkpoint import EvalReport, latest_checkpoint
from ftae.engine.data import load_dataset
from ftae.engine.loop import finetune
from ftae.engine.release import Release, release
from ftae.errors import FtaeError
from ftae.specs.search import ProductionSpec
from ftae.specs.yamlfile import dump
from ftae.tracking import RunTracker, TrackingUnavailable

REPORTS = "reports.jsonl"


def train(
    spec: ProductionSpec,
    out: Path,
    *,
    storage: Path,
    resume: bool = False,
    register: str | None = None,
    say: Callable[[str], None],
) -> tuple[EvalReport, Release]:
    """Run ``spec`` to its full budget in the folder ``out`` and write the model to ``out/model``.

    ``out`` also gets ``production.yaml``, ``reports.jsonl``, pictures and the newest checkpoint.
    Without a ``tracking.uri`` it is tracked in the embedded store of ``storage``, as searches are.
    With ``resume`` the run goes on from that checkpoint. ``register`` puts the model into MLflow's
    registry under this name, alias ``champion``. ``say`` is told a line per report.

    Raises:
        FtaeError: ``out`` holds a run already, or (with ``resume``) none; the spec cannot be run; the
            model is to be registered and MLflow is away.
    """
    checkpoint = _prepare(out, resume)
    data = load_dataset(spec.finetune.data)
    if data.skipped:
        say(data.skipped_message())
    run = finetune(spec.finetune, out, resume_from=checkpoint)
    first = next(run)  # what cannot be run is refused here, and an earlier run in ``out`` left as it is
    (out / "production.yaml").write_text(dump(spec))
    earlier = _lines_before(out, first.step)
    with (out / REPORTS).open("w") as log:
        log.writelines(earlier)
        for report in chain([first], run):
            log.write(json.dumps(asdict(report)) + "\n")
            log.flush()
            say(describe(report))
    assert report.checkpoint is not None
    released = release(spec.finetune, out / report.checkpoint, out / "model")
    _track(spec, out, storage, register, say)
    return report, released


def describe(report: EvalReport) -> str:
    """One line of a report."""
    values = "  ".join(f"{name} {value:.5g}" for name, value in report.metrics.items())
    return f"step {report.step}  {values}"


def _prepare(out: Path, resume: bool) -> Path | None:
    checkpoint = latest_checkpoint(out)
    if resume and checkpoint is None:
        raise FtaeError(f"{out} has no checkpoint to resume from; start the run without --resume")
    if not resume and checkpoint is not None:
        raise FtaeError(f"{out} holds a run already; go on with it by --resume, or choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    return checkpoint


def _lines_before(out: Path, step: int) -> list[str]:
    """The reports before the one that the run begins with; later ones belong to no checkpoint."""
    if step == 0 or not (out / REPORTS).exists():
        return []
    lines = (out / REPORTS).read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]


def _track(spec: ProductionSpec, out: Path, storage: Path, register: str | None, say: Callable[[str], None]) -> None:
    """One MLflow run with all reports, the model, and the registered version if one is asked for."""
    try:
        run = RunTracker(
            spec.tracking.uri,
            storage=storage,
            experiment=spec.tracking.experiment or spec.name,
            name=spec.name,
            params=spec.finetune.model_dump(mode="json"),
            tags={"ftae.kind": "production"} | {f"ftae.{k}": str(v) for k, v in (spec.from_search or {}).items()},
        )
        for line in (out / REPORTS).read_text().splitlines():
            report = json.loads(line)
            run.log(report["step"], report["metrics"] | report["timing"], out / report["images"])
        run.log_folder(out / "model", "model")
        if register is not None:
            say(f"registered as version {run.register(register, 'model')} of {register!r}, alias champion")
        run.end("FINISHED")
    except TrackingUnavailable as error:
        if register is not None:
            raise FtaeError(f"the model is in {out / 'model'}, but was not registered: {error}") from error
        say(f"not tracked: {error}. All figures are in {out / REPORTS}")
