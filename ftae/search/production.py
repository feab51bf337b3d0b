"""A production run: a search of one trial that runs in this process, to its full budget, and leaves its model."""

import gc
import os
import platform
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftae.engine.data.dataset import Dataset, load_run_dataset
from ftae.engine.data.files.listing import check_output
from ftae.engine.models.pretrained.hub import pinned
from ftae.engine.sizing import summarize
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint, read_spec, usable_checkpoint
from ftae.engine.training.export_model import ExportedModel, export_model
from ftae.engine.training.local_workers import local_workers, with_shared_cores
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.results.export import MODEL
from ftae.results.replay import REPORTS, fold, reports_of_version_1
from ftae.results.search_record import PRODUCTION_TRIAL, STOPPED_BY_USER, Close, SearchRecord, Status, TrialRecord
from ftae.search.provenance import current_user, provenance
from ftae.search.tracking_sync import CURSOR, Sender
from ftae.specs.files import dump
from ftae.specs.finetune.metrics import metric_facts
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.format_versions import FORMAT
from ftae.specs.search.objective import AnyObjective, Objective, read_objective
from ftae.specs.search.search import ProductionSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import UnreadableJournal, new_event
from ftae.storage.lease import JournalWriter
from ftae.tracking import tracker_for

Notify = Callable[[str], None]


def train(
    spec: ProductionSpec,
    out: Path,
    *,
    storage: Path,
    resume: bool = False,
    register: str | None = None,
    workers: int = 1,
    notify: Notify,
) -> tuple[EvalReport, ExportedModel]:
    """Run ``spec`` to its full budget in the folder ``out`` and write the model to ``out/model``.

    ``out`` also gets ``production.yaml``, the journal, pictures and the newest checkpoints. Without a ``tracking.uri``
    the run is tracked in the embedded store of the folder ``storage``, as searches are. It is sent as it grows; an
    unreachable server is reported and does not stop the run.

    Args:
        resume: continue the run in ``out`` from its newest checkpoint.
        register: the name under which to put the model into the tracker's registry, as its champion.
        workers: the processes of this machine that share every batch; the numbers are those of one process but for the
            last digits.
        notify: receives a line per report, and warnings.

    Raises:
        FtaeError: ``out`` lies among the images, or holds a run already, or (with ``resume``) none, or another process
            trains into it; the spec cannot be run, or not by so many workers; a worker was lost; the tracker refuses
            the run; the model is to be registered and the tracker is unreachable.
        TrainingFailed: see ``finetune``.
    """
    for folder in (out, storage / "mlartifacts"):
        check_output(folder, spec.finetune.data.image_folders())
    if resume and latest_checkpoint(out) is None:
        raise FtaeError(f"{out} has no checkpoint to resume from; start the run without --resume")
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(spec, out, storage, notify)
    try:
        return run.train(resume, register, workers)
    finally:
        run.writer.close()


