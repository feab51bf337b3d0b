"""Values in the form MLflow takes: names, lengths, points, tables, times."""

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
from pathlib import Path
from typing import Any

import PIL.Image
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import InvalidUrlException, MlflowException

from ftae.errors import FtaeError
from ftae.specs.reading.names import redacted

# Lengths that servers of all versions accept.
MAX_PARAM, MAX_TAG, MAX_NAME = 500, 5000, 250


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted name, as text; characters that MLflow refuses in a name as ``_<hex>``."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            name = re.sub(r"[^\w.\- ]", lambda match: f"_{ord(match[0]):x}", prefix + key)
            flat[name[:MAX_NAME]] = clip(value if isinstance(value, str) else json.dumps(value), MAX_PARAM)
    return flat


def points(metrics: Mapping[str, Any], at: int, step: int) -> list[Metric]:
    """MLflow keeps an infinity as 1.8e308, which spoils every chart: only finite values are points."""
    return [
        Metric(key, float(value), at, step)
        for key, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the form of pandas' ``orient="split"``, which MLflow shows as a table.

    It takes a dot in a column's name for a path into the cell and shows nothing, so dots become slashes.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    names = [column.replace(".", "/") for column in columns]
    return json.dumps({"columns": names, "data": [[cell(row.get(column)) for column in columns] for row in rows]})


def milliseconds(event: Mapping[str, Any]) -> int:
    return int(event["time"] * 1000)


def now() -> int:
    return int(time.time() * 1000)


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


logger = logging.getLogger(__name__)

IMAGE_KEY = "reconstruction"

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

TEMPORARY_4XX = (408, 409, 425, 429, 499)


class TrackingUnavailable(FtaeError):
    """MLflow did not take what was sent. ``permanent``: it refused, and trying again will not help."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        self.permanent = permanent
        super().__init__(message)


def store_uri(uri: str | None, storage: Path) -> str:
    """``uri``, or where it is None, the URI of the SQLite store embedded in ``storage``."""
    return uri if uri is not None else f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def check_experiment(uri: str | None, storage: Path, name: str) -> None:
    """Make sure that runs can be logged to the experiment ``name``, which is made if missing.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, or refuses.
    """
    Server(uri, storage).experiment(name)


class Server:
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
            message = _redacted(f"MLflow at {self.uri}: {_reason(error)}", self.uri)
            # Not chained: the original may hold the password.
            raise TrackingUnavailable(clip(message, 500), permanent=_is_permanent(error)) from None

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
                with unless_it_exists():  # another search may make it at the same time
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
        with self.client() as client, patience():
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
                    small.thumbnail((512, 512))
                    small.save(f"{stem}+compressed.webp", method=0)  # a fifth of the time that it takes by default
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
def unless_it_exists() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def patience() -> Iterator[None]:
    """Wait as long as MLflow itself would: a server may pass a large file on before it answers."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(120, int(before)))
    try:
        yield
    finally:
        os.environ[name] = before


def _redacted(text: str, uri: str) -> str:
    """``text`` without what is secret in ``uri`` or in the environment."""
    for variable in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        secret = os.environ.get(variable, "")
        if len(secret) > 3:  # a shorter one would be hit in the middle of words, and so be told
            text = text.replace(secret, "***")
    return redacted(text, uri)
