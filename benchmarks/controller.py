"""What the driver of a search costs, and whether that grows with the number of trials.

    python -m benchmarks.controller [--trials N] [--workers N] [--mlflow http] [--without-ray] [--json FILE]
    python -m benchmarks.controller --stock [--trials 40] [--repeats 5] [--json FILE]

The engine is replaced by a formula; Ray, Tune, Optuna, rungs, journal (with its fsync), retention, and the
tracking_sync with a server it reaches by HTTP are real. ``--without-ray`` makes the calls that Tune would make.
Prints a row for each tenth of the trials; Ctrl-C ends the search and prints those that are over. ``--stock`` holds
the driver against Tune's with its own MLflow callback (``stock.py``).
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import curves, stock
from benchmarks.meter import Meter, Reading
from benchmarks.searches import mlflow_server, run_alone, run_on_ray, search_spec
from benchmarks.stock import compare
from ftae.search import tracking_sync as tracking_sync
from ftae.search.coordinator import StateCoordinator
from ftae.search.curves.curve_sampler import CurveSampler
from ftae.search.curves.forecast_scheduler import ForecastScheduler
from ftae.search.progress import Progress
from ftae.search.ray.messages import Assignment
from ftae.search.retention import Retention
from ftae.search.sampler import OptunaSampler
from ftae.search.scheduler import SuccessiveHalving
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME, Journal

ASIDE = ("deleting", "tracking")  # by threads of their own
DRIVER = ("propose", "sampler", "scheduler", "journal", "state", "progress", "retention")
PARTS = (*DRIVER, *ASIDE, "Ray's threads", "rest")


def watched() -> Meter:
    """A meter of all that the driver does for a report; what is left is Tune's, or the formula's."""
    meter = Meter()
    for sampler in (CurveSampler, OptunaSampler):
        meter.watch("propose", sampler, "propose")
        meter.watch("sampler", sampler, "adopt", "report", "end")
    for scheduler in (ForecastScheduler, SuccessiveHalving):
        meter.watch("scheduler", scheduler, "stop", "record")
    meter.watch("journal", Journal, "append_all")
    meter.watch("state", StateCoordinator, "assign", "receive", "must_stop")
    meter.watch("state", SearchState, "report")
    meter.watch("progress", Progress, "update")
    meter.watch("retention", Retention, "trial_ended")
    meter.watch("deleting", Retention, "_delete")
    meter.watch("tracking", tracking_sync, "send_new")
    return meter


class Marks:
    """The meter and the journal's size whenever a search comes to a new tenth of its trials.

    With ``ships``, MLflow is waited for then, so that the cost of its part falls into the same window.
    """

    def __init__(self, meter: Meter, num_trials: int, ships: bool) -> None:
        self._size = num_trials // 10
        self._readings: list[tuple[Reading, int]] = []
        next_trial = SearchState.next_trial

        def watched(state: SearchState) -> Assignment | None:
            num_trials = len(state.record.trials) - 1  # but for the baseline
            if num_trials == len(self._readings) * self._size:
                while ships and tracking_sync.unsent(state.store):
                    time.sleep(0.5)
                self._readings.append((meter.read(), state.writer.journal.path.stat().st_size))
            return next_trial(state)

        SearchState.next_trial = watched

    def windows(self) -> Iterator[dict[str, Any]]:
        """What each window took: CPU milliseconds per report, bytes per trial, and what there was at its end."""
        for tenth, ((before, begin), (after, end)) in enumerate(pairwise(self._readings), start=1):
            used = after - before
            reports = used.calls["state.report"]
            used.parts["Ray's threads"] = used.cpu - used.main_thread - sum(used.parts[part] for part in ASIDE)
            used.parts["rest"] = used.cpu - sum(used.parts.values())
            yield {
                "trials": f"{(tenth - 1) * self._size + 1}-{tenth * self._size}",
                "reports": reports,
                "cpu_ms_per_report": {part: 1000.0 * used.parts[part] / reports for part in PARTS},
                "all_cpu_ms_per_report": 1000.0 * used.cpu / reports,
                "wall_ms_per_report": 1000.0 * used.wall / reports,
                "journal_bytes_per_trial": (end - begin) / self._size,
                "journal_bytes": end,
                "peak_mb": after.peak_mb,
            }


def resumption(spec: SearchSpec, journal: Path, num_bytes: int) -> dict[str, float]:
    """What a new process needs to be ready to go on with the first bytes of a journal: CPU seconds, memory."""
    with tempfile.TemporaryDirectory() as folder, journal.open("rb") as file:
        (Path(folder) / FILE_NAME).write_bytes(file.read(num_bytes))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_resume, (spec.model_dump(mode="json"), folder))


def _resume(search: dict[str, Any], folder: str) -> dict[str, float]:
    spec, memory = SearchSpec.model_validate(search), psutil.Process().memory_info
    begin, before = time.process_time(), memory().rss
    state = SearchState(spec, FolderStore(Path(folder)))
    taken = {"resume_seconds": time.process_time() - begin, "resume_mb": (memory().rss - before) / 2**20}
    state.close("interrupted")
    return taken


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a window; times of the parts are the driver's CPU milliseconds per report."""
    shown = Table("trials", "reports", *PARTS, "all, ms", "wall, ms", "KB/trial", "peak MB", "resume s", "resume MB")
    for row in rows:
        times = [f"{row['cpu_ms_per_report'][part]:.2f}" for part in PARTS]
        times += [f"{row['all_cpu_ms_per_report']:.2f}", f"{row['wall_ms_per_report']:.1f}"]
        sizes = [f"{row['journal_bytes_per_trial'] / 1000:.2f}", f"{row['peak_mb']:.0f}"]
        resumed = [f"{row['resume_seconds']:.2f}", f"{row['resume_mb']:.0f}"]
        shown.add_row(row["trials"], str(row["reports"]), *times, *sizes, *resumed)
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="compare with Tune's own MLflow callback")
    parser.add_argument("--repeats", type=int, default=5, help="of the comparison")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mlflow", choices=["none", "embedded", "http"], default="none")
    parser.add_argument("--pictures", action="store_true", help="every report has one, as in a real search")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def measure(given: argparse.Namespace, storage: Path) -> list[dict[str, Any]]:
    """Run the search that was asked for in ``storage``; returns a row for each window."""
    if given.mlflow == "none":
        tracking_sync.TrackingSync.start = lambda self: None
    if given.pictures:
        os.environ[curves.PICTURES] = "1"  # the workers inherit it
    marks = Marks(watched(), given.trials, ships=given.mlflow != "none")
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        uri = stack.enter_context(mlflow_server(storage)) if given.mlflow == "http" else None
        spec = search_spec(given.trials, given.workers, storage, uri)
        (run_alone if given.without_ray else run_on_ray)(spec)
    journal = storage / spec.name / FILE_NAME
    return [row | resumption(spec, journal, row["journal_bytes"]) for row in marks.windows()]


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        rows = compare(given.trials, given.repeats, Path(folder)) if given.stock else measure(given, Path(folder))
    Console(width=220).print(stock.table(rows) if given.stock else table(rows))
    if given.json is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps(machine | vars(given) | {"rows": rows}, indent=2, default=str))


if __name__ == "__main__":
    main()
