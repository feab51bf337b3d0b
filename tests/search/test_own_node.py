"""A search's own Ray node has no more processes than it needs, and is left without a rest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private import services
from ray._private.state import GlobalState

from ftae.search import agent_stand_in
from ftae.search.own_node import STAND_IN, STARTS_AGENTS, UNUSED, Node, is_own, plain
from tests.faults.running import wait_until

# Says whose child processes there are while the cluster is up, and which are left over behind it.
CODE = """
import json, psutil, ray
from ftae.search.nodes import connecting
from ftae.search.own_node import is_own
from ftae.specs.models import ConvAe

assert not is_own()
with connecting(ConvAe(family="conv_ae")) as cluster:
    cluster()
    assert is_own()
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    children = psutil.Process().children(recursive=True)
    commands = [child.cmdline() for child in children if child.status() != psutil.STATUS_ZOMBIE]
print(json.dumps({"commands": commands, "pids": [child.pid for child in children]}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_it_starts_what_trials_need_only(told: dict[str, Any]) -> None:
    programs = [Path(command[0]).name for command in told["commands"]]
    assert "raylet" in programs
    assert "gcs_server" in programs
    running = " ".join(part for command in told["commands"] for part in command)
    assert not [name for name in ("dashboard/dashboard.py", "log_monitor.py", "monitor.py") if name in running]
    agents = [command for command in told["commands"] if command[0] == sys.executable and "agent" in " ".join(command)]
    assert [command[3] for command in agents] == [agent_stand_in.__file__] * 2


def test_nothing_of_it_is_left(told: dict[str, Any]) -> None:
    left = [pid for pid in told["pids"] if psutil.pid_exists(pid)]
    assert [pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE] == []


# Starts an agent as a raylet does, and says its pid.
RAYLET = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).pid, flush=True)
time.sleep(600)
"""


def test_an_agent_says_that_it_has_no_ports_and_ends_with_its_raylet(tmp_path: Path) -> None:
    command = [*STAND_IN, "agent.py", "--node-id=7", f"--session-dir={tmp_path}", "--minimal"]
    with subprocess.Popen([sys.executable, "-c", RAYLET, *command], stdout=subprocess.PIPE, text=True) as raylet:
        assert raylet.stdout is not None
        its = psutil.Process(int(raylet.stdout.readline()))
        wait_until(lambda: len(list(tmp_path.glob("*_port_7"))) == len(agent_stand_in.PORTS))
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
            f"{n}_7": "-1" for n in agent_stand_in.PORTS
        }
        assert its.is_running()
        raylet.kill()
    wait_until(lambda: not its.is_running() or its.status() == psutil.STATUS_ZOMBIE)


def test_other_nodes_are_started_whole() -> None:
    def parts() -> list[object]:
        return [*(getattr(Node, name) for name in UNUSED), services.get_node, getattr(services, STARTS_AGENTS)]

    before = parts()
    with plain():
        assert [getattr(Node, name)() for name in UNUSED] == [None] * 3
        assert not set(parts()) & set(before)
    assert parts() == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_is_seen_as_soon_as_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ray.get_runtime_context()
    looks = 0

    def is_up(cluster: GlobalState) -> list[dict[str, str]]:
        nonlocal looks
        looks += 1
        return [{"NodeID": context.get_node_id()}] if looks == 3 else []

    monkeypatch.setattr(GlobalState, "node_table", is_up)
    node_info = services.get_node(context.gcs_address, context.get_node_id())
    with plain():
        assert services.get_node(context.gcs_address, context.get_node_id()) == node_info
    assert looks == 3


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_this_process_started_is_its_own() -> None:
    assert is_own()
