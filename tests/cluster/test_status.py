"""The status of a search: from its journal, and from the attempts of its jobs."""

from typing import Any

import pytest
from fake_cluster import FakeCluster, cluster_spec, submitted

from ftae.cluster.jobs import attempts
from ftae.cluster.status import describe, lines, row, state
from ftae.results.search_record import SearchRecord
from ftae.results.summary import progress


def record(close: str | None = None, *statuses: str) -> SearchRecord:
    found = SearchRecord(search=cluster_spec().model_dump(mode="json"))
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
    cluster: Any = FakeCluster()
    if job is not None:
        submitted(cluster)
        cluster.end("small-a1", job)
    assert state(attempts(cluster), record(close)) == expected


def test_without_a_visible_journal_the_status_is_that_of_the_job() -> None:
    cluster: Any = FakeCluster()
    submitted(cluster)
    status = describe("small", attempts(cluster), None, "trial 1 finished")
    assert (status["state"], status["progress"], status["last_line"]) == ("pending", None, "trial 1 finished")
    assert lines(status)[:2] == ["small: pending", "log          trial 1 finished"]
    assert {key: value for key, value in row(status).items() if key != "began"} == {
        "search": "small",
        "state": "pending",
        "attempt": 1,
        "trials": None,
        "full trainings": None,
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
        "budget": None,
        "used_budget": 3.0,
        "step": None,
        "max_steps": None,
        "metric": "val/psnr",
        "best": {"trial": 1, "value": 21.0},
        "baseline": 20.0,
        "began": 100.0,
        "newest_event": 113.0,
    }
    running = lines(describe("small", [], found))
    assert running[:4] == [
        "small: running or killed",
        "trials       2 of 3 done, 1 running, 1 pruned",
        "budget       3 full trainings used",
        "best         trial 1, val/psnr 21.0000; baseline 20.0000 (+1.0000)",
    ]
    left = lines(describe("small", [], record("interrupted", "running")))
    assert (left[1], left[3]) == (
        "trials       0 of 3 done, 1 unfinished",
        "best         no full trial yet; baseline 20.0000",
    )


def test_a_budget_takes_the_place_of_the_number_of_trials() -> None:
    found = record(None, "finished", "pruned", "running")
    found.search["search"]["budget"] = 4.5
    status = describe("small", [], found)
    assert lines(status)[1:3] == [
        "trials       2 done, 1 running, 1 pruned",
        "budget       3 of 4.5 full trainings used",
    ]
    assert (row(status)["trials"], row(status)["full trainings"]) == ("2", "3/4.5")
    found.search["search"]["budget"] = 2.0
    assert lines(describe("small", [], found))[2] == "budget       3 (2 asked for since) full trainings used"


def test_a_search_that_has_only_begun_has_a_status() -> None:
    empty = SearchRecord(search=cluster_spec().model_dump(mode="json"))
    status = describe("small", [], empty)
    assert lines(status) == [
        "small: running or killed",
        "trials       0 of 3 done",
        "budget       0 full trainings used",
        "best         no full trial yet",
    ]
    assert row(status)["began"] is None


def test_a_production_run_shows_its_steps() -> None:
    run = cluster_spec().model_dump(mode="json") | {"search_space": {}, "search": {"num_trials": 1}}
    found = SearchRecord(search={})
    found.apply({"event": "open", "time": 100.0, "kind": "production", "search": run})
    found.apply({"event": "suggest", "time": 100.0, "trial": 1, "kind": "file", "params": {}})
    for step in (0, 4):
        report = {"step": step, "value": 20.0 + step, "metrics": {"val/psnr": 20.0 + step}, "checkpoint": None}
        found.apply({"event": "report", "time": 101.0 + step, "trial": 1, **report})
    assert lines(describe("small", [], found))[:3] == [
        "small: running or killed",
        "steps        4 of 12",
        "best         no full trial yet; baseline 20.0000",
    ]
