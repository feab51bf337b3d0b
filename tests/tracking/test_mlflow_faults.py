"""MLflow when something is wrong: deleted runs, wrong addresses, and a real server that goes away and comes back."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from made_up_search import MadeUpRun, MadeUpSearch, artifacts_of, free_port, picture, points_of, runs_of
from mlflow import MlflowClient

from ftae.tracking import Outcome, TrackingUnavailable, store_uri

ROOT = Path(__file__).parents[2]


def test_a_trial_deleted_in_the_ui_does_not_stop_the_rest(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "deleted-run")
    search.open()
    search.suggest(1)
    search.suggest(2)
    tracker = search.tracker()
    tracker.send(search.events)
    client.delete_run(runs_of(client, "deleted-run")["trial-0001"].info.run_id)
    more = [search.report(1, 50), search.report(2, 50)]
    tracker.send(more)
    assert len(points_of(client, runs_of(client, "deleted-run")["trial-0001"])) == 1
    assert len(points_of(client, runs_of(client, "deleted-run")["trial-0002"])) == 1


def test_of_a_run_that_was_created_twice_the_empty_one_is_deleted(storage: Path, client: MlflowClient) -> None:
    search = MadeUpSearch(storage, "twice")
    search.open()
    search.suggest(1, params={"lr": 0.1})
    search.tracker().send(search.events)
    run = runs_of(client, "twice")["trial-0001"]
    client.create_run(run.info.experiment_id, run.info.start_time - 1, dict(run.data.tags))
    search.tracker().send([search.report(1, 50)])
    assert runs_of(client, "twice")["trial-0001"].info.run_id == run.info.run_id


def test_a_deleted_experiment_is_refused_for_good(storage: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    search = MadeUpSearch(storage, "gone")
    search.open()
    with pytest.raises(TrackingUnavailable, match=r"'gone' is deleted.*tracking\.experiment") as caught:
        search.tracker().send(search.events)
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("uri", "permanent"),
    [
        ("http://jane:s3cret-%40x@127.0.0.1:{port}", False),
        ("postgresql+nodriver://jane:s3cret-@x@127.0.0.1:{port}/mlflow?password=s3cret-2", True),
        ("http://jane:s3cret-{long}@127.0.0.1:{port}", False),
        ("sqlite:///{folder}", False),
        ("ftp://jane:s3cret-%40x@127.0.0.1:{port}", True),
        ("runs/mlflow", True),
    ],
)
def test_what_cannot_be_reached_says_so_and_keeps_secrets(tmp_path: Path, uri: str, permanent: bool) -> None:
    search = MadeUpSearch(tmp_path, "away")
    search.open()
    with pytest.raises(TrackingUnavailable) as caught:
        search.tracker(uri.format(port=free_port(), folder=tmp_path, long="x" * 600)).send(search.events)
    assert caught.value.permanent is permanent
    assert str(caught.value).startswith("MLflow at ")
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert len(str(caught.value)) <= 500


def test_first_runs_on_a_new_store_are_silent_and_may_be_several_at_once(tmp_path: Path) -> None:
    """In processes of their own: no output, nothing in the current folder, no half-made tables."""
    code = (
        "import os, sys; from pathlib import Path; from made_up_search import MadeUpRun\n"
        "run = MadeUpRun(Path(sys.argv[1]), f'r{os.getpid()}', Path(sys.argv[2]))\n"
        "tracking = run.spec.tracking.model_copy(update={'experiment': 'e'})\n"
        "run.spec = run.spec.model_copy(update={'tracking': tracking})\n"
        "run.open(); run.report(1, 0); run.close('complete')\n"
        "tracker = run.tracker(); print('ready', flush=True); input()\n"
        "tracker.send(run.events)"
    )
    here, storage = tmp_path / "here", tmp_path / "new" / "storage"
    here.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(storage), str(tmp_path / f"run-{number}")],
            cwd=here,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=600) for process in processes] == [("", "")] * 2
    assert list(here.iterdir()) == []
    client = MlflowClient(store_uri(None, storage))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 2


# ----------------------------------------------------------------------------------------------- server


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A server on ``folder``; ends with its workers at the end of the block."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--allowed-hosts", "127.0.0.1:*"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 600
        while not is_healthy(uri):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a group of its own: the server and the workers it started
        process.wait()


def is_healthy(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=30).ok
    except requests.RequestException:
        return False


@pytest.mark.slow  # tests/faults has more of it
def test_a_server_that_goes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    requested: list[str] = []
    loss, chance = 0.0, random.Random(0)
    request = requests.Session.request

    def watched(self: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
        requested.append(f"{method} {url}")
        response = request(self, method, url, **kwargs)
        if chance.random() < loss:
            raise requests.ConnectionError("the request arrived, its answer did not")
        return response

    monkeypatch.setattr(requests.Session, "request", watched)
    search = MadeUpSearch(tmp_path, "outage")
    search.open()
    for trial in range(4):
        search.suggest(trial)
    early = list(search.events)
    for step in range(20):
        for trial in range(4):
            search.report(trial, step, float(step), image=step % 10 == 0)
    for trial in range(4):
        search.end(trial, "finished")
    late = search.events[len(early) :]
    port = free_port()

    with mlflow_server(tmp_path, port) as uri:
        with pytest.raises(TrackingUnavailable, match="Host") as caught:
            search.tracker(uri.replace("127.0.0.1", "localhost")).send(early)
        assert caught.value.permanent
        tracker = search.tracker(uri)
        requested.clear()
        tracker.send(early)
        assert len(requested) <= 4 + 4 + 2 * 4  # experiment and look-up; the parent and its file; two a trial
        requested.clear()
        tracker.send(late[:32])
        assert len(requested) <= 4 * (1 + 1 + 2), requested  # a trial: points, where artifacts go, one image twice

    with pytest.raises(TrackingUnavailable) as caught:
        tracker.send(late[32:])
    assert not caught.value.permanent

    with mlflow_server(tmp_path, port) as uri:
        tracker.send(late)  # from the last saved offset: a part is there already
        search.tracker(uri.replace("//", "//jane:secret@")).send(search.events)
        client = MlflowClient(uri)
        runs = runs_of(client, "outage")
        assert set(runs) == {"outage", "trial-0000", "trial-0001", "trial-0002", "trial-0003"}
        for name, run in runs.items():
            if name != "outage":
                assert run.info.status == "FINISHED"
                assert [value for _, _, value in points_of(client, run)] == [float(step) for step in range(20)]
                steps = [path.split("+")[2] for path in artifacts_of(client, run, "images")]
                assert steps == ["0", "0", "10", "10"]
        made_up = MadeUpRun(tmp_path, "production", tmp_path / "run")
        made_up.open()
        production = made_up.tracker(uri)
        made_up.report(1, 12)
        production.publish(made_up.with_model(1))
        assert production.register("ae") == "1"
        version, run = client.get_model_version_by_alias("ae", "champion"), runs_of(client, "production")["production"]
        assert version.source == client.get_logged_model(run.outputs.model_outputs[0].model_id).artifact_location
        search.tracker(uri).publish(Outcome([{"a": 1}], metrics={"m": 1.0}))
        assert "leaderboard.json" in artifacts_of(client, runs["outage"])

        before, failures, loss = picture(client, "outage"), 0, 0.1
        search.spec = search.spec.model_copy(update={"name": "lossy"})
        lossy = search.tracker(uri)
        for start in range(0, len(search.events), 10):
            while True:
                try:
                    lossy.send(search.events[start : start + 10])
                    break
                except TrackingUnavailable:
                    failures += 1
        loss = 0.0
        assert failures > 5
        after = picture(client, "lossy")
        assert after.pop("lossy")
        for name, (_, *run) in after.items():
            assert run[:4] == list(before[name][1:5])
            assert run[5] == before[name][6]
            assert len(run[6]) == len(before[name][7])
    assert list((tmp_path / "artifacts").rglob("search.yaml"))  # where the server keeps them, not the client
    assert capfd.readouterr() == ("", "")
