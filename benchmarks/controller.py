"""What the driver of a search costs, and whether that grows with the number of trials.

    python -m benchmarks.controller [--trials N] [--workers N] [--without-ray] [--mlflow] [--pictures] [--json FILE]

The engine is replaced by curves (``benchmarks/curves.py``); Ray, Tune, Optuna, rungs, journal (with its fsync),
retention and, with ``--mlflow``, the shipper and a server it reaches by HTTP are real. ``--without-ray`` drives
the search's state directly, from one process. Prints a table of windows, each a tenth of the trials.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ftae.search  # noqa: F401  # sets what Ray reads while it is imported
from benchmarks import curves
from benchmarks.meter import Meter, Reading
from ftae.engine.probe import Probe
from ftae.errors import TrainingFailed
from ftae.journal import FILE_NAME, Journal
from ftae.search import shipper
from ftae.search.adapters import Coordinator
from ftae.search.progress import Progress
from ftae.search.retention import Retention
from ftae.search.rungs import Rungs
from ftae.search.state import Assignment, SearchState
from ftae.search.study import Study
from ftae.specs import SearchSpec
from ftae.storage import Store

PROBE = Probe(step_seconds=0.1, eval_seconds=1.0, peak_bytes=2**28, memory_bytes=None, device="cpu", node="here")
PARTS = ("propose", "study", "rungs", "journal", "state", "progress", "retention", "Tune", "shipper", "other threads")
WINDOWS = (1, 5, 10)  # of ten


def search_spec(trials: int, workers: int, storage: Path, tracking: str | None) -> SearchSpec:
    """A search of the size and with the space of a real one."""
    return SearchSpec.model_validate(
        {
            "name": "controller",
            "finetune": {
                "model": {"family": "conv_vae"},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0, "kl": 1e-4},
                "optimizer": {"lr": 1e-4, "lr_multipliers": {"encoder": 0.1}, "weight_decay": 1e-4},
                "max_steps": 800,
                "num_evals": 8,
                "metrics": ["psnr", "ssim", "kl"],
            },
            "search_space": {
                "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
                "optimizer.lr_multipliers.encoder": {"low": 0.03, "high": 0.3, "log": True},
                "optimizer.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
                "losses.kl": {"low": 1e-6, "high": 1e-2, "log": True},
                "losses.tv": {"choices": [0.0, 1e-4, 1e-3]},
                "freeze_depth": {"low": 0, "high": 3},
                "max_grad_norm": {"choices": [0.1, 0.5, 1.0, None]},
            },
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "search": {"num_trials": trials, "max_concurrent": workers, "storage": str(storage)},
            "tracking": {"uri": tracking},
        }
    )


# ------------------------------------------------------------------------------------------- measuring


def watched() -> Meter:
    """A meter of everything that the driver does for a report."""
    meter = Meter()
    meter.watch("propose", Study, "propose")
    meter.watch("study", Study, "adopt", "report", "tell")
    meter.watch("rungs", Rungs, "goes_on")
    meter.watch("journal", Journal, "append")
    meter.watch("state", Coordinator, "assign", "message", "must_stop")
    meter.watch("state", SearchState, "report")
    meter.watch("progress", Progress, "update")
    meter.watch("retention", Retention, "ended")
    meter.watch("shipper", shipper, "ship_new")
    return meter


class Marks:
    """The meter and the journal's size at the beginning and end of each window."""

    def __init__(self, meter: Meter, trials: int) -> None:
        self._meter, self._trials = meter, trials
        self.readings: dict[int, tuple[Reading, int]] = {}
        self._next_trial = SearchState.next_trial

    def install(self) -> None:
        """Read the meter whenever a search comes to a new tenth of its trials."""

        def next_trial(state: SearchState) -> Assignment | None:
            tenth, rest = divmod(len(state.record.trials) - 1, max(1, self._trials // 10))
            if rest == 0 and tenth not in self.readings:
                self.readings[tenth] = self._meter.read(), state.journal.path.stat().st_size
            return self._next_trial(state)

        SearchState.next_trial = next_trial  # type: ignore[method-assign]

    def windows(self) -> Iterator[dict[str, Any]]:
        """What each window took, as a row of the table."""
        size = self._trials // 10
        for tenth in WINDOWS:
            (before, start), (after, end) = self.readings[tenth - 1], self.readings[tenth]
            used = after - before
            reports = used.calls["state.report"]
            parts = used.parts
            parts["other threads"] = used.cpu - used.main_thread - parts["shipper"]
            parts["Tune"] = used.cpu - sum(parts.values())
            yield {
                "trials": f"{(tenth - 1) * size + 1}-{tenth * size}",
                "reports": reports,
                "ms_per_report": {part: 1000.0 * parts[part] / reports for part in PARTS},
                "total_ms_per_report": 1000.0 * used.cpu / reports,
                "wall_ms_per_report": 1000.0 * used.wall / reports,
                "journal_bytes_per_trial": (end - start) / size,
                "peak_mb": after.peak_mb,
                "journal_bytes": end,
            }


def resumption(spec: SearchSpec, journal: Path, num_bytes: int) -> dict[str, float]:
    """What it takes a new process to be ready to go on with the beginning of a journal."""
    with tempfile.TemporaryDirectory() as folder:
        with journal.open("rb") as file:
            (Path(folder) / FILE_NAME).write_bytes(file.read(num_bytes))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_resume, (spec.model_dump(mode="json"), folder))


def _resume(search: dict[str, Any], folder: str) -> dict[str, float]:
    begin, before = time.process_time(), _resident_mb()
    SearchState(SearchSpec.model_validate(search), Store(Path(folder)))
    return {"resume_cpu_seconds": time.process_time() - begin, "resume_mb": _resident_mb() - before}


def _resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --------------------------------------------------------------------------------------------- running


def run_on_ray(spec: SearchSpec) -> None:
    """The public path, but for the engine and for what would look at the machine."""
    from ftae.search import driver

    driver.run_trial = curves.run_trial
    driver.preflight = lambda *_: PROBE
    driver.run_search(spec)


def run_alone(spec: SearchSpec) -> None:
    """What Tune would call, called in turns for as many trials as there are workers."""
    store = Store(Path(spec.search.storage) / spec.name)
    store.folder.mkdir(parents=True)
    with Progress(spec) as progress:
        state = SearchState(spec, store)
        retention = Retention(state)
        progress.follow(state.record)

        def on_change(number: int) -> None:
            progress.update(number)
            if state.record.trials[number].status != "running":
                retention.ended(number)

        coordinator = Coordinator(state, None, on_change, progress.say)
        shipping = shipper.Shipper(store, lambda: shipper.tracker_of(spec, store), progress.say)
        if spec.tracking.uri is not None:
            store.write("search.yaml", b"")
            shipping.start()
        running: list[Iterator[None]] = []
        while True:
            begun = (_worker(spec, store, coordinator) for _ in range(spec.search.max_concurrent - len(running)))
            running += [worker for worker in begun if next(worker, "over") is None]
            if not running:
                break
            running = [worker for worker in running if next(worker, "over") is None]
            if coordinator.must_stop():
                raise coordinator.failure or AssertionError("the baseline failed")
        state.close("complete")
        shipping.finish(600.0)


def _worker(spec: SearchSpec, store: Store, coordinator: Coordinator) -> Iterator[None]:
    """One trial, a message at a time."""
    trial = coordinator.assign()
    if trial is None:
        return
    number = trial["number"]
    coordinator.message(number, {"start": {"node": "here", "pid": os.getpid(), "step": 0}})
    yield
    try:
        for report in curves.finetune(spec.trial_spec(trial["params"]), store.folder / f"trials/{number:04d}"):
            if not coordinator.message(number, json.loads(json.dumps({"report": vars(report)}))):
                return
            yield
    except TrainingFailed as failure:
        coordinator.message(number, {"diverged": str(failure)})


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server with its database in ``folder``; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--allowed-hosts", "127.0.0.1:*"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with the workers that it started


def _wait_for(ready: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


# ------------------------------------------------------------------------------------------- reporting


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a window; times are the driver's CPU milliseconds per report."""
    shown = Table("trials", "reports", *PARTS, "all, ms", "wall, ms", "journal, KB/trial", "peak, MB", "resume, s")
    for row in rows:
        times = [f"{row['ms_per_report'][part]:.2f}" for part in PARTS]
        totals = [f"{row['total_ms_per_report']:.2f}", f"{row['wall_ms_per_report']:.1f}"]
        sizes = [f"{row['journal_bytes_per_trial'] / 1000:.2f}", f"{row['peak_mb']:.0f}"]
        shown.add_row(row["trials"], str(row["reports"]), *times, *totals, *sizes, f"{row['resume_cpu_seconds']:.2f}")
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--mlflow", action="store_true", help="ship to a server started here")
    parser.add_argument("--pictures", action="store_true", help="every report has a picture")
    parser.add_argument("--json", type=Path, help="write the rows there")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.pictures:
        os.environ[curves.PICTURES] = "1"
    meter = watched()
    marks = Marks(meter, given.trials)
    marks.install()
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        storage = Path(folder)
        spec = search_spec(given.trials, given.workers, storage, None)
        run = run_alone if given.without_ray else run_on_ray
        if given.mlflow:
            with mlflow_server(storage) as uri:
                run(search_spec(given.trials, given.workers, storage, uri))
        else:
            run(spec)
        journal = storage / spec.name / FILE_NAME
        rows = [row | resumption(spec, journal, row["journal_bytes"]) for row in marks.windows()]
    Console(width=200).print(table(rows))
    if given.json is not None:
        setting = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps({**setting, **vars(given), "json": None, "windows": rows}, indent=2))


if __name__ == "__main__":
    main()
