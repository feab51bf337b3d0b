"""Searches on a real cluster that asks for a token, steered from outside by the command line."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from builders import search_dict

from ftae.storage import journal

SEARCH = search_dict(
    **{
        "finetune.data.classes": ...,
        "finetune.ema_half_life_fraction": 0.1,
        "finetune.batch_size": 512,
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search.num_trials": 3,
        "search.max_concurrent": 1,
    }
)
pytestmark = pytest.mark.faults  # a driver that dies, and whoever starts the next one
MARK = "FTAE_TEST"  # a variable by which the processes of this file are known


@dataclass
class Result:
    status: int
    out: str
    err: str


class User:
    """Somebody outside the cluster at ``address``, with a folder of files and the cluster's token."""

    def __init__(self, folder: Path, address: str, token: str) -> None:
        self.folder, self.address, self.token = folder, address, token
        (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}
        return subprocess.Popen(
            [sys.executable, "-m", "ftae", *arguments],
            cwd=self.folder,
            env=without_ray() | known | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ftae(self, *arguments: str, **environment: str) -> Result:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=600)
        return Result(process.returncode, out, err)

    def submit(self, *arguments: str) -> Result:
        """With this interpreter: the cluster's PATH may know another."""
        return self.ftae("submit", "search.yaml", "--python", sys.executable, *arguments)

    def events(self, search: str) -> list[dict[str, Any]]:
        folder = self.folder / "searches" / search
        return [event for event, _ in journal.read(folder)] if (folder / journal.FILE_NAME).exists() else []

    def wait_for_trial(self, search: str, number: int) -> None:
        wait_until(lambda: any(e["event"] == "report" and e["trial"] >= number for e in self.events(search)))

    def processes(self, text: str) -> list[psutil.Process]:
        """Those of the cluster with this in their command."""
        mark, found = str(self.folder), []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and text in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FTAE_"))}


def wait_until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder, token = tmp_path_factory.mktemp("user"), secrets.token_hex(32)
    scratch = tempfile.mkdtemp(prefix="ftae-")  # short: sockets below it have names of limited length
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[1] / "job_cluster.py"), scratch],
        env=without_ray() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, MARK: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = next(line for line in process.stdout if line.startswith("http://")).strip()
        yield User(folder, address, token)
    finally:
        process.stdin.close()
        process.wait(600)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class Story:
    refused: Result
    followed: Result


@pytest.fixture(scope="module")
def story(user: User) -> Story:
    """A search whose first driver is killed in its first trial, while the user looks on."""
    following = user.start("submit", "search.yaml", "--python", sys.executable, "--follow")
    user.wait_for_trial("small", 1)
    [driver] = user.processes("ftae search - --attempt 1")
    driver.suspend()  # or it may be done before it is killed
    refused = user.submit("--set", "search.seed=1")
    driver.kill()
    out, err = following.communicate(timeout=600)
    return Story(refused, Result(following.returncode, out, err))


def test_a_search_that_runs_is_not_submitted_again(story: Story) -> None:
    assert (story.refused.status, story.refused.out) == (1, "")
    assert story.refused.err.startswith("error: attempt 1 of small is running since ")
    assert "stop it (ftae stop small), or give the new search another name" in story.refused.err


def test_a_driver_that_dies_is_followed_by_another(story: Story, user: User) -> None:
    assert (story.followed.status, story.followed.out) == (0, "small\n")
    said = story.followed.err
    assert said.startswith(f"job small-a1 is submitted to the cluster at {user.address}: see ftae status small, ")
    assert "small: attempt 1\nsmall: checking data and model" in said
    assert "killed by signal 9 (Killed); the next attempt is on its way\nsmall: attempt 2\nsmall: checking data" in said
    assert "3/3 trials done" in said
    assert "tensorboard" not in said.lower(), "Tune's own words, of a folder that is gone"
    assert "ftae-tune" not in said
    assert said.splitlines()[-1].startswith("small: best is trial ")
    wait_until(lambda: user.processes("ray::Watcher") == [])


def test_every_trial_is_run_once(story: Story, user: User) -> None:
    events = user.events("small")
    for kind in ("suggest", "end"):
        assert [e["trial"] for e in events if e["event"] == kind] == [0, 1, 2, 3]
    reports = [(e["trial"], e["step"]) for e in events if e["event"] == "report"]
    assert reports == [(0, 0), *((trial, step) for trial in (1, 2, 3) for step in (0, 4, 8, 12))]
    assert [e["status"] for e in events if e["event"] == "close"] == ["complete"]


def test_status_and_list_join_jobs_and_journal(story: Story, user: User) -> None:
    status = json.loads(user.ftae("status", "small", "--json").out)
    assert (status["search"], status["state"], status["last_line"]) == ("small", "complete", None)
    assert (status["progress"]["done"], status["progress"]["num_trials"]) == (3, 3)
    assert [(a["job"], a["status"], a["reason"]) for a in status["attempts"]] == [
        ("small-a1", "FAILED", "killed by signal 9 (Killed)"),
        ("small-a2", "SUCCEEDED", None),
    ]
    assert status in json.loads(user.ftae("list", "--json").out)["searches"]
    shutil.move(user.folder / "searches", user.folder / "away")
    try:
        unseen = json.loads(user.ftae("status", "small", "--json").out)
    finally:
        shutil.move(user.folder / "away", user.folder / "searches")
    assert (unseen["state"], unseen["progress"]) == ("succeeded", None)
    assert unseen["last_line"].startswith("small: best is trial ")


