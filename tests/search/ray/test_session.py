"""Ray as a command starts or joins it: each in a process of its own, since Ray reads its environment once."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftae.errors import FtaeError
from ftae.search.ray import session

# Prints what one worker is like, in the session that a search would have.
ASK = """
import json, os, sys
from ftae.errors import FtaeError
from ftae.search.ray.session import ray_session
import ray, signal

def worker():
    try:
        import stray
        found = True
    except ImportError:
        found = False
    return {"imports": found, "token": os.environ.get("RAY_AUTH_TOKEN"), "tune": os.environ["TUNE_GLOBAL_CHECKPOINT_S"]}

signal.signal(signal.SIGTERM, handler := lambda *_: None)
try:
    with ray_session() as own:
        kept = signal.getsignal(signal.SIGTERM) is handler and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        seen = ray.get(ray.remote(worker).remote())
        print(json.dumps({"own": own, "signals": kept, "address": ray.get_runtime_context().gcs_address, **seen}))
        print(json.dumps(None), flush=True)
        if len(sys.argv) > 1:
            sys.stdin.read()
    assert "TUNE_GLOBAL_CHECKPOINT_S" not in os.environ
except FtaeError as error:
    print(json.dumps(str(error)))
"""


def surroundings(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_", "FTAE_ALLOW"))}
    return kept | changes


def ask(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    (folder / "ask.py").write_text(ASK)
    (folder / "stray.py").write_text("")
    # By its path from elsewhere, so that the current folder is on the path of no process by itself.
    (folder / "here").mkdir(exist_ok=True)
    (folder / "here/stray.py").write_text("")
    command = [sys.executable, "-P", str(folder / "ask.py")]
    return subprocess.run(
        command, cwd=folder / "here", env=surroundings(**changes), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "address", [None, pytest.param("", marks=pytest.mark.faults), pytest.param("local", marks=pytest.mark.faults)]
)
def test_an_own_ray_has_a_token_and_no_folder_on_its_path(address: str | None, tmp_path: Path) -> None:
    asked = ask(tmp_path, **({} if address is None else {"RAY_ADDRESS": address}))
    assert asked.returncode == 0, asked.stderr
    seen = json.loads(asked.stdout.splitlines()[0])
    assert (seen["own"], seen["signals"], seen["imports"]) == (True, True, False)
    assert len(seen["token"]) == 64
    assert asked.stderr == ""


@pytest.mark.faults
def test_with_code_allowed_the_current_folder_is_on_the_path_of_workers(tmp_path: Path) -> None:
    asked = ask(tmp_path, FTAE_ALLOW_CODE="1")
    assert json.loads(asked.stdout.splitlines()[0])["imports"] is True


@pytest.mark.faults
def test_a_folder_for_temporary_files_may_be_too_long_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90) / ("y" * 60)
    deep.mkdir(parents=True)
    asked = ask(tmp_path, TMPDIR=str(deep))
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout.splitlines()[0])["own"] is True


def test_a_ray_that_cannot_start_says_why_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = ask(tmp_path, RAY_TMPDIR=str(tmp_path / "file"))  # where no folder can be made
    message = json.loads(asked.stdout)
    assert message.startswith("Ray cannot start on this machine: ")
    assert f"Its logs are in {tmp_path}/file/ray/session_latest/logs" in message
    assert "Traceback" not in asked.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address and the token of a cluster on this machine."""
    token = secrets.token_hex(32)
    (tmp_path / "ask.py").write_text(ASK)
    # Started as another person would, with a Ray of its own and a token that is known.
    environment = surroundings(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, TMPDIR=tempfile.gettempdir())
    command = [sys.executable, "-P", str(tmp_path / "ask.py"), "stay"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        yield json.loads(head.stdout.readline())["address"], token
        head.communicate()


@pytest.mark.faults
def test_a_cluster_is_joined_with_its_token_and_by_nobody_else(cluster: tuple[str, str], tmp_path: Path) -> None:
    address, token = cluster
    joined = ask(tmp_path, RAY_ADDRESS=address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert joined.returncode == 0, joined.stderr
    seen = json.loads(joined.stdout.splitlines()[0])
    assert (seen["own"], seen["imports"], seen["address"]) == (False, False, address)
    for wrong in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = ask(tmp_path, RAY_ADDRESS=address, **wrong)
        message = json.loads(refused.stdout)
        assert f"RAY_ADDRESS is '{address}'" in message
        assert "it wants another token: set RAY_AUTH_MODE=token" in message
        assert token not in message
        assert refused.stderr == ""


def test_who_is_no_ray_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "JOIN_SECONDS", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FtaeError, match="nothing that is Ray answered within 5 s"):
            session._check_reachable(address)
