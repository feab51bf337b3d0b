"""Tuned models in MLflow: logged models, and their versions in the registry.

A logged model is found by its tags before it is made, and becomes ``READY`` when all of it has arrived, so that logging
it again changes nothing.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftae.tracking import OutcomeModel
from ftae.tracking.mlflow_run import flatten, milliseconds
from ftae.tracking.mlflow_server import Server, points

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

CHAMPION = "champion"
VERSIONS = "mlflow.modelVersions"  # a tag of a logged model, from which the page of MLflow links to its versions


def log_model(
    server: Server,
    experiment: str,
    model: OutcomeModel,
    *,
    name: str,
    tags: Mapping[str, str],
    runs: Sequence[str],
    folder: Path,
) -> str:
    """Log a model with its files, and its metrics at their step; returns its id.

    Args:
        experiment: the id of the experiment.
        tags: they tell the model from all others.
        runs: the ids of the runs that show the model; the first one has made it.
        folder: where the files may be written until they are sent.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, or refuses.
        FtaeError: the files of the model cannot be written.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    found = _find(server, experiment, tags)
    if found is not None and found.status == LoggedModelStatus.READY:
        return str(found.model_id)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as parts:
        model.write(written := Path(parts) / "model")
        with server.client(uploading=True) as client:
            if found is None:
                plain = re.sub(r"[/:.%\"']", "_", name)  # what MLflow refuses in the name of a model
                found = client.create_logged_model(experiment, plain, runs[0], dict(tags), flatten(model.params))
            client.log_model_artifacts(found.model_id, str(written))
    report, model_id = model.report, str(found.model_id)
    measured = points(report["metrics"], milliseconds(report), report["step"], model_id)
    server.log(runs[0], measured, {}, {})
    with server.client() as client:
        for run_id in runs:
            outputs = client.get_run(run_id).outputs
            if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                client.log_outputs(run_id, [LoggedModelOutput(model_id, report["step"])])
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def register_model(server: Server, run_id: str, model_id: str, name: str) -> str:
    """Make a logged model the champion of a registered model, as a new version if it is none yet; returns the version.

    From then on ``models:/<name>@champion`` names it. Raises TrackingUnavailable.
    """
    server.make_registered_model(name)
    with server.client() as client:
        model = client.get_logged_model(model_id)
        found = client.search_model_versions(f"run_id = '{run_id}'")
        known = [each.version for each in found if (each.name, each.source) == (name, model.artifact_location)]
        if known:
            version = str(known[0])
        else:
            made = client.create_model_version(
                name, model.artifact_location, run_id, await_creation_for=0, model_id=model_id
            )
            version = str(made.version)
            versions = [*json.loads(model.tags.get(VERSIONS, "[]")), {"name": name, "version": version}]
            client.set_logged_model_tags(model_id, {VERSIONS: json.dumps(versions)})
        client.set_registered_model_alias(name, CHAMPION, version)
    return version


def _find(server: Server, experiment: str, tags: Mapping[str, str]) -> "LoggedModel | None":
    condition = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    with server.client() as client:
        found = client.search_logged_models([experiment], condition)
    return found[0] if found else None
