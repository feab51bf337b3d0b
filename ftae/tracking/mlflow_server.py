"""The connection to an MLflow server or database; its failures become TrackingUnavailable.

MLflow takes its timeouts from variables of the environment alone: they are set while it is imported and while it is
called, and then restored.
"""

import fcntl
import logging
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import PIL.Image
import requests
import sqlalchemy

from ftae.errors import FtaeError
from ftae.specs.reading.names import redacted
from ftae.tracking import TrackingUnavailable, store_uri

logger = logging.getLogger(__name__)

# Lengths that servers of all versions accept.
MAX_PARAM, MAX_TAG, MAX_NAME = 500, 5000, 250
IMAGE_KEY = "reconstruction"
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")  # opens in "Model training", not in "GenAI"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
TEMPORARY_4XX = (408, 409, 425, 429, 499)

# A user's own values stay. The caller keeps what could not be sent, so giving up early costs nothing; MLflow's
# defaults wait four minutes for a server that is away.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

UPLOAD_SECONDS = 120  # a server may pass a large file on before it answers
_in_use = threading.RLock()


@contextmanager
def _variables(wanted: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Inside the block the environment has the ``wanted`` values.

    The lock keeps two searches of one process from restoring each other's values.
    """
    with _in_use:
        values = wanted()
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _for_all_calls() -> Mapping[str, str]:
    return {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}


def _for_uploads() -> Mapping[str, str]:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    return {name: str(max(UPLOAD_SECONDS, int(os.environ[name])))}


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block MLflow and urllib3 log nothing: what fails is raised, and is then reported once."""
    levels = {"urllib3.connectionpool": logging.ERROR}
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        levels["mlflow"] = logging.CRITICAL
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def quiet_mlflow(variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """For calls of mlflow that need no server: sets its variables, and others, and silences it."""
    with _variables(lambda: {**_for_all_calls(), **(variables or {})}), _quiet():
        yield


with _variables(_for_all_calls):
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
    from mlflow.exceptions import InvalidUrlException, MlflowException


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def points(metrics: Mapping[str, Any], at: int, step: int, model_id: str | None = None) -> list[Metric]:
    """Return the finite values as points; MLflow stores an infinity as 1.8e308, which spoils every chart."""
    return [
        Metric(key, float(value), at, step, model_id)
        for key, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


class Server:
    """A tracking server or database, connected to at the first use. ``uri`` None: a SQLite store in ``storage``.

    Raises (every method):
        TrackingUnavailable: MLflow cannot be reached, or refuses.
    """

    def __init__(self, uri: str | None, storage: Path) -> None:
        self.uri, self._storage, self._embedded = store_uri(uri, storage), storage.absolute(), uri is None
        self._client: MlflowClient | None = None

    @contextmanager
    def client(self, *, uploading: bool = False) -> Iterator[MlflowClient]:
        """The client, for a few calls; whatever they raise becomes a TrackingUnavailable.

        ``uploading``: the calls may wait for large files to arrive.
        """
        try:
            with quiet_mlflow(), _variables(_for_uploads) if uploading else nullcontext():
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
        """Return the id of an experiment; creates it if it is missing. It opens in MLflow's "Model training"."""
        # A server decides where artifacts go; with a database alone, MLflow would take the current folder.
        served = self.uri.startswith(("http:", "https:"))
        location = None if served else (self._storage / "mlartifacts").as_uri()
        with self.client() as client:
            found = client.get_experiment_by_name(name)
            if found is None:
                with _unless_it_exists():  # another search may create it at the same time
                    client.create_experiment(name, location, dict([EXPERIMENT_KIND]))
                found = client.get_experiment_by_name(name)
            elif found.lifecycle_stage == "active" and EXPERIMENT_KIND[0] not in found.tags:
                client.set_experiment_tag(found.experiment_id, *EXPERIMENT_KIND)
        assert found is not None
        if found.lifecycle_stage != "active":
            raise TrackingUnavailable(
                f"the MLflow experiment {name!r} is deleted; restore it or set tracking.experiment to another name",
                permanent=True,
            )
        experiment_id: str = found.experiment_id
        return experiment_id

    def runs(self, experiment: str, condition: str) -> list[Run]:
        """Return the runs of an experiment that meet a condition, the run with the most content first."""
        found: list[Run] = []
        token: str | None = ""
        with self.client() as client:
            while token is not None:
                page = client.search_runs([experiment], condition, max_results=1000, page_token=token or None)
                found, token = found + list(page), page.token or None
        return sorted(found, key=lambda run: -len(run.data.params) - len(run.data.metrics))

    def log(self, run_id: str, metrics: Sequence[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write points, params and tags; the client splits them into requests of at most 1000 values."""
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

    def rename(self, run_id: str, name: str) -> None:
        with self.client() as client:
            client.update_run(run_id, name=name)

    def log_dataset(self, run_id: str, dataset: DatasetInput) -> None:
        """Name the data of a run; naming the same again changes nothing."""
        with self.client() as client:
            client.log_inputs(run_id, [dataset])

    def upload(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """Upload a file, or the content of a folder."""
        if not path.exists():
            raise FtaeError(f"cannot log {path} to MLflow: it does not exist")
        with self.client(uploading=True) as client:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_path)
            else:
                client.log_artifact(run_id, str(path), artifact_path)

    def upload_images(self, run_id: str, images: Mapping[int, Path], started: int) -> bool:
        """Put PNGs, by step, into the image grid of a run; returns whether there were any.

        The grid relies on the names that ``MlflowClient.log_image`` gives to files. These are the same but for the
        time and the random part, so that a second upload replaces the first.
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
                    small.save(f"{stem}+compressed.webp", method=0)  # takes a fifth of the default's time
                    shutil.copyfile(path, f"{stem}.png")
                except (OSError, SyntaxError, ValueError) as error:  # deleted meanwhile, or truncated
                    Path(f"{stem}+compressed.webp").unlink(missing_ok=True)
                    logger.warning("no image of step %d in MLflow: %s", step, error)
            any_left = any(Path(folder).iterdir())
            if any_left:
                with self.client() as client:
                    client.log_artifacts(run_id, folder, "images")
        return any_left

    def make_registered_model(self, name: str) -> None:
        """Make a registered model without versions, unless there is one of this name."""
        with self.client() as client, _unless_it_exists():
            client.create_registered_model(name)


def _reason(error: Exception) -> str:
    """Return the useful part of a message: without SQL, and without the layers around a failed request."""
    text = " ".join(str(error).split()).partition(" [SQL:")[0]
    cause = re.search(r"\(Caused by (.*)\)$", text)
    return f"{type(error).__name__}: {cause[1] if cause else text}"


def _is_permanent(error: Exception) -> bool:
    """Whether the server understood the request and refused it, so that it would refuse it again."""
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


def _redacted(text: str, uri: str) -> str:
    """Return ``text`` without the secrets of ``uri`` and of the environment."""
    for variable in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        secret = os.environ.get(variable, "")
        if len(secret) > 3:  # a shorter one would match inside other words, and so be revealed
            text = text.replace(secret, "***")
    return redacted(text, uri)
