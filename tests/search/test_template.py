"""Workers of an own cluster are copies of one process, and start without it where it is of no use."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftae.errors import FtaeError
from ftae.search import template_client
from ftae.search.check import checkpoint_bytes
from ftae.search.template import template
from ftae.search.template_client import SOCKET
from ftae.specs import SearchSpec

SEARCH = {
    "name": "small",
    "finetune": {
        "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 6,
        "metrics": ["psnr"],
    },
    "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    "objective": {"metric": "val/psnr", "direction": "maximize"},
}
TOO_DEEP = SEARCH | {"search_space": {"freeze_depth": {"low": 0, "high": 99}}}

# Says what came of two checks, and who a worker is: before its template dies, and after that. Then it waits.
CODE = """
import json, os, socket, sys, time
from ftae.search.template import template
from ftae.specs import SearchSpec

search = json.loads(sys.argv[1])
spec = SearchSpec.model_validate(search)
with template(spec):
    import ftae.search.driver, psutil, ray
    from ftae.errors import FtaeError
    from ftae.search.check import checkpoint_bytes
    from ftae.search.nodes import connecting

    size = checkpoint_bytes(spec, 10)
    try:
        checkpoint_bytes(SearchSpec.model_validate(json.loads(sys.argv[2])), 10)
    except FtaeError as error:
        wrong = str(error)
    imported = "torch" in sys.modules

    class Worker:
        def facts(self):
            import numpy
            return {
                "pid": os.getpid(),
                "parent": os.getppid(),
                "imported": "ftae.search.trial" in sys.modules,
                "job": os.environ["RAY_JOB_ID"],
                "drawn": os.urandom(8).hex(),
                "group": os.getpgid(0),
            }

    with socket.socket(socket.AF_UNIX) as dies:  # over its request
        dies.connect(os.environ["FTAE_TEMPLATE"])
        socket.send_fds(dies, [b"+"], [0, 1, 2])
        dies.sendall(b'{"command": ["half of')

    def worker():
        actor = ray.remote(num_cpus=1)(Worker).remote()
        return actor, ray.get(actor.facts.remote())

    with connecting(spec.finetune.model) as cluster:
        cluster()
        its = [child for child in psutil.Process().children() if "ftae.search.template" in child.cmdline()]
        copies = [worker(), worker()]
        its[0].kill()
        its[0].wait()
        ray.kill(copies[0][0])
        anew = worker()
        print(json.dumps({
            "checked": [size, wrong, imported],
            "template": its[0].pid,
            "copies": [facts for _, facts in copies],
            "anew": anew[1],
            "workers": [copies[1][1]["pid"], anew[1]["pid"]],
        }), file=sys.__stdout__, flush=True)
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Any]]:
    """What a driver says, which is killed behind the first tests."""
    driver = subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(SEARCH), json.dumps(TOO_DEEP)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    assert driver.stderr is not None
    line = driver.stdout.readline()
    assert line, driver.stderr.read()
    yield json.loads(line) | {"driver": driver.pid}
    driver.kill()
    driver.communicate()


def test_a_copy_checks_the_models_of_a_search(told: dict[str, Any]) -> None:
    size, wrong, imported = told["checked"]
    assert size == checkpoint_bytes(SearchSpec.model_validate(SEARCH), 10), "as this process finds it"
    with pytest.raises(FtaeError, match="freeze_depth") as here:
        checkpoint_bytes(SearchSpec.model_validate(TOO_DEEP), 10)
    assert wrong == str(here.value)
    assert not imported, "the driver does without torch"


def test_workers_are_copies_that_have_imported_what_trials_need(told: dict[str, Any]) -> None:
    assert [copy["parent"] for copy in told["copies"]] == [told["template"]] * 2
    assert all(copy["imported"] for copy in told["copies"])


def test_a_copy_is_a_process_of_its_own(told: dict[str, Any]) -> None:
    first, second = told["copies"]
    assert first["pid"] != second["pid"]
    assert first["drawn"] != second["drawn"]
    assert len({first["group"], second["group"], os.getpgid(0)}) == 3


def test_without_the_template_a_worker_starts_as_ray_has_it(told: dict[str, Any]) -> None:
    assert told["anew"]["parent"] != told["template"]
    assert told["anew"]["imported"]


def test_no_copy_outlives_a_driver_that_is_killed(told: dict[str, Any]) -> None:
    os.kill(told["driver"], signal.SIGKILL)
    deadline = time.monotonic() + 60.0
    while left := [pid for pid in told["workers"] if _runs(pid)]:
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("address", "resources"), [("somewhere:6379", {}), (None, {"gpus": 1})])
def test_there_is_none_for_other_clusters_and_for_gpus(
    address: str | None, resources: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with template(SearchSpec.model_validate(SEARCH | {"search": {"resources": resources}})):
        assert SOCKET not in os.environ


# ------------------------------------------------------------------------------------- what the raylet runs


def _client(tmp_path: Path, *arguments: str, listening: str | None) -> subprocess.Popen[str]:
    """The client, beside a stand-in of Ray's that says what it is given."""
    (tmp_path / "setup_worker.py").write_text("import sys; print('anew', *sys.argv[1:])")
    command = [sys.executable, template_client.__file__, "-s", str(tmp_path / "default_worker.py"), *arguments]
    environment = dict(os.environ) | ({} if listening is None else {SOCKET: listening})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("listening", [None, "nobody"])
def test_a_client_that_finds_no_template_does_as_ray_would(listening: str | None, tmp_path: Path) -> None:
    out, _ = _client(tmp_path, "--worker-id=7", listening=listening).communicate()
    assert out.split() == ["anew", "-s", str(tmp_path / "default_worker.py"), "--worker-id=7"]


def test_a_client_hands_over_all_that_the_copy_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_preload_python_modules", "json,ftae.search.preload")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "template"))
        listening.listen()
        client = _client(tmp_path, "--worker-id=7", "--language=PYTHON", listening=str(tmp_path / "template"))
        asking, _ = listening.accept()
        with asking:
            _, streams, _, _ = socket.recv_fds(asking, 1, 3)
            with asking.makefile("rb") as file:
                request = json.load(file)
            os.write(streams[1], b"by the copy")
            for stream in streams:
                os.close(stream)
            asking.sendall(b"+")
        out, _ = client.communicate()
    assert out == "by the copy"
    assert request["command"] == [str(tmp_path / "default_worker.py"), "--worker-id=7"]
    assert request["modules"] == ["json", "ftae.search.preload"]
    assert request["environment"][SOCKET] == str(tmp_path / "template")
    assert request["folder"] == str(Path.cwd())
    assert request["group"] == os.getpgid(0)
