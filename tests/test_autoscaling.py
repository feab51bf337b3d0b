"""A cluster without workers grows for a search and shrinks after it: Ray's own autoscaler, nodes of this machine."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftae.results.replay import replay
from ftae.storage import journal

SEARCH: dict[str, Any] = {
    "name": "grows",
    "finetune": {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0, "kl": 1e-3},
        "optimizer": {"lr": 1e-3},
        "batch_size": 512,
        "max_steps": 12,
        "num_evals": 3,
        "metrics": ["psnr"],
    },
    "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search": {"num_trials": 6, "scheduler": {"name": "fifo"}, "max_concurrent": 3, "seed": 0},
}
WORKERS = 3
IDLE_SECONDS = 6.0
# Prints the number of workers, whenever it changes, with the seconds since the start.
OBSERVER = """
import json, os, time, ray
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
start, last = time.monotonic(), None
while True:
    workers = sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())
    if workers != last:
        print(json.dumps([round(time.monotonic() - start, 1), workers]), flush=True)
    last = workers
    time.sleep(0.2)
"""


@dataclass
class Machine:
    """Starts processes, in ``folder`` and with ``environment``, and leaves none behind."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen[str]:
        log = (self.folder / f"{len(self.started)}.log").open("w+")
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"{self.started.index(process)}.log").read_text()

    def left_over(self) -> list[int]:
        """The processes that still run of all those started here, by the variable they inherited."""
        mark, found = f"FTAE_TEST={self.folder}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:  # gone meanwhile, or another user's
                continue
        return found

    def clean_up(self) -> None:
        while pids := self.left_over():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for process in self.started:
            process.wait()


def free_ports(number: int) -> list[int]:
    listeners = [socket.socket() for _ in range(number)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports: list[int] = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def autoscaling(port: int) -> dict[str, Any]:
    """A cluster file whose nodes are processes of this machine. Ray's launcher would fill in all that is empty."""
    empty: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
    empty |= {key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")}
    empty |= {f"{role}_{what}": [] for role in ("head", "worker") for what in ("setup_commands", "start_ray_commands")}
    return empty | {
        "cluster_name": "grows",
        "max_workers": WORKERS,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": "f" * 51 + "00000",
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": WORKERS},
        },
    }


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with a head node, which has no room for a trial, and an autoscaler."""
    port, client, metrics, agent, grpc = free_ports(5)
    sockets = tempfile.mkdtemp(prefix="ftae-")  # a short path, as sockets need
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(autoscaling(port)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "FTAE_TEST": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",  # version 2 wants a file that Ray's wheel lacks
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    found = Machine(tmp_path, environment)
    options = {"port": port, "ray-client-server-port": client, "metrics-export-port": metrics}
    options |= {"dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": grpc}
    options |= {"num-cpus": 0, "include-dashboard": "false", "object-store-memory": 100_000_000}
    options |= {"temp-dir": sockets, "autoscaling-config": "cluster.yaml"}
    head = found.start("ray", "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items()))
    deadline = time.monotonic() + 600
    try:
        while "Ray runtime started" not in found.said(head):
            assert head.poll() is None, found.said(head)
            assert time.monotonic() < deadline, found.said(head)
            time.sleep(0.1)
        yield found
    finally:
        found.clean_up()
        shutil.rmtree(sockets)


def counts(machine: Machine, observer: subprocess.Popen[str]) -> list[tuple[float, int]]:
    """What the observer has seen so far: seconds, and the number of workers from then on."""
    return [tuple(json.loads(line)) for line in machine.said(observer).splitlines() if line.startswith("[")]


def wait_for_none(machine: Machine, observer: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not (seen := counts(machine, observer)) or seen[-1][1] > 0:
        assert observer.poll() is None, machine.said(observer)
        assert time.monotonic() < deadline, machine.said(observer)
        time.sleep(0.2)


@pytest.mark.slow
def test_a_cluster_grows_for_a_search_and_shrinks_after_it(machine: Machine) -> None:
    (machine.folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    observer = machine.start(sys.executable, "-c", OBSERVER)
    wait_for_none(machine, observer)
    driver = machine.start(sys.executable, "-m", "ftae", "search", "search.yaml")
    assert driver.wait(600) == 0, machine.said(driver)
    wait_for_none(machine, observer)
    seen = counts(machine, observer)
    assert max(workers for _, workers in seen) >= WORKERS, seen

    folder = machine.folder / "searches" / "grows"
    record = replay(folder)
    assert record.close is not None
    assert record.close.status == "complete"
    assert {number: trial.status for number, trial in record.trials.items()} == dict.fromkeys(range(7), "finished")
    events = [event for event, _ in journal.read(folder)]
    assert sorted(e["trial"] for e in events if e["event"] == "suggest") == list(range(7))
    reports = [(e["trial"], e["step"]) for e in events if e["event"] == "report"]
    assert sorted(reports) == [(0, 0), *((trial, step) for trial in range(1, 7) for step in (0, 4, 8, 12))]
