"""A production run: the same loop as a trial, run to the end, tracked, its model saved."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, Literal

from ftae.engine.data.dataset import load_run_dataset
from ftae.engine.data.listing import check_output
from ftae.engine.models.hub import pinned
from ftae.engine.sizing.summary import summarize
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint, read_spec, usable_checkpoint
from ftae.engine.training.export_model import ExportedModel, export_model
from ftae.engine.training.local_workers import local_workers, with_shared_cores
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.files import dump
from ftae.specs.search.search import ProductionSpec
from ftae.tracking import RunTracker, TrackingUnavailable, check_experiment

REPORTS = "reports.jsonl"


def train(
    spec: ProductionSpec,
    out: Path,
    *,
    storage: Path,
    resume: bool = False,
    register: str | None = None,
    workers: int = 1,
    notify: Callable[[str], None],
) -> tuple[EvalReport, ExportedModel]:
    """Run ``spec`` to its full budget in the folder ``out`` and write the model to ``out/model``.

    ``out`` also gets ``production.yaml``, ``reports.jsonl``, pictures and the newest checkpoint.
    It is one run in MLflow, without a ``tracking.uri`` in the embedded store of ``storage``, as searches
    are: logged as it goes, and however it ends. MLflow being away is said and does not stop it.
    With ``resume`` the run goes on from that checkpoint. ``register`` puts the model into MLflow's
    registry under this name, alias ``champion``. ``workers`` processes of this machine train it, with the
    numbers of one but for the last digits. ``notify`` is told a line per report.

    Raises:
        FtaeError: ``out`` lies among the images, or holds a run already, or (with ``resume``) none, or another
            process trains into it; the spec cannot be run, or not by so many workers; one of them was lost; MLflow
            refuses the run; the model is to be registered and MLflow is away.
    """
    for folder in (out, storage / "mlartifacts"):
        check_output(folder, spec.finetune.data.image_folders())
    if resume and latest_checkpoint(out) is None:
        raise FtaeError(f"{out} has no checkpoint to resume from; start the run without --resume")
    with _alone_in(out):
        return _train(spec, out, storage, resume, register, workers, notify)


def _train(
    spec: ProductionSpec,
    out: Path,
    storage: Path,
    resume: bool,
    register: str | None,
    workers: int,
    notify: Callable[[str], None],
) -> tuple[EvalReport, ExportedModel]:
    spec = spec.model_copy(update={"finetune": with_shared_cores(spec.finetune, workers)})
    checkpoint = _prepare(out, resume, notify)
    before = None if checkpoint is None else read_spec(checkpoint)
    named = [] if before is None else [before.model.pretrained]
    spec = spec.model_copy(update={"finetune": pinned(spec.finetune, named)})
    data = load_run_dataset(spec.finetune)
    for note in data.notes:
        notify(note)
    came_from = spec.from_search or {}
    if came_from.get("dataset_fingerprint") not in (None, data.fingerprint):
        notify(
            f"warning: the images are not those of the search {came_from['search']}: they came, went or changed since"
        )
    if spec.finetune.model.pretrained is not None:
        new = summarize(spec.finetune, data.num_classes).new_stages
        kept = f"kept from {spec.finetune.model.pretrained}"
        notify(f"new stages: {', '.join(new)}; the others are {kept}" if new else f"all stages are {kept}")
    with local_workers(spec.finetune, workers) as group:
        tracking = _Tracking(spec, out, storage, notify)
        tracking.check()
        run = finetune(spec.finetune, out, resume_from=checkpoint, group=group)
        first = next(run)  # what cannot be run is refused here, and an earlier run in ``out`` left as it is
        (out / "production.yaml").write_text(dump(spec), encoding="utf-8")
        earlier, at = _earlier_reports(out, first.step, notify)
        tracking.begin(earlier[0]["time"] if earlier else at)
        try:
            for report in _recorded(chain([first], run), out, at):
                notify(describe(report))
                tracking.send()
            assert report.checkpoint is not None
            released = export_model(spec.finetune, out / report.checkpoint, out / "model")
            tracking.end("FINISHED", out / "model")
        except BaseException as error:
            tracking.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    if register is not None:
        notify(f"registered as version {tracking.register(register)} of {register!r}, alias champion")
    return report, released


def describe(report: EvalReport) -> str:
    """One line of a report."""
    values = "  ".join(f"{name} {value:.5g}" for name, value in report.metrics.items())
    return f"step {report.step}  {values}"


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other processes of this machine out of ``out``; the system forgets it with the process that asked.

    Raises:
        FtaeError: another process trains into it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / REPORTS).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FtaeError(
                f"another ftae process trains into {out}; wait for it or stop it, or choose another folder with --out"
            ) from error
        yield


def _prepare(out: Path, resume: bool, notify: Callable[[str], None]) -> Path | None:
    checkpoint = usable_checkpoint(out, notify) if resume else latest_checkpoint(out)
    if resume and checkpoint is None:
        raise FtaeError(f"{out} has no checkpoint that is whole; start the run in another folder without --resume")
    if not resume and checkpoint is not None:
        raise FtaeError(f"{out} holds a run already; go on with it by --resume, or choose another folder with --out")
    return checkpoint


def _earlier_reports(out: Path, step: int, notify: Callable[[str], None]) -> tuple[list[dict[str, Any]], float]:
    """The reports before the one that the run begins with, and the time of that one; the file is cut behind them.

    A run that goes on begins with its newest checkpoint's report, which was made at its own time. Later
    reports belong to no checkpoint. ``notify`` is told of lines that are lost.
    """
    lines = _read_lines(out) if step > 0 else []
    found = [report for _, report in takewhile(lambda line: line[1], lines)]
    if len(found) < len(lines):
        notify(f"{out / REPORTS}: line {len(found) + 1} is damaged and left out, with those behind it")
    at = next((report["time"] for report in found if report["step"] == step), time.time())
    earlier = [report for report in found if report["step"] < step]
    os.truncate(out / REPORTS, sum(length for length, _ in lines[: len(earlier)]))
    return earlier, at


def _recorded(run: Iterator[EvalReport], out: Path, first_at: float) -> Iterator[EvalReport]:
    """The reports of a run, each added to the file with its time, in seconds since the epoch."""
    with (out / REPORTS).open("a", encoding="utf-8") as file:
        for number, report in enumerate(run):
            at = time.time() if number else first_at
            file.write(json.dumps({"time": at, **asdict(report)}) + "\n")
            file.flush()
            yield report


def _read_lines(out: Path) -> list[tuple[int, dict[str, Any]]]:
    """The length in bytes of every whole line of the file, and the report in it; empty where it is damaged."""
    with (out / REPORTS).open("rb") as file:
        return [(len(line), _read_report(line)) for line in file if line.endswith(b"\n")]


def _read_report(line: bytes) -> dict[str, Any]:
    try:
        report = json.loads(line)
        EvalReport(**{key: value for key, value in report.items() if key != "time"})
        is_whole = isinstance(report["time"], float) and isinstance(report["step"], int)
        return dict(report) if is_whole else {}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return {}


class _Tracking:
    """The MLflow run of a folder: the same one whenever the run goes on, known by the time it began.

    What could not be sent is sent with a later report, or in the end.
    """

    def __init__(self, spec: ProductionSpec, out: Path, storage: Path, notify: Callable[[str], None]) -> None:
        self._spec, self._out, self._storage, self._notify = spec, out, storage, notify
        self._experiment = spec.tracking.experiment or spec.name
        self._started = 0.0
        self._tracker: RunTracker | None = None
        self._sent = 0  # reports
        self._failure: TrackingUnavailable | None = None

    def check(self) -> None:
        """Refuse a run that MLflow will not take; that the server is away is only told.

        Raises:
            FtaeError: it refuses, whenever it is asked.
        """
        try:
            check_experiment(self._spec.tracking.uri, self._storage, self._experiment)
        except TrackingUnavailable as error:
            if error.permanent:
                raise
            self._away(error)

    def begin(self, started: float) -> None:
        """The run is the one that began then, in seconds since the epoch."""
        self._started = started

    def send(self) -> None:
        """Send the reports that MLflow lacks. It is said, once each, when the server goes and comes."""
        try:
            self._catch_up()
        except TrackingUnavailable as error:
            self._away(error)
        else:
            if self._failure is not None:
                self._notify("tracking is back; everything missed was sent")
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
            self._notify(f"not tracked: {error}. All figures are in {self._out / REPORTS}")
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
                experiment=self._experiment,
                name=spec.name,
                started=self._started,
                params=spec.finetune.model_dump(mode="json"),
                tags={"ftae.kind": "production"} | {f"ftae.{k}": str(v) for k, v in (spec.from_search or {}).items()},
            )
        for _, report in _read_lines(self._out)[self._sent :]:
            metrics = report["metrics"] | report["timing"]
            self._tracker.log(report["step"], metrics, report["time"], self._out / report["images"])
            self._sent += 1
        return self._tracker

    def _away(self, error: TrackingUnavailable) -> None:
        if self._failure is None:
            self._notify(f"{error}; the run goes on and sends it later")
        self._lost(error)

    def _lost(self, error: TrackingUnavailable) -> None:
        """Begin anew next time: the server may come back as another, or the run have been deleted in it."""
        self._tracker, self._sent, self._failure = None, 0, error
