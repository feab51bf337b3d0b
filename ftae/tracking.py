"""MLflow as a view of searches and production runs, for people to look at. The only importer of mlflow.

A search is one parent run with a child run per trial. All of it is a projection of the journal's events
(plain dicts here): sending them again changes nothing, because a metric point is identified by its
values, runs are found by their tags before they are made, and an image's name depends on nothing but
its run and step.
"""

import fcntl
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from ftae.errors import FtaeError

# Read by MLflow while it is imported. The caller keeps what could not be sent, so giving up early
# costs nothing; MLflow's own defaults wait four minutes for a server that is gone.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import PIL.Image  # noqa: E402
import requests  # noqa: E402
import sqlalchemy  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import InvalidUrlException, MlflowException  # noqa: E402

if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # what goes wrong is raised; told once is enough
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

logger = logging.getLogger(__name__)

IMAGE_KEY = "reconstruction"
LEADERBOARD = "leaderboard.json"
CHAMPION = "champion"
RUN_STATUS = {
    "finished": "FINISHED",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
TEMPORARY_4XX = (408, 409, 425, 429, 499)
# Lengths that servers of all versions accept.
MAX_PARAM, MAX_TAG, MAX_NAME = 500, 5000, 250


class TrackingUnavailable(FtaeError):
    """MLflow did not take what was sent. ``permanent``: it refused, and trying again will not help."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        self.permanent = permanent
        super().__init__(message)


def store_uri(uri: str | None, storage: Path) -> str:
    """``uri``, or where it is None, the URI of the SQLite store embedded in ``storage``."""
    return uri if uri is not None else f"sqlite:///{storage.absolute() / 'mlflow.db'}"


class SearchTracker:
    """Writes one search to MLflow. Nothing is contacted before the first ``ship`` or ``publish``.

    ``uri`` None: a SQLite store in ``storage``, the folder of all searches. ``search`` is the dumped
    spec. What tells this search from another of the same name is read from its journal's first line.
    """

    def __init__(self, uri: str | None, *, storage: Path, search_folder: Path, search: dict[str, Any]) -> None:
        self._server = _Server(uri, storage)
        self._folder, self._search = search_folder, search
        self._experiment = ""
        self._runs: dict[int | None, _Run] | None = None  # by trial, the parent at None; None: not looked up yet

    def ship(self, events: list[dict[str, Any]]) -> None:
        """Write journal events, in order. Writing them again changes nothing.

        Raises:
            TrackingUnavailable: not all could be written; ship the same events again later.
        """
        looked_up_before = self._runs is not None
        try:
            self._ship(events)
        except TrackingUnavailable as error:
            if not (looked_up_before and error.permanent):
                raise
            self._ship(events)  # somebody may have deleted a run since: look again

    def _ship(self, events: list[dict[str, Any]]) -> None:
        with self._known_runs() as runs:
            for event in events:
                self._fold(runs, event)
            for run in runs.values():
                self._write(run)

    def publish(
        self,
        *,
        leaderboard: list[dict[str, Any]],
        best_config: str,
        files: dict[str, Path],
        tags: dict[str, str],
        metrics: dict[str, float],
    ) -> None:
        """Put the outcome on the parent run, replacing an earlier one.

        ``leaderboard`` has a dict per row; ``files`` maps artifact folders to local files or folders.

        Raises:
            TrackingUnavailable: not all could be written; publish again later.
        """
        with self._known_runs() as runs:
            run_id = runs[None].run_id
            with self._server.client() as client:
                there = client.get_run(run_id).data
                client.log_text(run_id, _table(leaderboard), LEADERBOARD)
                client.log_text(run_id, best_config, "best_config.yaml")
            for artifact_path, path in files.items():
                self._server.upload(run_id, path, artifact_path)
            tables = json.loads(there.tags.get("mlflow.loggedArtifacts", "[]"))
            table = {"path": LEADERBOARD, "type": "table"}
            tags = tags | {"mlflow.loggedArtifacts": json.dumps(tables if table in tables else [*tables, table])}
            # A point has a time, so the same value sent twice would be two points.
            changed = {key: value for key, value in metrics.items() if there.metrics.get(key) != value}
            self._server.log(run_id, _points(changed, _now(), 0), {}, tags)

    # -------------------------------------------------------------------------------------- events

    def _fold(self, runs: "dict[int | None, _Run]", event: dict[str, Any]) -> None:
        """Note what an event changes."""
        kind, at, parent = event["event"], _milliseconds(event), runs[None]
        if kind == "open":
            parent.go_on()
            parent.set_params(_search_params(event["search"]))
            parent.files.append(self._folder / "search.yaml")
        elif kind == "suggest":
            run = self._trial_run(runs, event)
            run.go_on()
            run.set_tags({"ftae.kind": event["kind"]})
            run.set_params(_flatten(event["params"]))
        elif kind == "report":
            run = self._trial_run(runs, event)
            run.go_on()
            run.metrics += _points({**event["metrics"], **event["timing"]}, at, event["step"])
            if event["images"]:
                run.images[event["step"]] = self._folder / event["images"]
        elif kind == "end":
            self._trial_run(runs, event).end(event["status"], at, event["reason"])
        elif kind == "close":
            for run in runs.values():
                if run is not parent and run.status == "RUNNING":
                    run.end("interrupted", at)
            parent.end(event["status"], at, event["reason"])

    def _trial_run(self, runs: "dict[int | None, _Run]", event: dict[str, Any]) -> "_Run":
        trial = event["trial"]
        if trial not in runs:
            name = "baseline" if event.get("kind") == "baseline" else f"trial-{trial:04d}"
            tags = {"ftae.trial": str(trial), "mlflow.parentRunId": runs[None].run_id}
            runs[trial] = _Run(name, _milliseconds(event), self._tags() | tags)
        return runs[trial]

    def _write(self, run: "_Run") -> None:
        """Send what is noted for a run, making the run first if need be."""
        if not run.run_id:
            self._create(run)
        for path in filter(Path.is_file, run.files):
            self._server.upload(run.run_id, path)
        if self._server.upload_images(run.run_id, run.images, run.started):
            run.set_tags({"mlflow.loggedImages": "True"})
        self._server.log(run.run_id, run.metrics, run.new_params, run.new_tags)
        if run.status != run.written_status:
            self._server.set_status(run.run_id, run.status, run.ended)
        run.written()

    # ---------------------------------------------------------------------------------------- runs

    @contextmanager
    def _known_runs(self) -> "Iterator[dict[int | None, _Run]]":
        """The runs of this search, looked up at the first use and again after a failure."""
        try:
            if self._runs is None:
                self._runs = self._look_up()
            yield self._runs
        except BaseException:
            self._runs = None  # what arrived is uncertain, and the server may come back as another
            raise

    def _look_up(self) -> "dict[int | None, _Run]":
        """What the server has of this search; the parent is made if missing."""
        self._experiment = self._server.experiment(self._search["tracking"]["experiment"] or self._search["name"])
        runs: dict[int | None, _Run] = {}
        for found in self._server.runs(self._experiment, f"tags.`ftae.search_id` = '{self._search_id()}'"):
            trial = found.data.tags.get("ftae.trial")
            key = None if trial is None else int(trial)
            if key not in runs:
                runs[key] = _Run.of(found)
            elif not (found.data.params or found.data.metrics):
                # A request that was answered too late was made twice, and so was its run.
                with self._server.client() as client:
                    client.delete_run(found.info.run_id)
        if None not in runs:
            tags = self._tags() | {"ftae.kind": "search"}
            runs[None] = _Run(self._search["name"], _milliseconds(self._first_event), tags)
            self._create(runs[None])
        return runs

    def _create(self, run: "_Run") -> None:
        with self._server.client() as client:
            run.run_id = client.create_run(self._experiment, run.started, run.tags, run.name).info.run_id
        run.new_tags.clear()

    def _tags(self) -> dict[str, str]:
        return {"ftae.search": self._search["name"], "ftae.search_id": self._search_id(), "ftae.status": "running"}

    def _search_id(self) -> str:
        return f"{self._first_event['digest']}-{_milliseconds(self._first_event)}"

    @cached_property
    def _first_event(self) -> dict[str, Any]:
        with (self._folder / "journal.jsonl").open() as journal:
            first: dict[str, Any] = json.loads(journal.readline())
        assert first["event"] == "open"
        return first


class RunTracker:
    """One production run in MLflow, made on construction.

    Raises (every method too):
        TrackingUnavailable: MLflow cannot be reached, or refuses.
    """

    def __init__(
        self,
        uri: str | None,
        storage: Path,
        experiment: str,
        name: str,
        params: dict[str, Any],
        tags: dict[str, str],
    ) -> None:
        self._server = _Server(uri, storage)
        experiment_id = self._server.experiment(experiment)
        with self._server.client() as client:
            run = client.create_run(experiment_id, tags=tags, run_name=name)
        self.run_id: str = run.info.run_id
        self._started: int = run.info.start_time
        self._artifacts: str = run.info.artifact_uri
        self._server.log(self.run_id, [], _flatten(params), {})

    def log(self, step: int, metrics: Mapping[str, float], image: Path | None = None) -> None:
        """Log metrics (and a PNG) at an optimizer step."""
        images = {} if image is None else {step: image}
        logged = self._server.upload_images(self.run_id, images, self._started)
        tags = {"mlflow.loggedImages": "True"} if logged else {}
        self._server.log(self.run_id, _points(metrics, _now(), step), {}, tags)

    def log_folder(self, path: Path, artifact_path: str) -> None:
        """Upload the files of a local folder to ``artifact_path`` of the run."""
        self._server.upload(self.run_id, path, artifact_path)

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """The run is over, now."""
        self._server.set_status(self.run_id, status, _now())

    def register(self, model_name: str, artifact_path: str) -> str:
        """Make what lies at ``artifact_path`` the newest version of a model and its champion.

        Returns the version; ``models:/<model_name>@champion`` names it from now on.
        """
        with self._server.client() as client:
            with _unless_it_exists():
                client.create_registered_model(model_name)
            source = f"{self._artifacts}/{artifact_path}"
            version = client.create_model_version(model_name, source, self.run_id, await_creation_for=0).version
            client.set_registered_model_alias(model_name, CHAMPION, version)
        return str(version)


@dataclass
class _Run:
    """One run as it shall be, and which part of that is still to be written.

    ``params``, ``tags`` and ``status`` are what the server will have in the end. Times in ms.
    """

    name: str
    started: int
    tags: dict[str, str]
    run_id: str = ""  # empty: to be made
    params: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    written_status: str = "RUNNING"
    ended: int = 0
    new_params: dict[str, str] = field(default_factory=dict)
    new_tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    images: dict[int, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, found: Run) -> "_Run":
        info, data = found.info, found.data
        run = cls(info.run_name, info.start_time, data.tags, info.run_id, data.params)
        run.status = run.written_status = info.status
        return run

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            if self.tags.get(name) != value:
                self.tags[name] = self.new_tags[name] = value

    def set_params(self, params: Mapping[str, str]) -> None:
        """MLflow refuses to change a param, so a changed one (an extended search) is told by a tag."""
        for name, value in params.items():
            if name not in self.params:
                self.params[name] = self.new_params[name] = value
            elif self.params[name] != value:
                self.set_tags({f"ftae.{name}": value})

    def go_on(self) -> None:
        if self.status != "RUNNING":
            self.status = "RUNNING"
            self.set_tags({"ftae.status": "running"} | ({"ftae.reason": ""} if "ftae.reason" in self.tags else {}))

    def end(self, status: str, at: int, reason: str | None = None) -> None:
        self.status, self.ended = RUN_STATUS[status], at
        self.set_tags({"ftae.status": status} | ({"ftae.reason": _clip(reason, MAX_TAG)} if reason else {}))

    def written(self) -> None:
        self.written_status = self.status
        for pending in (self.new_params, self.new_tags, self.metrics, self.images, self.files):
            pending.clear()


class _Server:
    """The tracking server or database: connected to on first use, its failures made TrackingUnavailable."""

    def __init__(self, uri: str | None, storage: Path) -> None:
        self.uri, self._storage, self._embedded = store_uri(uri, storage), storage.absolute(), uri is None
        self._client: MlflowClient | None = None

    @contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """The client, for a few calls: whatever they raise is a TrackingUnavailable outside."""
        try:
            if self._client is None:
                self._client = self._connect()
            yield self._client
        except FtaeError:
            raise
        except Exception as error:  # noqa: BLE001  # SQLAlchemy's, requests', boto's: whatever lies between
            message = _redact(f"MLflow at {self.uri}: {_reason(error)}", self.uri)
            # Not chained: the original may hold the password.
            raise TrackingUnavailable(_clip(message, 500), permanent=_is_permanent(error)) from None

    def _connect(self) -> MlflowClient:
        if self._embedded:
            self._storage.mkdir(parents=True, exist_ok=True)
        if self.uri.startswith(DATABASES):
            # MLflow would try for two minutes to open a database that cannot be opened.
            engine = sqlalchemy.create_engine(self.uri)
            engine.connect().close()
            engine.dispose()
        if not self._embedded:
            return MlflowClient(self.uri, registry_uri=self.uri)
        # Two processes creating the tables at once would leave the database half-migrated.
        with (self._storage / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return MlflowClient(self.uri, registry_uri=self.uri)

    def experiment(self, name: str) -> str:
        """The id of an experiment, made if missing."""
        # A server decides itself where artifacts go; a database alone would take the current folder.
        served = self.uri.startswith(("http:", "https:"))
        location = None if served else (self._storage / "mlartifacts").as_uri()
        with self.client() as client:
            found = client.get_experiment_by_name(name)
            if found is None:
                with _unless_it_exists():  # another search may make it at the same time
                    client.create_experiment(name, location)
                found = client.get_experiment_by_name(name)
        assert found is not None
        if found.lifecycle_stage != "active":
            raise TrackingUnavailable(
                f"the MLflow experiment {name!r} is deleted; restore it or set tracking.experiment to another name",
                permanent=True,
            )
        experiment_id: str = found.experiment_id
        return experiment_id

    def runs(self, experiment: str, condition: str) -> list[Run]:
        """The runs of an experiment that meet a condition, those that hold more first."""
        found: list[Run] = []
        token: str | None = ""
        with self.client() as client:
            while token is not None:
                page = client.search_runs([experiment], condition, max_results=1000, page_token=token or None)
                found, token = found + list(page), page.token or None
        return sorted(found, key=lambda run: -len(run.data.params) - len(run.data.metrics))

    def log(self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write points, params and tags; the client cuts them into requests of at most 1000 of all."""
        with self.client() as client:
            client.log_batch(
                run_id,
                metrics,
                [Param(key, value) for key, value in params.items()],
                [RunTag(key, value) for key, value in tags.items()],
            )

    def set_status(self, run_id: str, status: str, ended: int) -> None:
        with self.client() as client:
            if status == "RUNNING":
                client.update_run(run_id, status)
            else:
                client.set_terminated(run_id, status, ended)

    def upload(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """Upload a file, or the content of a folder."""
        if not path.exists():
            raise FtaeError(f"cannot log {path} to MLflow: it does not exist")
        with self.client() as client, _patience():
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_path)
            else:
                client.log_artifact(run_id, str(path), artifact_path)

    def upload_images(self, run_id: str, images: Mapping[int, Path], started: int) -> bool:
        """Put PNGs, by step, into the run's image grid; returns whether there were any to put.

        The files are named as ``MlflowClient.log_image`` names them, which the grid relies on, but for the
        time and the random part: a second upload replaces the first.
        """
        if not images:
            return False
        with tempfile.TemporaryDirectory() as folder:
            for step, path in images.items():
                stem = Path(folder) / f"{IMAGE_KEY}+step+{step}+timestamp+{started}+{run_id}"
                try:
                    with PIL.Image.open(path) as image:
                        small = image.convert("RGB")
                    small.thumbnail((256, 256))
                    small.save(f"{stem}+compressed.webp")
                    shutil.copyfile(path, f"{stem}.png")
                except (OSError, SyntaxError, ValueError) as error:  # deleted meanwhile, or cut short
                    Path(f"{stem}+compressed.webp").unlink(missing_ok=True)
                    logger.warning("no image of step %d in MLflow: %s", step, error)
            any_left = any(Path(folder).iterdir())
            if any_left:
                with self.client() as client:
                    client.log_artifacts(run_id, folder, "images")
        return any_left


def _reason(error: Exception) -> str:
    """The telling part of a message: without SQL, and without the layers around a failed request."""
    text = " ".join(str(error).split()).partition(" [SQL:")[0]
    cause = re.search(r"\(Caused by (.*)\)$", text)
    return f"{type(error).__name__}: {cause[1] if cause else text}"


def _is_permanent(error: Exception) -> bool:
    """Whether the server understood and refused, so that the same request would be refused again."""
    if isinstance(error, ImportError | InvalidUrlException | sqlalchemy.exc.ArgumentError):
        return True
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    else:
        return False
    return 400 <= status < 500 and status not in TEMPORARY_4XX


@contextmanager
def _unless_it_exists() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _patience() -> Iterator[None]:
    """Wait as long as MLflow itself would: a server may pass a large file on before it answers."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(120, int(before)))
    try:
        yield
    finally:
        os.environ[name] = before


def _redact(text: str, uri: str) -> str:
    """``text`` without what is secret in ``uri`` or in the environment."""
    secrets = [
        uri.partition("?")[2],
        os.environ.get("MLFLOW_TRACKING_PASSWORD"),
        os.environ.get("MLFLOW_TRACKING_TOKEN"),
    ]
    # Up to the last @: a database's password may hold any character.
    login, at, _ = uri.partition("://")[2].rpartition("@")
    if at and not uri.startswith("sqlite"):
        text = text.replace(f"{login}@", "***@")
        password = login.partition(":")[2]
        secrets += [login, password, unquote(password)]
    for secret in secrets:
        if secret and len(secret) > 3:  # a shorter one would be hit in the middle of words, and so be told
            text = text.replace(secret, "***")
    return text


def _search_params(search: dict[str, Any]) -> dict[str, str]:
    """What a search asks and with what means; its whole file is an artifact."""
    finetune = search["finetune"]
    return _flatten(
        {
            "objective": search["objective"],
            "search": {key: value for key, value in search["search"].items() if key != "storage"},
            "search_space": {path: json.dumps(distribution) for path, distribution in search["search_space"].items()},
            "model": finetune["model"],
            "data": finetune["data"],
            "max_steps": finetune["max_steps"],
            "batch_size": finetune["batch_size"],
        }
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted name, as text; characters that MLflow refuses in a name as ``_<hex>``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            name = re.sub(r"[^\w.\- ]", lambda match: f"_{ord(match[0]):x}", prefix + key)
            flat[name[:MAX_NAME]] = _clip(value if isinstance(value, str) else json.dumps(value), MAX_PARAM)
    return flat


def _points(metrics: Mapping[str, Any], at: int, step: int) -> list[Metric]:
    """MLflow keeps an infinity as 1.8e308, which spoils every chart: only finite values are points."""
    return [
        Metric(key, float(value), at, step)
        for key, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the form of pandas' ``orient="split"``, which MLflow shows as a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({"columns": columns, "data": [[cell(row.get(column)) for column in columns] for row in rows]})


def _milliseconds(event: Mapping[str, Any]) -> int:
    return int(event["time"] * 1000)


def _now() -> int:
    return int(time.time() * 1000)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
