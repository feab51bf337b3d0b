"""Starting and joining Ray, each in a new process, because Ray reads its token once per process."""

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

# Prints what a worker sees, in the session that a search would have. With an argument, the session waits for stdin.
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
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
try:
    with ray_session() as is_local:
        kept = signal.getsignal(signal.SIGTERM) is handler and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        seen = ray.get(ray.remote(worker).remote())
        address = ray.get_runtime_context().gcs_address
        print(json.dumps({"local": is_local, "signals": kept, "address": address, **seen}))
        print(json.dumps(None), flush=True)
        if len(sys.argv) > 1:
            sys.stdin.read()
    assert "TUNE_GLOBAL_CHECKPOINT_S" not in os.environ
except FtaeError as error:
    print(json.dumps(str(error)))
"""


def environment(**changes: str) -> dict[str, str]:
    """The variables of this process without what Ray, which other tests start in it, has set."""
    of_others = ("RAY_", "TUNE_", "FTAE_ALLOW", "PYTHONBREAKPOINT")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(of_others)}
    return kept | changes


def ask(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    (folder / "ask.py").write_text(ASK)
    (folder / "stray.py").write_text("")
    # Run from another folder, so that the current folder is on the import path of no process by itself.
    (folder / "here").mkdir(exist_ok=True)
    (folder / "here/stray.py").write_text("")
    command = [sys.executable, "-P", str(folder / "ask.py")]
    return subprocess.run(
        command, cwd=folder / "here", env=environment(**changes), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "address", [None, pytest.param("", marks=pytest.mark.faults), pytest.param("local", marks=pytest.mark.faults)]
)
def test_a_local_ray_has_a_token_and_no_folder_on_its_path(address: str | None, tmp_path: Path) -> None:
    asked = ask(tmp_path, **({} if address is None else {"RAY_ADDRESS": address}))
    assert asked.returncode == 0, asked.stderr
    seen = json.loads(asked.stdout.splitlines()[0])
    assert (seen["local"], seen["signals"], seen["imports"]) == (True, True, False)
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
    assert json.loads(asked.stdout.splitlines()[0])["local"] is True


def test_a_ray_that_cannot_start_is_one_message(tmp_path: Path) -> None:
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
    # A local Ray of another process, with a known token.
    variables = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, TMPDIR=tempfile.gettempdir())
    command = [sys.executable, "-P", str(tmp_path / "ask.py"), "stay"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        yield json.loads(head.stdout.readline())["address"], token
        head.communicate()


@pytest.mark.faults
def test_a_cluster_is_joined_with_its_token_and_not_without(cluster: tuple[str, str], tmp_path: Path) -> None:
    address, token = cluster
    joined = ask(tmp_path, RAY_ADDRESS=address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert joined.returncode == 0, joined.stderr
    seen = json.loads(joined.stdout.splitlines()[0])
    assert (seen["local"], seen["imports"], seen["address"]) == (False, False, address)
    for wrong in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        refused = ask(tmp_path, RAY_ADDRESS=address, **wrong)
        message = json.loads(refused.stdout)
        assert f"RAY_ADDRESS is '{address}'" in message
        assert "it wants another token: set RAY_AUTH_MODE=token" in message
        assert token not in message
        assert refused.stderr == ""


def test_an_address_where_no_ray_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "JOIN_SECONDS", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FtaeError, match="nothing that is Ray answered within 5 s"):
            session._check_reachable(address)


# Prints how the workers of two sessions authenticate, and which variables are new in and after the sessions.
IN_TURN = """
import json, os, sys

def own():
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    ray.get(ray.remote(lambda: None).remote())
    ray.shutdown()

import ray
if sys.argv[1] == "before":
    own()
from ftae.search.ray.session import ray_session
before = dict(os.environ)
for _ in range(2):
    with ray_session():
        found = ray.get(ray.remote(lambda: os.environ.get("RAY_AUTH_MODE")).remote())
        print(json.dumps([found, sorted(os.environ.keys() - before.keys())]))
print(json.dumps(sorted(os.environ.keys() - before.keys())))
if sys.argv[1] == "after":
    own()
"""


OF_RAY = ["PYTHONBREAKPOINT"]  # every ``ray.init`` sets it, and leaves it


@pytest.mark.faults
@pytest.mark.parametrize("own", ["before", "after"])
def test_two_searches_and_the_users_own_ray_follow_each_other_in_one_process(own: str, tmp_path: Path) -> None:
    """The user has imported Ray before, and uses a local Ray before or after the searches."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, own],
        env=environment(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *sessions, left = [json.loads(line) for line in done.stdout.splitlines()]
    assert [mode for mode, _ in sessions] == ["token", "token"]
    assert all("TUNE_GLOBAL_CHECKPOINT_S" in added for _, added in sessions)
    assert left == ([] if own == "before" else [*OF_RAY, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"])
    assert (tmp_path / ".ray").exists() is (own == "before"), "a search writes no token into the user's home folder"
