"""A search's own Ray node has no more processes than it needs, and is left without a rest."""

import subprocess
import sys

import psutil
import pytest
import ray
from ray._private import services, utils
from ray._private.state import GlobalState

from ftae.search.own_node import UNUSED, Node, is_own, plain

# Says whose child processes there are while the cluster is up, and which are left over behind it.
CODE = """
import psutil, ray
from ftae.search.nodes import connecting
from ftae.search.own_node import is_own
from ftae.specs.models import ConvAe

assert not is_own()
with connecting(ConvAe(family="conv_ae")) as cluster:
    cluster()
    assert is_own()
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    children = psutil.Process().children(recursive=True)
    commands = " ".join(" ".join(child.cmdline()) for child in children)
print(commands)
print(*(child.pid for child in children))
"""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_it_starts_what_trials_need_only(lines: list[str]) -> None:
    started = lines[-2]
    assert "raylet" in started
    assert "gcs_server" in started
    assert not [name for name in ("dashboard/dashboard.py", "log_monitor.py", "monitor.py") if name in started]
    assert "dashboard/agent.py" in started
    assert "--minimal" in started


def test_nothing_of_it_is_left(lines: list[str]) -> None:
    left = [int(pid) for pid in lines[-1].split() if psutil.pid_exists(int(pid))]
    assert [pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE] == []


def test_other_nodes_are_started_whole() -> None:
    def parts() -> list[object]:
        return [*(getattr(Node, name) for name in UNUSED), utils.get_dashboard_dependency_error, services.get_node]

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
