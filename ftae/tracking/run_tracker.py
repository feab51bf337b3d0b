"""A production run in MLflow: one run, its model, its place in the registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ftae.tracking.mlflow_server import Server, flatten, now, points, unless_it_exists

CHAMPION = "champion"


class RunTracker:
    """The production run of this name that began at ``started`` (seconds since the epoch).

    On construction it is looked up in its experiment, and made if missing; one that had ended goes on.

    Raises (every method too):
        TrackingUnavailable: MLflow cannot be reached, or refuses.
    """

    def __init__(
        self,
        uri: str | None,
        storage: Path,
        experiment: str,
        name: str,
        started: float,
        params: dict[str, Any],
        tags: dict[str, str],
    ) -> None:
        self._server = Server(uri, storage)
        experiment_id = self._server.experiment(experiment)
        self._started = int(started * 1000)
        tags = tags | {"ftae.run_id": f"{name}-{self._started}"}
        run = next(iter(self._server.runs(experiment_id, f"tags.`ftae.run_id` = '{tags['ftae.run_id']}'")), None)
        if run is None:
            with self._server.client() as client:
                run = client.create_run(experiment_id, self._started, tags, name)
        self.run_id: str = run.info.run_id
        self._artifacts: str = run.info.artifact_uri
        self._server.set_status(self.run_id, "RUNNING", 0)
        # MLflow refuses to change a param, so a changed one (a longer run) is told by a tag.
        before, values = run.data.params, flatten(params)
        new = {key: value for key, value in values.items() if key not in before}
        changed = {f"ftae.{key}": value for key, value in values.items() if before.get(key, value) != value}
        self._server.log(self.run_id, [], new, changed)

    def log(self, step: int, metrics: Mapping[str, float], at: float, image: Path | None = None) -> None:
        """Log metrics (and a PNG) of an optimizer step, measured ``at`` (seconds since the epoch).

        Logging the same again changes nothing.
        """
        images = {} if image is None else {step: image}
        logged = self._server.upload_images(self.run_id, images, self._started)
        tags = {"mlflow.loggedImages": "True"} if logged else {}
        self._server.log(self.run_id, points(metrics, int(at * 1000), step), {}, tags)

    def log_folder(self, path: Path, artifact_path: str) -> None:
        """Upload the files of a local folder to ``artifact_path`` of the run."""
        self._server.upload(self.run_id, path, artifact_path)

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """The run is over, now."""
        self._server.set_status(self.run_id, status, now())

    def register(self, model_name: str, artifact_path: str) -> str:
        """Make what lies at ``artifact_path`` the newest version of a model and its champion.

        Returns the version; ``models:/<model_name>@champion`` names it from now on.
        """
        with self._server.client() as client:
            with unless_it_exists():
                client.create_registered_model(model_name)
            source = f"{self._artifacts}/{artifact_path}"
            version = client.create_model_version(model_name, source, self.run_id, await_creation_for=0).version
            client.set_registered_model_alias(model_name, CHAMPION, version)
        return str(version)
