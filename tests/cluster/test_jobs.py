"""The jobs of a search, with a list of jobs in place of the cluster's HTTP API."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, cluster_spec, submitted

from ftae.cluster import jobs
from ftae.cluster.jobs import attempts, connect, follow, log, newest, stop, submit
from ftae.errors import FtaeError
from ftae.specs.files import dump

NASTY = """it's "$HOME" `id` $(id) \\ \t; 'END_OF_SEARCH'
END_OF_SEARCH
umlaut: ä, - dash # no comment"""


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTAE_ALLOW_CODE")
    for name in ("LOG_SECONDS", "SUCCESSOR_SECONDS"):
        monkeypatch.setattr(jobs, name, 0.001)


# -------------------------------------------------------------------------------------- one attempt


def test_an_attempt_is_a_job_of_its_own() -> None:
    cluster: Any = FakeCluster()
    first, second = submitted(cluster), submitted(cluster, number=2, resume=True)
    submit(cluster, cluster_spec("other"), number=1, resume=False, python="python", last=1)
    assert attempts(cluster, "small") == [first, second]
    assert [a.job for a in attempts(cluster)] == ["small-a1", "other-a1", "small-a2"]
    assert first.spec() == cluster_spec()
    assert (first.storage, first.python, first.last, first.started) == ("/shared/searches", "python3", 3, 1.0)
    assert first.entrypoint.startswith("exec python3 -P -m ftae search - --attempt 1 <<'END_OF_SEARCH'\nname: small\n")
    assert second.entrypoint.startswith("exec python3 -P -m ftae search - --attempt 2 --resume <<")
    job = cluster.jobs["small-a1"]
    assert job.runtime_env == {"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    with pytest.raises(FtaeError, match="somebody else has just submitted small-a2; see ftae status small"):
        submitted(cluster, number=2)


def test_a_refusal_of_the_cluster_is_passed_on() -> None:
    cluster: Any = FakeCluster()
    cluster.submit_job = cluster.refuse
    with pytest.raises(FtaeError, match="the cluster refuses the job small-a1: 500: no"):
        submitted(cluster)


def test_code_may_run_there_only_if_it_may_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTAE_ALLOW_CODE", "1")
    cluster: Any = FakeCluster()
    assert "ftae search - --attempt 1 --allow-code <<" in submitted(cluster).entrypoint


def test_the_shell_passes_on_any_spec_unchanged(tmp_path: Path) -> None:
    cluster: Any = FakeCluster()
    cat = tmp_path / "it's a cat"
    cat.write_text("#!/bin/sh\ncat\n")
    cat.chmod(0o755)
    nasty = cluster_spec(source=NASTY)
    submit(cluster, nasty, number=1, resume=False, python=str(cat), last=1)
    [attempt] = attempts(cluster)
    got = subprocess.run(attempt.entrypoint, shell=True, capture_output=True, check=True, text=True)
    assert (got.stdout, got.stderr) == (dump(nasty), "")
    assert attempt.spec() == nasty


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "died", "reason"),
    [
        ("RUNNING", None, "Job is currently running.", False, None),
        ("SUCCEEDED", 0, "Job finished successfully.", False, None),
        ("STOPPED", None, "Job was intentionally stopped.", False, None),
        ("FAILED", 1, "failed with exit code 1\nlast\nerror: no such folder\n", False, "no such folder"),
        ("FAILED", 130, "failed with exit code 130\nnot complete", False, "not complete"),
        ("FAILED", -9, "failed with exit code -9\nmany lines", True, "killed by signal 9 (Killed)"),
        ("FAILED", None, "Job supervisor actor died: gone\nmore", True, "Job supervisor actor died: gone"),
        ("FAILED", None, "", True, "the cluster gives no reason"),
    ],
)
def test_what_became_of_an_attempt(
    status: str, exit_code: int | None, message: str, died: bool, reason: str | None
) -> None:
    cluster: Any = FakeCluster()
    submitted(cluster)
    cluster.end("small-a1", status, exit_code, message)
    [attempt] = attempts(cluster)
    assert (attempt.died, attempt.reason) == (died, reason)
    assert attempt.has_successor is died
    assert attempt.is_over is (status != "RUNNING")
    assert (reason or "attempt 1 of small") in attempt.description()


def test_the_last_attempt_has_no_successor() -> None:
    cluster: Any = FakeCluster()
    submitted(cluster, last=1)
    cluster.end("small-a1", "FAILED", -9)
    [attempt] = attempts(cluster)
    assert attempt.died
    assert not attempt.has_successor
    assert newest(cluster, "small") == attempt


def test_newest_waits_for_the_successor_of_an_attempt_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SUCCESSOR_SECONDS", 60.0)
    cluster: Any = FakeCluster()
    submitted(cluster)
    cluster.end("small-a1", "FAILED", -9)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            submitted(cluster, number=2)

    monkeypatch.setattr(jobs.time, "sleep", sleep)
    found = newest(cluster, "small")
    assert found is not None
    assert (found.job, len(waits)) == ("small-a2", 2)
    assert newest(cluster, "other") is None


# --------------------------------------------------------------------------------------------- logs


def test_a_log_is_followed_once_through_every_fault() -> None:
    cluster: Any = FakeCluster(
        ("PENDING", None, ""),
        ("RUNNING", None, "one\n"),
        RuntimeError("Request failed with status code 500"),
        ConnectionError("away"),
        ("RUNNING", None, "one\ntwo"),
        ("SUCCEEDED", 0, "one\ntwo\nthree\n"),
    )
    said: list[str] = []
    last = follow(cluster, submitted(cluster), said.append)
    assert "".join(said) == "one\ntwo\nthree\n"
    assert last.status == "SUCCEEDED"


def test_following_ends_when_the_cluster_stays_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    cluster: Any = FakeCluster(*[ConnectionError("away")] * 1000)
    with pytest.raises(FtaeError, match="the cluster cannot be reached; the search may still be running: away"):
        follow(cluster, submitted(cluster), lambda text: None)


def test_the_log_of_a_job_that_never_began_is_what_ray_wrote() -> None:
    cluster: Any = FakeCluster()
    attempt = submitted(cluster)
    cluster.get_job_logs = lambda job: "runtime_env setup failed: no such image"
    assert log(cluster, attempt) == ""
    cluster.end("small-a1", "FAILED")
    assert log(cluster, attempts(cluster)[0]) == "runtime_env setup failed: no such image"


def test_stopping_waits_until_the_driver_has_left() -> None:
    cluster: Any = FakeCluster(("RUNNING", None, ""), ("RUNNING", None, ""), ("STOPPED", None, ""))
    assert stop(cluster, submitted(cluster)).status == "STOPPED"
    assert cluster.states == []


# ---------------------------------------------------------------------------------------- connecting


def test_an_unreachable_cluster_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:10")
    with pytest.raises(
        FtaeError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9; name its dashboard"
    ) as error:
        connect("http://127.0.0.1:9")
    assert len(str(error.value).splitlines()) == 1
