"""Waiting for nodes that version 2 of Ray's autoscaler adds, as processes of this machine."""

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
from pathlib import Path
from typing import Any

import pytest
import yaml

HEAD = "f" * 51 + "00000"
WAIT = """
import json, sys

import ray

from ftae.errors import FtaeError
from ftae.search.ray.nodes import nodes_with_room, wait_for_room
from ftae.specs.search.resources import Resources

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
notes = []
for cpus, seconds in ((2, 600.0), (5, 15.0)):
    try:
        wait_for_room(Resources(cpus=cpus), seconds, notes.append)
        notes.append(len(nodes_with_room(Resources(cpus=cpus))))
    except FtaeError as error:
        notes.append(str(error))
print(json.dumps(notes))
"""


def cluster_file(address: str) -> dict[str, Any]:
    """A head without room, and nodes of 2 CPUs on demand. Ray's launcher usually fills in the empty values."""
    empty: dict[str, Any] = {key: {} for key in ("auth", "docker", "file_mounts")}
    empty |= {key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")}
    empty |= {f"{role}_{what}": [] for role in ("head", "worker") for what in ("setup_commands", "start_ray_commands")}
    return empty | {
        "cluster_name": "grows",
        "max_workers": 2,
        "file_mounts_sync_continuously": False,
        "provider": {
            # As an external provider, because version 2 needs a file for its own name that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }


@pytest.fixture
def environment() -> dict[str, str]:
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | settings


@pytest.fixture
def address(environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that grows."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ftae-"))  # a short path, as sockets need
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster_file(address)))
    options = {"port": port, "num-cpus": 0, "include-dashboard": "false", "temp-dir": folder}
    options |= {"autoscaling-config": folder / "cluster.yaml"}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
            + [f"--{key}={value}" for key, value in options.items()],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 600
    while "Ray runtime started" not in (folder / "log").read_text():
        assert time.monotonic() < deadline
        assert head.poll() is None
        time.sleep(0.1)
    yield address
    os.killpg(head.pid, signal.SIGKILL)  # its nodes, too, which are in the same session
    head.wait()
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_driver_waits_for_a_node_and_gives_up_in_time(environment: dict[str, str], address: str) -> None:
    waiting = subprocess.run([sys.executable, "-c", WAIT, address], env=environment, capture_output=True, text=True)
    assert waiting.returncode == 0, waiting.stderr
    asked, has_room, asked_more, refused = json.loads(waiting.stdout)
    assert asked == (
        "search.resources.cpus: a trial asks for 2, the largest node of the cluster has 0 CPUs; "
        "waiting for up to 10 min 0 s for nodes (search.wait_for_nodes_minutes)"
    )
    assert has_room == 1
    assert asked_more.startswith(
        "search.resources.cpus: a trial asks for 5, the largest node of the cluster has 2 CPUs"
    )
    assert "and no node with room was added in " in refused
    assert refused.endswith("or raise search.wait_for_nodes_minutes")
