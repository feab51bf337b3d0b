"""The jobs of a search and their status, with the cluster's HTTP API played by a list of jobs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus

from ftae.cluster import jobs
from ftae.cluster.jobs import LOG_BEGINS, Attempt, attempts, connect, follow, log, newest, stop, submit
from ftae.cluster.status import describe, lines, progress, row, state
from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord
from ftae.specs import SearchSpec
from ftae.specs.files import dump

NASTY = """it's "$HOME" `id` $(id) \\ \t; 'END_OF_SEARCH'
END_OF_SEARCH
umlaut: ä, - dash # no comment"""


def spec(name: str = "small", source: str = "photos") -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": name,
            "finetune": {
                "model": {"family": "conv_ae"},
                "data": {"source": "image_folder", "train": source, "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3},
                "max_steps": 12,
                "num_evals": 3,
                "metrics": ["psnr"],
            },
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0}},
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "search": {"num_trials": 3, "storage": "/shared/searches"},
        }
    )


class Cluster:
    """What JobSubmissionClient does, on jobs that run nothing: each look finds the next of ``states``.

    A state is (status, exit code, what was written so far), or an error of the connection.
    """

    def __init__(self, *states: tuple[str, int | None, str] | Exception) -> None:
        self.jobs: dict[str, JobDetails] = {}
        self.states = list(states)
        self.log = ""

    def submit_job(self, *, submission_id: str, **sent: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError("500: no")
        begun = 1000 * (1 + len(self.jobs))
        details = {"type": "SUBMISSION", "status": "PENDING", "start_time": begun}
        self.jobs[submission_id] = JobDetails(submission_id=submission_id, **details, **sent)
        return submission_id

    def refuse(self, **details: Any) -> str:
        raise RuntimeError("500: no")

    def list_jobs(self) -> list[JobDetails]:
        return [JobDetails(type="DRIVER", status="RUNNING", entrypoint="other"), *self.jobs.values()]

    def get_job_info(self, job: str) -> JobDetails:
        if self.states:
            now = self.states.pop(0)
            if isinstance(now, Exception):
                raise now
            status, exit_code, self.log = now
            self.end(job, status, exit_code)
        if job not in self.jobs:
            raise RuntimeError("404")
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        sent = self.jobs[job].entrypoint
        return f"Whatever Ray says of {job}: {sent}\n{LOG_BEGINS}\n{self.log}" if self.log else ""

    def stop_job(self, job: str) -> bool:
        return True

    def end(self, job: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        update = {"status": JobStatus(status), "driver_exit_code": exit_code, "message": message}
        self.jobs[job] = self.jobs[job].model_copy(update=update)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTAE_ALLOW_CODE")
    for name in ("LOG_SECONDS", "SUCCESSOR_SECONDS"):
        monkeypatch.setattr(jobs, name, 0.001)


def submitted(cluster: Any, number: int = 1, last: int = 3, resume: bool = False) -> Attempt:
    submit(cluster, spec(), number=number, resume=resume, python="python3", last=last)
    return attempts(cluster, "small")[-1]


# -------------------------------------------------------------------------------------- one attempt


def test_an_attempt_is_a_job_of_its_own() -> None:
    cluster: Any = Cluster()
    first, second = submitted(cluster), submitted(cluster, number=2, resume=True)
    submit(cluster, spec("other"), number=1, resume=False, python="python", last=1)
    assert attempts(cluster, "small") == [first, second]
    assert [a.job for a in attempts(cluster)] == ["small-a1", "other-a1", "small-a2"]
    assert first.spec() == spec()
    assert (first.storage, first.python, first.last, first.started) == ("/shared/searches", "python3", 3, 1.0)
    assert first.entrypoint.startswith("exec python3 -P -m ftae search - --attempt 1 <<'END_OF_SEARCH'\nname: small\n")
    assert second.entrypoint.startswith("exec python3 -P -m ftae search - --attempt 2 --resume <<")
    job = cluster.jobs["small-a1"]
    assert job.runtime_env == {"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    with pytest.raises(FtaeError, match="small-a2 was submitted by somebody else just now; see ftae status small"):
        submitted(cluster, number=2)


def test_a_job_that_the_cluster_refuses_is_told_in_its_words() -> None:
    cluster: Any = Cluster()
    cluster.submit_job = cluster.refuse
    with pytest.raises(FtaeError, match="the cluster refuses the job small-a1: 500: no"):
        submitted(cluster)


def test_code_may_run_there_only_if_it_may_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTAE_ALLOW_CODE", "1")
    cluster: Any = Cluster()
    assert "ftae search - --attempt 1 --allow-code <<" in submitted(cluster).entrypoint


def test_the_shell_passes_any_spec_on_as_it_is(tmp_path: Path) -> None:
    cluster: Any = Cluster()
    cat = tmp_path / "it's a cat"
    cat.write_text("#!/bin/sh\ncat\n")
    cat.chmod(0o755)
    nasty = spec(source=NASTY)
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
    cluster: Any = Cluster()
    submitted(cluster)
    cluster.end("small-a1", status, exit_code, message)
    [attempt] = attempts(cluster)
    assert (attempt.died, attempt.reason) == (died, reason)
    assert attempt.has_successor is died
    assert attempt.is_over is (status != "RUNNING")
    assert (reason or "attempt 1 of small") in attempt.told()


def test_the_last_attempt_has_no_successor() -> None:
    cluster: Any = Cluster()
    submitted(cluster, last=1)
    cluster.end("small-a1", "FAILED", -9)
    [attempt] = attempts(cluster)
    assert attempt.died
    assert not attempt.has_successor
    assert newest(cluster, "small") == attempt


def test_the_attempt_after_one_that_died_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SUCCESSOR_SECONDS", 60.0)
    cluster: Any = Cluster()
    submitted(cluster)
    cluster.end("small-a1", "FAILED", -9)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            submitted(cluster, number=2)

    monkeypatch.setattr(jobs.time, "sleep", sleep)
    found = newest(cluster, "small")
    assert found is not None
    assert (found.job, len(looks)) == ("small-a2", 2)
    assert newest(cluster, "other") is None


# --------------------------------------------------------------------------------------------- logs


def test_a_log_is_followed_once_through_every_fault() -> None:
    cluster: Any = Cluster(
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


def test_following_gives_up_when_the_cluster_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.01)
    cluster: Any = Cluster(*[ConnectionError("away")] * 1000)
    with pytest.raises(FtaeError, match="the cluster is out of reach, the search may go on: away"):
        follow(cluster, submitted(cluster), lambda text: None)


def test_what_ray_says_of_a_job_that_never_began_is_shown() -> None:
    cluster: Any = Cluster()
    attempt = submitted(cluster)
    cluster.get_job_logs = lambda job: "runtime_env setup failed: no such image"
    assert log(cluster, attempt) == ""
    cluster.end("small-a1", "FAILED")
    assert log(cluster, attempts(cluster)[0]) == "runtime_env setup failed: no such image"


def test_stopping_waits_until_the_driver_has_left() -> None:
    cluster: Any = Cluster(("RUNNING", None, ""), ("RUNNING", None, ""), ("STOPPED", None, ""))
    assert stop(cluster, submitted(cluster)).status == "STOPPED"
    assert cluster.states == []


# ------------------------------------------------------------------------------------------- status


def record(close: str | None = None, *statuses: str) -> SearchRecord:
    found = SearchRecord(search=spec().model_dump(mode="json"))
    for number, status in enumerate(["finished", *statuses]):
        kind = "sampled" if number else "baseline"
        found.apply({"event": "suggest", "time": 100.0 + number, "trial": number, "kind": kind, "params": {}})
        value = 20.0 + number
        report = {"step": 12, "value": value, "metrics": {"val/psnr": value}, "checkpoint": None}
        found.apply({"event": "report", "time": 110.0 + number, "trial": number, **report})
        if status != "running":
            end = {"status": status, "reason": None}
            found.apply({"event": "end", "time": 110.5 + number, "trial": number, **end})
    if close is not None:
        found.apply({"event": "close", "time": 200.0, "status": close, "reason": None})
    return found


@pytest.mark.parametrize(
    ("job", "close", "expected"),
    [
        (None, "complete", "complete"),
        (None, None, "running or killed"),
        ("PENDING", None, "pending"),
        ("RUNNING", "interrupted", "running"),
        ("STOPPED", "interrupted", "interrupted"),
        ("FAILED", None, "killed"),
        ("FAILED", "failed", "failed"),
    ],
)
def test_the_state_of_a_search(job: str | None, close: str | None, expected: str) -> None:
    cluster: Any = Cluster()
    if job is not None:
        submitted(cluster)
        cluster.end("small-a1", job)
    assert state(attempts(cluster), record(close)) == expected


def test_where_the_journal_is_out_of_sight_the_job_tells() -> None:
    cluster: Any = Cluster()
    submitted(cluster)
    status = describe("small", attempts(cluster), None, "trial 1 finished")
    assert (status["state"], status["progress"], status["last_line"]) == ("pending", None, "trial 1 finished")
    assert lines(status)[:2] == ["small: pending", "log          trial 1 finished"]
    assert {key: value for key, value in row(status).items() if key != "began"} == {
        "search": "small",
        "state": "pending",
        "attempt": 1,
        "trials": None,
        "metric": None,
        "best": None,
        "baseline": None,
    }


def test_progress_counts_tuned_trials() -> None:
    found = record(None, "finished", "pruned", "running")
    assert progress(found) == {
        "num_trials": 3,
        "done": 2,
        "running": 1,
        "finished": 1,
        "pruned": 1,
        "diverged": 0,
        "failed": 0,
        "metric": "val/psnr",
        "best": {"trial": 1, "value": 21.0},
        "baseline": 20.0,
        "began": 100.0,
        "newest_event": 113.0,
    }
    running = lines(describe("small", [], found))
    assert running[:3] == [
        "small: running or killed",
        "trials       2 of 3 done, 1 running, 1 pruned",
        "best         trial 1, val/psnr 21.0000; baseline 20.0000 (+1.0000)",
    ]
    left = lines(describe("small", [], record("interrupted", "running")))
    assert left[1:3] == ["trials       0 of 3 done, 1 unfinished", "best         no full trial yet; baseline 20.0000"]


def test_a_search_that_has_only_begun_has_a_status() -> None:
    empty = SearchRecord(search=spec().model_dump(mode="json"))
    status = describe("small", [], empty)
    assert lines(status) == ["small: running or killed", "trials       0 of 3 done", "best         no full trial yet"]
    assert row(status)["began"] is None


# ---------------------------------------------------------------------------------------- connecting


def test_a_cluster_out_of_reach_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:10")
    with pytest.raises(
        FtaeError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9; name its dashboard"
    ) as error:
        connect("http://127.0.0.1:9")
    assert len(str(error.value).splitlines()) == 1
