"""The MLflow server of deploy/mlflow, run by its image's command on PostgreSQL and an S3 store.

Without PostgreSQL's programs (Debian: postgresql) it runs on SQLite, and what is of PostgreSQL alone is skipped.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests
from made_up_search import shown_values
from mlflow import MlflowClient

from ftae.results.replay import replay
from ftae.results.stored_spec import spec_of
from ftae.search.tracking_sync import sync
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import Journal
from ftae.storage.store import Store
from ftae.tracking import Outcome, OutcomeModel, TrackingUnavailable, tracker_for

pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
psycopg = pytest.importorskip("psycopg")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")

DEPLOY = Path(__file__).parents[2] / "deploy" / "mlflow"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
PASSWORD = {"admin": "the-administrator's", "driver": "the-driver's-own", "database": "the-database's"}


@dataclass(frozen=True)
class Server:
    """A server that runs. ``database``: how PostgreSQL is reached; empty on SQLite. ``bucket`` lists its keys."""

    uri: str
    log: Path
    bucket: Callable[[], list[str]]
    database: dict[str, str]

    def get(self, path: str, user: str | None = None, password: str | None = None, **headers: str) -> int:
        """The status that a request is answered with."""
        auth = None if user is None else (user, PASSWORD[user] if password is None else password)
        return requests.get(f"{self.uri}/{path}", auth=auth, headers=headers, timeout=30).status_code


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], log: Path, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def postgresql() -> Iterator[dict[str, str]]:
    """A PostgreSQL server in a folder of its own; yields the variables that its clients find it by."""
    assert PROGRAMS is not None
    with tempfile.TemporaryDirectory(prefix="ftae-postgresql-") as name:
        folder, port, as_owner = Path(name), free_port(), list[str]()
        if os.geteuid() == 0:  # it refuses to run as root
            as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        (folder / "password").write_text(PASSWORD["database"])
        init = [PROGRAMS / "initdb", "--pgdata", folder / "data", "--username=mlflow", "--auth=scram-sha-256"]
        init += ["--pwfile", folder / "password", "--no-sync", "--encoding=UTF8", "--no-locale"]
        subprocess.run([*as_owner, *init], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        command = [PROGRAMS / "postgres", "-D", folder / "data", *(f"--{key}={v}" for key, v in options.items())]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*as_owner, *command], stderr=log, cwd=folder)
        found = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGPASSWORD": PASSWORD["database"]}
        environment, is_ready = os.environ | found, [PROGRAMS / "pg_isready", "--quiet"]
        try:
            wait_until(lambda: not subprocess.run(is_ready, env=environment).returncode, folder / "log")
            subprocess.run([PROGRAMS / "createdb", "mlflow"], env=environment, check=True)
            yield found
        finally:
            process.send_signal(signal.SIGINT)  # the fast shutdown, which does not wait for clients
            process.wait(30)


@contextmanager
def object_store() -> Iterator[tuple[dict[str, str], Callable[[], list[str]]]]:
    """An S3 server with the bucket ``mlflow``; yields the variables it is found by, and what lists the bucket."""
    store = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="key", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket="mlflow")
        yield (
            {**keys, "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}", "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow"},
            lambda: [item["Key"] for item in client.list_objects_v2(Bucket="mlflow").get("Contents", [])],
        )
    finally:
        store.stop()


def image_command(port: int) -> list[str]:
    """What the image runs, here on loopback and with one worker."""
    [line] = [
        text for text in (DEPLOY / "Dockerfile").read_text().replace("\\\n", "").splitlines() if text[:3] == "CMD"
    ]
    program, *arguments = json.loads(line.removeprefix("CMD"))
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert (program, arguments[0]) == ("mlflow", "server")
    given |= {"--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    return [sys.executable, "-m", "mlflow", "server", *(part for pair in given.items() for part in pair)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("tracking"), free_port()
    command, config = image_command(port), (DEPLOY / "basic_auth.ini").read_text()
    database: dict[str, str] = {}
    with ExitStack() as stack:
        settings, bucket = stack.enter_context(object_store())
        if PROGRAMS is not None:
            database = stack.enter_context(postgresql())
        else:
            sqlite = f"sqlite:///{folder / 'mlflow.db'}"
            command = [sqlite if part == "postgresql:///mlflow" else part for part in command]
            config = config.replace("postgresql:///mlflow", sqlite)
        (folder / "basic_auth.ini").write_text(config)
        settings |= database | {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD["admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
            "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost,localhost:*",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        log = folder / "server.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | settings, cwd=folder, start_new_session=True
            )
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)  # the server and the workers it started
        found = Server(f"http://localhost:{port}", log, bucket, database)
        wait_until(lambda: is_healthy(found) or process.poll() is not None, log)
        assert process.poll() is None, log.read_text()
        account = {"username": "driver", "password": PASSWORD["driver"]}
        made = requests.post(
            f"{found.uri}/api/2.0/mlflow/users/create", json=account, auth=("admin", PASSWORD["admin"]), timeout=30
        )
        assert made.ok, made.text
        yield found


def is_healthy(server: Server) -> bool:
    try:
        return server.get("health") == 200
    except requests.ConnectionError:
        return False


def test_strangers_are_turned_away(server: Server) -> None:
    anything = "api/2.0/mlflow/experiments/get?experiment_id=0"
    assert server.get(anything) == 401
    assert server.get(anything, "driver", "a guess") == 401
    assert server.get("api/2.0/mlflow-artifacts/artifacts") == 401
    assert server.get("") == 401
    assert server.get(anything, "driver") == 200
    assert server.get("health") == 200


def test_a_server_is_asked_by_its_own_name_alone(server: Server) -> None:
    anything = "api/2.0/mlflow/experiments/get?experiment_id=0"
    assert server.get(anything, "driver", Host="mlflow.example.org") == 403
    assert server.get(anything, "driver", Host="localhost") == 200


@pytest.fixture
def search(server: Server, tmp_path: Path) -> Store:
    return finished_search(tmp_path, server.uri)


def finished_search(tmp_path: Path, uri: str) -> Store:
    """A search of three trials and the baseline, to be tracked at ``uri``."""
    spec = SearchSpec.model_validate(
        {
            "name": tmp_path.name,
            "finetune": {
                "model": {"family": "conv_ae"},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3},
                "max_steps": 30,
                "metrics": ["psnr"],
            },
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}},
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "search": {"num_trials": 3},
            "tracking": {"uri": uri},
        }
    )
    folder = tmp_path / spec.name
    folder.mkdir()
    (folder / "search.yaml").write_text(f"name: {spec.name}\n")
    journal = Journal(folder)
    journal.append("open", search=spec.model_dump(mode="json"), digest=spec.digest(), facts={})
    for trial, kind in enumerate(("baseline", "file", "sampled", "sampled")):
        journal.append("suggest", trial=trial, params={"optimizer.lr": 1e-3 * trial} if trial else {}, kind=kind)
        for step in (0,) if kind == "baseline" else (10, 20, 30):
            add_report(journal, folder, trial, step)
        journal.append("end", trial=trial, status="finished", reason=None, value=20.0 + trial, step=step)
    journal.append("close", status="complete", reason=None)
    journal.close()
    return FolderStore(folder)


def add_report(journal: Journal, folder: Path, trial: int, step: int) -> None:
    picture, checkpoint = f"trials/{trial:04d}/step-{step}.png", f"trials/{trial:04d}/checkpoints/step-{step}"
    (folder / checkpoint).mkdir(parents=True)
    (folder / checkpoint / "state.json").write_text("{}")
    PIL.Image.new("L", (16, 8), color=step).save(folder / picture)
    journal.append(
        "report",
        trial=trial,
        step=step,
        value=20.0 + trial,
        metrics={"val/psnr": 19.0 + trial + step / 30, "train/loss": 1.0 / (1 + step)},
        timing={"time/eval": 0.5},
        checkpoint=checkpoint,
        images=picture,
    )


def points(client: MlflowClient, experiment: str) -> dict[str, dict[str, list[tuple[int, float, int]]]]:
    """Every metric of every trial's run as (step, value, time in ms), by the names of run and metric."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs) == 5
    return {
        run.info.run_name.partition(": ")[0]: {
            key: sorted((p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        for run in runs
        if "mlflow.parentRunId" in run.data.tags
    }


def log_in(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "driver")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_a_search_arrives_once_however_often_it_is_sent(
    server: Server, search: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, PASSWORD["driver"])
    sent = sync(search)
    first, keys = points(MlflowClient(server.uri), search.name), sorted(server.bucket())
    assert sync(search) == sent
    again = points(MlflowClient(server.uri), search.name)
    assert again == first
    assert sorted(server.bucket()) == keys

    expected: dict[str, Any] = {}
    events = [json.loads(line) for line in (search.folder / "journal.jsonl").read_text().splitlines()]
    for event in (event for event in events if event["event"] == "report"):
        name = f"trial-{event['trial']:04d}" if event["trial"] else "baseline"
        for key, value in shown_values(event).items():
            point = (event["step"], value, int(event["time"] * 1000))
            expected.setdefault(name, {}).setdefault(key, []).append(point)
    assert first == expected
    assert sum(key.endswith(".png") for key in keys) == 10
    assert {"leaderboard.json", "search.yaml"} <= {key.rpartition("/")[2] for key in keys}


def test_a_model_is_logged_and_registered_by_the_driver(
    server: Server, search: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, PASSWORD["driver"])
    tracker = tracker_for(spec_of(replay(search.folder)), search)
    events = [json.loads(line) for line in (search.folder / "journal.jsonl").read_text().splitlines()]
    tracker.send(events)
    report = next(event for event in reversed(events) if event["event"] == "report")

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.txt").write_text("weights")

    for _ in range(2):
        tracker.publish(Outcome(model=OutcomeModel(report, {}, write)))
        assert tracker.register("ae") == "1"
    assert sum(key.endswith("/weights.txt") for key in server.bucket()) == 1


@pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL's programs are not installed (Debian: postgresql)")
@pytest.mark.parametrize("by_server", [True, False], ids=["by the server", "without it"])
def test_postgresql_holds_each_point_once(
    server: Server, by_server: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, PASSWORD["driver"])
    for name, value in server.database.items():
        monkeypatch.setenv(name, value)
    search = finished_search(tmp_path, server.uri if by_server else "postgresql:///mlflow")
    sync(search)
    sync(search)
    query = """
        SELECT count(*), count(DISTINCT (run_uuid, key, step)) FROM metrics JOIN runs USING (run_uuid)
        JOIN experiments USING (experiment_id) WHERE experiments.name = %s AND key IN ('val/psnr', 'system/eval')
    """
    with psycopg.connect("dbname=mlflow") as connection:
        assert connection.execute(query, [search.name]).fetchone() == (20, 20)


def test_a_wrong_password_is_told_once_and_not_repeated(
    server: Server, search: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, "mistyped-password")
    with pytest.raises(TrackingUnavailable, match="401") as caught:
        sync(search)
    assert caught.value.permanent
    assert "mistyped" not in str(caught.value)


def test_no_password_gets_into_the_log(server: Server) -> None:
    log = server.log.read_text()
    assert log
    assert [who for who, password in PASSWORD.items() if password in log] == []
