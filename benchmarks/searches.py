"""Searches to measure: real, but for the engine, which is a formula (``benchmarks/curves.py``)."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import curves
from ftae.errors import TrainingFailed
from ftae.results.search_record import trial_folder
from ftae.search import driver
from ftae.search.coordinator import StateCoordinator
from ftae.search.progress import Progress
from ftae.search.ray import adapters
from ftae.search.ray.messages import Diverged, Message, Report, Start, from_json, to_json
from ftae.search.retention import Retention
from ftae.search.state import SearchState
from ftae.search.tracking_sync import TrackingSync
from ftae.specs import SearchSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.storage.store import Store, open_store
from ftae.tracking import tracker_for


def search_spec(num_trials: int, workers: int, storage: Path, tracking: str | None) -> SearchSpec:
    """A search with a space of seven leaves, whose trials report nine times unless they are stopped."""
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
            "search": {"num_trials": num_trials, "max_concurrent": workers, "storage": str(storage)},
            "tracking": {"uri": tracking},
        }
    )


def run_on_ray(spec: SearchSpec) -> None:
    """``run_search`` without the engine."""
    adapters.run_trial = curves.run_trial
    driver.run_search(spec)


def run_alone(spec: SearchSpec) -> None:
    """The calls that Tune would make, made by turns for as many trials as there are workers."""
    store = open_store(spec.search.storage, spec.name, "driver")
    store.write("search.yaml", b"")
    with Progress(spec) as progress:
        state = SearchState(spec, store, notify=progress.notify)
        tracking_sync = TrackingSync(store, lambda: tracker_for(spec, store), progress.notify)
        retention = Retention(state)
        progress.follow(state.record, 0.0)

        def on_change(number: int) -> None:
            progress.update(number)
            if state.record.trials[number].status != "running":
                retention.trial_ended(number)

        tracking_sync.start()
        coordinator = StateCoordinator(state, None, on_change, progress.notify)
        working = [_worker(spec, store, coordinator) for _ in range(spec.search.max_concurrent or 1)]
        while working and not coordinator.must_stop():
            working = [worker for worker in working if next(worker, False)]
        retention.close()
        retention.check()
        assert coordinator.failure is None, coordinator.failure
        state.close("complete")
        tracking_sync.finish(600.0)


def _worker(spec: SearchSpec, store: Store, coordinator: StateCoordinator) -> Iterator[bool]:
    """One trial after another, a message at a time."""
    while (trial := coordinator.assign()) is not None:
        workdir = store.folder / trial_folder(trial.number)
        for message in _messages(spec.trial_spec(trial.params), workdir):
            goes_on = coordinator.receive(trial.number, from_json(to_json(message)))
            yield True
            if not goes_on:
                break


def _messages(spec: FinetuneSpec, workdir: Path) -> Iterator[Message]:
    yield Start("here", os.getpid(), 0)
    try:
        for report in curves.finetune(spec, workdir):
            yield Report(**vars(report))
    except TrainingFailed as failure:
        yield Diverged(str(failure))


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server that keeps all it gets in ``folder``; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--allowed-hosts", "127.0.0.1:*"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", seconds=120.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with the workers that it started


def _wait_for(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
