"""A production run: the same loop as a trial, run to the end, tracked, its model saved."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ftae.engine.build import summarize
from ftae.engine.checkpoint import EvalReport, latest_checkpoint, usable_checkpoint
from ftae.engine.data import load_dataset
from ftae.engine.loop import finetune
from ftae.engine.release import Release, release
from ftae.engine.workers import local_workers, with_shared_cores
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
    workers: int = 1,
    say: Callable[[str], None],
) -> tuple[EvalReport, Release]:
    """Run ``spec`` to its full budget in the folder ``out`` and write the model to ``out/model``.

    ``out`` also gets ``production.yaml``, ``reports.jsonl``, pictures and the newest checkpoint.
    It is one run in MLflow, without a ``tracking.uri`` in the embedded store of ``storage``, as searches
    are: logged as it goes, and however it ends. MLflow being away is said and does not stop it.
    With ``resume`` the run goes on from that checkpoint. ``register`` puts the model into MLflow's
    registry under this name, alias ``champion``. ``workers`` processes of this machine train it, with the
    numbers of one but for the last digits. ``say`` is told a line per report.

    Raises:
        FtaeError: ``out`` holds a run already, or (with ``resume``) none; the spec cannot be run, or not by
            so many workers; one of them was lost; the model is to be registered and MLflow is away.
    """
    spec = spec.model_copy(update={"finetune": with_shared_cores(spec.finetune, workers)})
    checkpoint = _prepare(out, resume, say)
    data = load_dataset(spec.finetune.data)
    if data.skipped:
        say(data.skipped_message())
    if spec.finetune.model.pretrained is not None:
        new = summarize(spec.finetune, data.num_classes).new_stages
        kept = f"kept from {spec.finetune.model.pretrained}"
        say(f"new stages: {', '.join(new)}; the others are {kept}" if new else f"all stages are {kept}")
    with local_workers(spec.finetune, workers) as group:
        run = finetune(spec.finetune, out, resume_from=checkpoint, group=group)
        first = next(run)  # what cannot be run is refused here, and an earlier run in ``out`` left as it is
        (out / "production.yaml").write_text(dump(spec))
        earlier, at = _earlier_reports(out, first.step)
        tracking = _Tracking(spec, out, storage, earlier[0]["time"] if earlier else at, say)
        try:
            for report in _recorded(chain([first], run), out, earlier, at):
                say(describe(report))
                tracking.send()
            assert report.checkpoint is not None
            released = release(spec.finetune, out / report.checkpoint, out / "model")
            tracking.end("FINISHED", out / "model")
        except BaseException as error:
            tracking.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    if register is not None:
        say(f"registered as version {tracking.register(register)} of {register!r}, alias champion")
    return report, released


def describe(report: EvalReport) -> str:
    """One line of a report."""
    values = "  ".join(f"{name} {value:.5g}" for name, value in report.metrics.items())
    return f"step {report.step}  {values}"


def _prepare(out: Path, resume: bool, say: Callable[[str], None]) -> Path | None:
    checkpoint = usable_checkpoint(out, say) if resume else latest_checkpoint(out)
    if resume and checkpoint is None:
        raise FtaeError(f"{out} has no checkpoint to resume from; start the run without --resume")
    if not resume and checkpoint is not None:
        raise FtaeError(f"{out} holds a run already; go on with it by --resume, or choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    return checkpoint


def _earlier_reports(out: Path, step: int) -> tuple[list[dict[str, Any]], float]:
    """The reports before the one that the run begins with, and the time of that one.

    A run that goes on begins with its newest checkpoint's report, which was made at its own time. Later
    reports belong to no checkpoint.
    """
    found = _read_reports(out) if step > 0 else []
    at = next((report["time"] for report in found if report["step"] == step), time.time())
    return [report for report in found if report["step"] < step], at


def _recorded(
    run: Iterator[EvalReport], out: Path, earlier: list[dict[str, Any]], first_at: float
) -> Iterator[EvalReport]:
    """The reports of a run, each written to the file with its time, in seconds since the epoch."""
    with (out / REPORTS).open("w") as file:
        file.writelines(json.dumps(report) + "\n" for report in earlier)
        for number, report in enumerate(run):
            at = time.time() if number else first_at
            file.write(json.dumps({"time": at, **asdict(report)}) + "\n")
            file.flush()
            yield report


def _read_reports(out: Path) -> list[dict[str, Any]]:
    """What the file holds; a half-written last line is left out."""
    if not (out / REPORTS).exists():
        return []
    lines = (out / REPORTS).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class _Tracking:
    """The MLflow run of a folder: the same one whenever the run goes on, known by the time it began.

    What could not be sent is sent with a later report, or in the end.
    """

    def __init__(
        self, spec: ProductionSpec, out: Path, storage: Path, started: float, say: Callable[[str], None]
    ) -> None:
        self._spec, self._out, self._storage, self._started, self._say = spec, out, storage, started, say
        self._tracker: RunTracker | None = None
        self._sent = 0  # reports
        self._failure: TrackingUnavailable | None = None

    def send(self) -> None:
        """Send the reports that MLflow lacks. It is said, once each, when the server goes and comes."""
        try:
            self._catch_up()
        except TrackingUnavailable as error:
            if self._failure is None:
                self._say(f"{error}; the run goes on and sends it later")
            self._lost(error)
        else:
            if self._failure is not None:
                self._say("tracking is back; everything missed was sent")
            self._failure = None

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"], model: Path | None = None) -> None:
        """The run is over: send what is missing, and the model."""
        try:
            tracker = self._catch_up()
            if model is not None:
                tracker.log_folder(model, "model")
            tracker.end(status)
            self._failure = None
        except TrackingUnavailable as error:
            self._say(f"not tracked: {error}. All figures are in {self._out / REPORTS}")
            self._lost(error)

    def register(self, name: str) -> str:
        """Register the model of the run that has ended; returns its version.

        Raises:
            FtaeError: MLflow is away, or was when the model was to be sent.
        """
        try:
            if self._failure is not None:
                raise self._failure
            assert self._tracker is not None
            return self._tracker.register(name, "model")
        except TrackingUnavailable as error:
            raise FtaeError(f"the model is in {self._out / 'model'}, but was not registered: {error}") from error

    def _catch_up(self) -> RunTracker:
        if self._tracker is None:
            spec = self._spec
            self._tracker = RunTracker(
                spec.tracking.uri,
                storage=self._storage,
                experiment=spec.tracking.experiment or spec.name,
                name=spec.name,
                started=self._started,
                params=spec.finetune.model_dump(mode="json"),
                tags={"ftae.kind": "production"} | {f"ftae.{k}": str(v) for k, v in (spec.from_search or {}).items()},
            )
        for report in _read_reports(self._out)[self._sent :]:
            metrics = report["metrics"] | report["timing"]
            self._tracker.log(report["step"], metrics, report["time"], self._out / report["images"])
            self._sent += 1
        return self._tracker

    def _lost(self, error: TrackingUnavailable) -> None:
        """Begin anew next time: the server may come back as another, or the run have been deleted in it."""
        self._tracker, self._sent, self._failure = None, 0, error