def test_logs_are_the_drivers_own_words(story: Story, user: User) -> None:
    for number in ("1", "2"):
        lines = user.ftae("logs", "small", "--attempt", number).out.splitlines()
        assert lines[:2] == [f"small: attempt {number}", "small: checking data and model, then starting Ray"]
    assert lines[-1].startswith("small: best is trial ")


def test_a_search_that_is_done_is_only_extended(story: Story, user: User) -> None:
    again, resumed, stopped = user.submit(), user.ftae("resume", "small"), user.ftae("stop", "small")
    assert (again.status, resumed.status, stopped.status) == (1, 1, 1)
    assert f"{user.folder}/searches already contains a search small. Continue it (ftae resume small)" in again.err
    assert resumed.err.endswith("small has finished all its 3 trials; to add trials: ftae extend small --trials N\n")
    assert stopped.err.startswith("error: small is not running: attempt 2 of small ended in order at ")


def test_the_token_is_told_to_nobody(story: Story, user: User) -> None:
    headers = {"Authorization": f"Bearer {user.token}"}
    told = requests.get(f"{user.address}/api/jobs/", headers=headers, timeout=30).text
    told += "".join(user.ftae("logs", "small", "--attempt", number).out for number in ("1", "2"))
    assert all(f"small-a{number}" in told for number in (1, 2))
    assert user.token not in told
    files = [path for path in (user.folder / "searches").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if user.token.encode() in path.read_bytes()]


def test_without_its_token_a_cluster_tells_nothing(user: User) -> None:
    nowhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}  # what is given outranks it
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        result = user.ftae("list", "--address", user.address, **nowhere, **environment)
        assert (result.status, result.out) == (1, "")
        [line] = result.err.splitlines()
        assert line.startswith(f"error: the cluster at {user.address} wants a token: set RAY_AUTH_MODE=token, and ")


def test_what_is_not_there_is_said(user: User) -> None:
    result = user.ftae("logs", "none")
    assert result.status == 1
    assert f"error: the cluster at {user.address} has no search 'none'; " in result.err
    result = user.ftae("list", "--address", "http://127.0.0.1:9")
    assert (result.status, len(result.err.splitlines())) == (1, 1)
    assert "error: no Ray cluster answers at http://127.0.0.1:9; name its dashboard, such as " in result.err


# ----------------------------------------------------------------------------------------- slow ones


@pytest.mark.slow
def test_a_search_is_stopped_resumed_and_extended(user: User) -> None:
    submitted = user.submit("--set", "name=long", "--set", "search.num_trials=8")
    assert (submitted.status, submitted.out) == (0, "long\n")
    user.wait_for_trial("long", 1)
    stopped = user.ftae("stop", "long")
    assert stopped.status == 0
    first, trials, *_, attempt = stopped.out.splitlines()
    assert (first, trials.split()[2:4]) == ("long: interrupted", ["of", "8"])
    assert attempt.startswith("attempt 1    stopped ")
    assert stopped.err.endswith("to continue: ftae resume long\n")
    log = user.ftae("logs", "long").out
    assert log.endswith("long is not complete (stopped by the user); to continue: ftae resume long\n")
    assert "8/8 trials done" in user.ftae("resume", "long", "--follow").err
    assert "10/10 trials done" in user.ftae("extend", "long", "--trials", "2", "--follow").err
    ended = [e["trial"] for e in user.events("long") if e["event"] == "end"]
    assert ended == list(range(11))
    confirmed = user.ftae("confirm", "long", "--seeds", "1", "--top", "2", "--follow")
    assert confirmed.status == 0
    assert len([e for e in user.events("long") if e["event"] == "end" and e["trial"] >= 100_000]) == 2
    closed = [(e["status"], e["reason"]) for e in user.events("long") if e["event"] == "close"]
    assert closed == [("interrupted", "stopped by the user"), *[("complete", None)] * 3]


@pytest.mark.slow
def test_a_fault_to_mend_is_not_tried_again(user: User) -> None:
    sets = ["--set", "name=faulty", "--set", "search.resources.cpus=64", "--set", "search.wait_for_nodes_minutes=0"]
    result = user.submit(*sets, "--follow")
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("error: attempt 1 of faulty failed at ")
    mended = user.submit("--set", "name=faulty", "--set", "search.num_trials=1", "--follow")
    assert mended.status == 0
    assert "faulty: attempt 2\n" in mended.err


@pytest.mark.slow
def test_attempts_are_bounded_and_resume_begins_them_anew(user: User) -> None:
    user.submit("--set", "name=doomed", "--max-attempts", "2")
    for attempt in (1, 2):
        wait_until(lambda: user.processes(f"ftae search - --attempt {attempt}") != [])  # noqa: B023
        user.wait_for_trial("doomed", attempt)
        user.processes(f"ftae search - --attempt {attempt}")[0].send_signal(signal.SIGKILL)
    wait_until(lambda: user.processes("ray::Watcher") == [])
    status = json.loads(user.ftae("status", "doomed", "--json").out)
    assert (status["state"], [a["status"] for a in status["attempts"]]) == ("killed", ["FAILED", "FAILED"])
    resumed = user.ftae("resume", "doomed", "--follow")
    assert resumed.status == 0
    assert "3/3 trials done" in resumed.err


@pytest.mark.slow
def test_a_watcher_that_dies_comes_back(user: User) -> None:
    user.submit("--set", "name=watched")
    user.wait_for_trial("watched", 1)
    [watcher] = user.processes("ray::Watcher")
    watcher.kill()
    [driver] = user.processes("ftae search - --attempt 1")
    driver.kill()
    wait_until(lambda: user.processes("ftae search - --attempt 2") != [])
    assert user.ftae("logs", "watched", "-f").status == 0
