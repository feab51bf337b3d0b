"""The page of a search, or of one of its trials, on an MLflow server."""

from pathlib import Path

from ftae.tracking.mlflow_server import Server


def run_link(uri: str, experiment: str, search: str, trial: int | None = None) -> str | None:
    """The address of the run of a trial, or of the whole search; None where the server has none.

    Args:
        uri: the server's, ``http://...`` or ``https://...``.
        experiment: its name.
        search: the name of the search.
        trial: the number of the trial.

    Raises:
        TrackingUnavailable: the server cannot be reached, or refuses.
    """
    server = Server(uri, Path())
    number = server.experiment(experiment)
    which = "tags.`ftae.kind` = 'search'" if trial is None else f"tags.`ftae.trial` = '{trial}'"
    found = server.runs(number, f"tags.`ftae.search` = '{search}' and {which}")
    if not found:
        return None
    newest = max(found, key=lambda run: run.info.start_time)
    return f"{uri.rstrip('/')}/#/experiments/{number}/runs/{newest.info.run_id}"
