"""The outcome of a search, compared with an undisturbed one and with MLflow."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from made_up_search import shown_values
from mlflow import MlflowClient

from ftae.engine.training.loop import finetune
from ftae.errors import TrainingFailed
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.search.state import SearchState
from ftae.specs.files import load_search
from ftae.storage import journal
from ftae.storage.backends import FolderStore
from ftae.tracking.mlflow_run import RUN_STATUS


def undisturbed(file: Path, folder: Path, *overrides: str) -> SearchRecord:
    """Run the search without Ray: one trial after the other in this process."""
    spec = load_search(file, list(overrides))
    folder.mkdir()
    state = SearchState(spec, FolderStore(folder))
    while (trial := state.next_trial()) is not None:
        try:
            for report in finetune(spec.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
                if not state.report(trial.number, report):
                    break
        except TrainingFailed as failure:
            state.end(trial.number, "diverged", str(failure))
    state.close("complete")
    return replay(folder)


def numbers(record: SearchRecord) -> dict[int, Any]:
    """All results of a search, without times."""
    return {
        n: (t.kind, t.params, t.status, t.reason, [(r["step"], r["value"], r["metrics"]) for r in t.reports])
        for n, t in record.trials.items()
    }


def lost_trials(record: SearchRecord, reference: SearchRecord) -> list[int]:
    """The trials that differ from those of ``reference``, or exist in only one of the two."""
    found, expected = numbers(record), numbers(reference)
    return [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]


def twice_in_journal(folder: Path) -> list[tuple[Any, ...]]:
    """Suggestions, reports and ends that are in the journal more than once."""
    kinds = ("suggest", "report", "end")
    events = [event for event, _ in journal.read(folder) if event["event"] in kinds]
    counts = Counter((e["event"], e["trial"], e["step"] if e["event"] == "report" else None) for e in events)
    return [event for event, count in counts.items() if count > 1]


@dataclass(frozen=True)
class Compared:
    """MLflow compared with a journal: missing points, points that exist twice, and trials whose status differs."""

    lost: list[Any]
    doubled: list[Any]
    differing: list[Any]


NOTHING = Compared([], [], [])


def compare_with_mlflow(folder: Path, uri: str) -> Compared:
    """Every trial should be one run with the trial's status, and every metric of every report one point."""
    record = replay(folder)
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(record.search["name"])
    found = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    runs = {run.data.tags.get("ftae.trial"): run for run in found}
    lost: list[Any] = [n for n in record.trials if str(n) not in runs]
    doubled: list[Any] = [f"{len(found) - len(runs)} runs"] if len(found) > len(runs) else []
    differing: list[Any] = [] if runs[None].info.status == "FINISHED" else [runs[None].info.status]
    for number, trial in record.trials.items():
        if (run := runs.get(str(number))) is None:
            continue
        there = Counter(
            (key, point.step, point.value, point.timestamp)
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        )
        here = Counter(_points(trial))
        lost += [(number, *point) for point in here - there]
        doubled += [(number, *point) for point in there - here]
        if (run.info.status, run.data.tags["ftae.status"]) != (RUN_STATUS[trial.status], trial.status):
            differing.append((number, run.info.status, run.data.tags["ftae.status"]))
    return Compared(lost, doubled, differing)


def _points(trial: TrialRecord) -> list[tuple[str, int, float, int]]:
    return [
        (key, report["step"], value, int(1000 * report["time"]))
        for report in trial.reports
        for key, value in shown_values(report).items()
    ]


@dataclass
class Tally:
    """A row of the fault table. ``seconds``: from each fault until the search has recovered."""

    fault: str
    seconds: list[float] = field(default_factory=list)
    trials_lost: int = 0
    metrics_lost: int = 0
    metrics_doubled: int = 0

    def close(self, search_folder: Path, reference: SearchRecord, uri: str) -> None:
        """Count what was lost, and assert that nothing was."""
        record = replay(search_folder)
        lost, compared = lost_trials(record, reference), compare_with_mlflow(search_folder, uri)
        self.trials_lost, self.metrics_lost = len(lost), len(compared.lost)
        self.metrics_doubled = len(compared.doubled)
        assert lost == []
        assert twice_in_journal(search_folder) == []
        assert compared == NOTHING
        assert record.close is not None
        assert record.close.status == "complete"

    def __str__(self) -> str:
        counts = f"{len(self.seconds):5d} {self.trials_lost:11d} {self.metrics_lost:12d} {self.metrics_doubled:15d}"
        return f"{self.fault:56s} {counts} {median(self.seconds):8.1f} {max(self.seconds):8.1f}"