class _Run:
    """A production run in the hands of this process.

    Raises:
        FtaeError: another process trains into ``out``; ``out`` holds a search.
    """

    def __init__(self, spec: ProductionSpec, out: Path, storage: Path, notify: Notify) -> None:
        self.spec, self.out, self.storage, self.notify = spec, out, storage, notify
        self.store, self.record = FolderStore(out), SearchRecord(search={})
        self.writer = JournalWriter(self.store, notify)

    def train(self, resume: bool, register: str | None, workers: int) -> tuple[EvalReport, ExportedModel]:
        checkpoint = self._checkpoint(resume)
        before = None if checkpoint is None else read_spec(checkpoint)
        run = with_shared_cores(self.spec.finetune, workers)
        run = pinned(run, [] if before is None else [before.model.pretrained])
        data = load_run_dataset(run)
        run = run.with_levels(data.train.levels)
        self.spec = self.spec.model_copy(update={"finetune": run})
        self._warn(data)
        sender = Sender(self.store, lambda: tracker_for(self.spec, self.store, self.storage), self.notify, "the run")
        with closing(self._reports(run, checkpoint, workers)) as reports:
            sender.check()
            first = next(reports)  # refuses what cannot be run; until then nothing of an earlier run is changed
            (self.out / "production.yaml").write_text(dump(self.spec), encoding="utf-8")
            self._open(resume, first.step, data)
            with self._closed_in_the_end(sender):
                for report in chain([first], reports):
                    self._report(report)
                    self.notify(describe(report))
                    sender.send()
                self._end("finished")
                assert report.checkpoint is not None
                model = export_model(run, self.out / report.checkpoint, self.out / MODEL)
        if not sender.send_all():
            self.notify(f"MLflow lacks a part of this run; once it can be reached, run: ftae sync {self.out}")
        if register is not None:
            self.notify(f"registered as version {self._register(sender, register)} of {register!r}, alias champion")
        return report, model

    def _reports(self, run: FinetuneSpec, checkpoint: Path | None, workers: int) -> Generator[EvalReport]:
        """As ``finetune``. With ``checkpoint_stages: auto``, a run that is out of memory continues with activations
        computed again."""
        step = -1
        while True:
            try:
                with local_workers(run, workers) as group:
                    for report in finetune(run, self.out, resume_from=checkpoint, group=group):
                        if report.step > step:
                            step = report.step
                            yield report
                return
            except TrainingFailed as failure:
                if failure.reason != Reason.OUT_OF_MEMORY or run.checkpoint_stages != "auto":
                    raise
                self.notify(f"{failure}; continues with checkpoint_stages")
            gc.collect()  # of the networks that did not fit
            run, checkpoint = run.model_copy(update={"checkpoint_stages": True}), latest_checkpoint(self.out)

    def _checkpoint(self, resume: bool) -> Path | None:
        """The checkpoint to continue from; None for a new run."""
        with suppress(UnreadableJournal) if resume else nullcontext():
            found = fold(self.out)
            if found.search and found.kind == "search":
                raise FtaeError(f"{self.out} holds a search; choose another folder with --out")
        checkpoint = usable_checkpoint(self.out, self.notify) if resume else latest_checkpoint(self.out)
        if resume and checkpoint is None:
            raise FtaeError(
                f"{self.out} has no checkpoint that is whole; start the run in another folder without --resume"
            )
        if not resume and checkpoint is not None:
            raise FtaeError(
                f"{self.out} holds a run already; continue it with --resume, or choose another folder with --out"
            )
        return checkpoint

    def _warn(self, data: Dataset) -> None:
        for note in data.notes:
            self.notify(note)
        came_from = self.spec.from_search or {}
        if came_from.get("dataset_fingerprint") not in (None, data.fingerprint):
            self.notify(
                f"warning: the images differ from those of the search {came_from['search']}: some were added, removed "
                "or changed since"
            )
        run = self.spec.finetune
        if run.model.pretrained is not None:
            new = summarize(run, data.num_classes).new_stages
            kept = f"kept from {run.model.pretrained}"
            self.notify(f"new stages: {', '.join(new)}; the others are {kept}" if new else f"all stages are {kept}")

    def _register(self, sender: Sender, name: str) -> str:
        try:
            if sender.failure is not None:
                raise sender.failure
            return sender.tracker.register(name)
        except (FtaeError, OSError) as error:
            raise FtaeError(f"the model is in {self.out / MODEL}, but was not registered: {error}") from error

    # --------------------------------------------------------------------------------------- journal

    def _open(self, resume: bool, step: int, data: Dataset) -> None:
        """Open the journal for a run that continues from ``step``; a new run gets a new journal."""
        if resume:
            self.record = self._intact_record()
        else:
            os.truncate(self.writer.journal.path, 0)
            self.store.remove(CURSOR)
            self.record = SearchRecord(search={})
        self.writer.take_up()
        objective = objective_of(self.spec)
        search = self.spec.model_dump(mode="json") | {
            "search_space": {},
            "objective": objective.model_dump(mode="json"),
            "search": {"num_trials": 1, "storage": str(self.storage.absolute())},
        }
        opened = {"format": FORMAT, "kind": "production", "search": search, "digest": self.spec.digest()}
        opened |= {"user": current_user(), "facts": provenance(self.spec, data)}
        events = [new_event("open", **opened)]
        if PRODUCTION_TRIAL not in self.record.trials:
            events += [new_event("suggest", trial=PRODUCTION_TRIAL, params={}, kind="file")]
        if not self.record.search:
            earlier = reports_of_version_1(self.out, PRODUCTION_TRIAL, objective.first.metric) if resume else []
            events = [event | {"time": earlier[0]["time"]} for event in events] + earlier if earlier else events
        self.writer.append(events, self.record.apply)
        (self.out / REPORTS).unlink(missing_ok=True)
        self._append("start", node=platform.node(), pid=os.getpid(), step=step)

    def _intact_record(self) -> SearchRecord:
        """Fold the journal; cuts it off at the first damaged line."""
        try:
            return fold(self.out)
        except UnreadableJournal as error:
            os.truncate(self.writer.journal.path, error.intact_bytes)
            self.notify(f"{error}; that line and the lines behind it were removed")
            return fold(self.out)

    @property
    def _trial(self) -> TrialRecord:
        return self.record.trials[PRODUCTION_TRIAL]

    def _append(self, event: str, **fields: Any) -> None:
        self.writer.append([new_event(event, trial=PRODUCTION_TRIAL, **fields)], self.record.apply)

    def _report(self, report: EvalReport) -> None:
        """Write a report; a continued run begins with the report of its checkpoint, which the journal has."""
        if not self._trial.reports or report.step > self._trial.step:
            value = report.metrics[self.record.objective.first.metric]
            self._append("report", value=value, **asdict(report))

    def _end(self, status: Status, reason: str | None = None) -> None:
        value = self.record.objective.first.worst() if status == "diverged" else self._trial.value
        self._append("end", status=status, reason=reason, value=value, step=self._trial.step)

    @contextmanager
    def _closed_in_the_end(self, sender: Sender) -> Iterator[None]:
        """Write how the block ends into the journal, and send it if it fails."""
        close = Close("failed", "the process ended")
        try:
            yield
            close = Close("complete")
        except KeyboardInterrupt:
            close = STOPPED_BY_USER
            raise
        except TrainingFailed as error:
            self._end("diverged", str(error))
            close = Close("failed", str(error))
            raise
        except FtaeError as error:
            close = Close("failed", str(error))
            raise
        except Exception as error:
            close = Close("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            try:
                self.writer.append([new_event("close", **close.fields())], self.record.apply)
            except (FtaeError, OSError) as error:
                self.notify(f"the journal cannot be written: {error}")
            if close.status != "complete":
                sender.send()


def describe(report: EvalReport) -> str:
    """Return a report as one line."""
    values = "  ".join(f"{name} {value:.5g}" for name, value in report.metrics.items())
    return f"step {report.step}  {values}"


def objective_of(spec: ProductionSpec) -> AnyObjective:
    """Return the objective by which a production run is judged.

    That is the objective of the search that the run came from, if the run measures it; else the first metric that has a
    better side; else the first metric, maximized.

    Raises:
        FtaeError: ``from_search.objective`` is not an objective.
    """
    measured = spec.finetune.measured()
    given = (spec.from_search or {}).get("objective")
    if isinstance(given, dict):
        try:
            objective = read_objective(given)
        except ValidationError as error:
            raise FtaeError(f"from_search.objective is not valid: {error.errors()[0]['msg']}") from error
        if not objective.problems(measured):
            return objective
    metric = next((name for name in measured if metric_facts(name).better), measured[0])
    return Objective(metric=metric, direction=metric_facts(metric).better or "maximize")
